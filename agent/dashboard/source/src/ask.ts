// The one dialog: where to, and how. Answers with what was chosen, or nothing.

import { byId, bytes, make, settleClosed, whenClosed } from "./dom";
import type { ContainerStatus } from "./messages";
import { sentence } from "./outlook";
import type { Store } from "./store";

export interface Choice {
  to: string;
  strategy: string;
}

const RISK = "In post-copy, a source that dies for good before the last page is across takes the container with it.";

export function ask(one: ContainerStatus, store: Store, opener: HTMLElement): Promise<Choice | null> {
  const dialog = byId<HTMLDialogElement>("ask");
  settleClosed(dialog);
  const form = dialog.querySelector("form") as HTMLFormElement;
  const to = form.elements.namedItem("to") as HTMLSelectElement;
  const strategy = form.elements.namedItem("strategy") as HTMLSelectElement;
  const targets = [...store.hosts.values()].filter((other) => other.online && other.host !== one.host && !other.cordoned);
  const refused = (host: string): number => (one.outlook?.peers[host]?.verdict === "no" ? 1 : 0);
  targets.sort((a, b) => refused(a.host) - refused(b.host) || (a.host < b.host ? -1 : 1));
  byId("ask-title").textContent = `Move ${one.name} from ${one.host}`;
  to.replaceChildren(
    ...targets.map((other) => {
      const free = other.memory_bytes > 0 ? ` (${bytes(other.memory_free_bytes)} of memory free)` : "";
      const option = make("option", "", other.host + free);
      option.value = other.host;
      return option;
    }),
  );
  byId<HTMLButtonElement>("ask-go").disabled = targets.length === 0;
  const risk = byId("ask-risk");
  const note = (): void => {
    risk.textContent = targets.length === 0 ? "No other host is online." : strategy.value === "postcopy" ? RISK : "";
  };
  const foresee = (): void => {
    byId("ask-outlook").textContent = sentence(one.outlook, to.value);
  };
  to.onchange = foresee;
  foresee();
  strategy.value = "auto";
  strategy.onchange = note;
  note();
  byId("ask-cancel").onclick = () => dialog.close("cancel");
  dialog.returnValue = "cancel"; // Escape closes without saying a word
  dialog.showModal();
  return new Promise((resolve) => {
    whenClosed(dialog, () => {
      opener.focus();
      resolve(dialog.returnValue === "go" ? { to: to.value, strategy: strategy.value } : null);
    });
  });
}
