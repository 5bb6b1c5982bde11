// The one dialog: where to, and how. Answers with what was chosen, or nothing.

import { byId, bytes, make } from "./dom";
import type { Store } from "./store";

export interface Choice {
  to: string;
  strategy: string;
}

const RISK = "In post-copy, a source that dies for good before the last page is across takes the container with it.";

export function ask(title: string, from: string, store: Store, opener: HTMLElement): Promise<Choice | null> {
  const dialog = byId<HTMLDialogElement>("ask");
  const form = dialog.querySelector("form") as HTMLFormElement;
  const to = form.elements.namedItem("to") as HTMLSelectElement;
  const strategy = form.elements.namedItem("strategy") as HTMLSelectElement;
  const targets = [...store.hosts.values()].filter((one) => one.online && one.host !== from && !one.cordoned);
  targets.sort((a, b) => (a.host < b.host ? -1 : 1));
  byId("ask-title").textContent = title;
  to.replaceChildren(
    ...targets.map((one) => {
      const free = one.memory_bytes > 0 ? ` (${bytes(one.memory_free_bytes)} of memory free)` : "";
      const option = make("option", "", one.host + free);
      option.value = one.host;
      return option;
    }),
  );
  byId<HTMLButtonElement>("ask-go").disabled = targets.length === 0;
  const risk = byId("ask-risk");
  const note = (): void => {
    risk.textContent = targets.length === 0 ? "No other host is online." : strategy.value === "postcopy" ? RISK : "";
  };
  strategy.value = "auto";
  strategy.onchange = note;
  note();
  byId("ask-cancel").onclick = () => dialog.close("cancel");
  dialog.returnValue = "cancel"; // Escape closes without saying a word
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        opener.focus();
        resolve(dialog.returnValue === "go" ? { to: to.value, strategy: strategy.value } : null);
      },
      { once: true },
    );
  });
}
