// Elements are made here, of text alone: nothing that came over the network is ever read as markup.

export function make<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = "",
  text = "",
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

export function byId<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (found === null) throw new Error(`the page has no ${id}`);
  return found as T;
}

/** Set only what differs: a thousand cards are not laid out again for one that has changed. */
export function say(element: HTMLElement, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

export function label(element: HTMLElement, text: string): void {
  if (element.getAttribute("aria-label") !== text) element.setAttribute("aria-label", text);
}

export function hide(element: HTMLElement, so: boolean): void {
  if (element.hidden !== so) element.hidden = so;
}

export function bytes(count: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${count < 10 && unit > 0 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

export function count(number: number, of: string): string {
  return `${number} ${of}${number === 1 ? "" : "s"}`;
}

export function milliseconds(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10000 ? 2 : 1)} s`;
}

export function clock(at: string): string {
  const date = new Date(at);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleTimeString();
}

const closing = new WeakMap<HTMLDialogElement, () => void>();

/** Once, when the dialog has been closed; `settleClosed` is for whoever opens it again. */
export function whenClosed(dialog: HTMLDialogElement, then: () => void): void {
  const heard = (): void => {
    if (dialog.open) return; // the event of the closing before, which comes a moment after that
    dialog.removeEventListener("close", heard);
    closing.delete(dialog);
    then();
  };
  closing.set(dialog, heard);
  dialog.addEventListener("close", heard);
}

/** What is to be done for a closing whose event has not come yet. */
export function settleClosed(dialog: HTMLDialogElement): void {
  closing.get(dialog)?.();
}
