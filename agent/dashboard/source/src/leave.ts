// The dialog for many at once, an evacuation or a return: first what would be done, and only then is it begun.

import { byId, bytes, count, make, settleClosed, whenClosed } from "./dom";
import type { Evacuation, Evacuee, Reply } from "./messages";

export interface Leaving {
  kind: "evacuate" | "return";
  /** That is emptied, or that they come home to. */
  host: string;
  /** Who is asked: the host itself, or those where its containers are. */
  asked: string[];
  /** Hosts that an evacuation can be held to. */
  targets: string[];
  /** As many moves as one host makes at once. */
  limit: number;
}

export type Send = (host: string, what: Record<string, unknown>, heard: (reply: Reply) => void) => Promise<void>;

/** One dialog from its opening to its end. */
export class LeaveDialog {
  private readonly dialog = byId<HTMLDialogElement>("leave");
  private readonly form = this.dialog.querySelector("form") as HTMLFormElement;
  private readonly said = byId("leave-said");
  private readonly go = byId<HTMLButtonElement>("leave-go");
  private readonly plan = byId<HTMLButtonElement>("leave-plan");
  private readonly table = byId<HTMLTableElement>("leave-table");
  /** Which question the answers belong to: an older one's come too late. */
  private round = 0;

  constructor(
    private readonly leaving: Leaving,
    private readonly send: Send,
    private readonly begin: (host: string, what: Record<string, unknown>) => void,
  ) {}

  open(opener: HTMLElement): void {
    settleClosed(this.dialog);
    const { kind, host, targets, limit } = this.leaving;
    const home = kind === "return";
    byId("leave-title").textContent = home ? `Bring containers back to ${host}` : `Evacuate ${host}`;
    byId("leave-what").textContent = home
      ? `What an evacuation of ${host} has brought elsewhere comes home.`
      : `${host} takes no containers any more, and all that run there move to other hosts. What can't be moved runs on.`;
    this.go.textContent = home ? "Bring back" : "Evacuate";
    byId("leave-to").hidden = home;
    byId("leave-hosts").replaceChildren(...targets.map(checkbox));
    this.field("deadline").value = "";
    this.field("parallel").value = "";
    this.field("parallel").max = String(limit || 64);
    this.field("parallel").placeholder = limit ? String(limit) : "";
    this.forgetPlan("");
    this.form.oninput = () => this.forgetPlan("");
    this.plan.onclick = () => void this.ask();
    byId("leave-cancel").onclick = () => this.dialog.close("cancel");
    this.dialog.returnValue = "cancel"; // Escape closes without saying a word
    this.dialog.showModal();
    this.plan.focus();
    whenClosed(this.dialog, () => {
      this.round += 1;
      opener.focus();
      if (this.dialog.returnValue === "go") {
        for (const each of this.leaving.asked) this.begin(each, this.command(false));
      }
    });
  }

  private field(name: string): HTMLInputElement {
    return this.form.elements.namedItem(name) as HTMLInputElement;
  }

  private command(plan: boolean): Record<string, unknown> {
    const { kind, host } = this.leaving;
    const minutes = Number(this.field("deadline").value);
    const parallel = Number(this.field("parallel").value);
    const chosen = [...byId("leave-hosts").querySelectorAll<HTMLInputElement>("input:checked")].map((one) => one.value);
    return {
      kind,
      plan,
      to: kind === "return" ? host : chosen,
      ...(minutes > 0 ? { deadline_s: minutes * 60 } : {}),
      ...(parallel > 0 ? { parallel } : {}),
    };
  }

  private forgetPlan(said: string): void {
    this.round += 1;
    this.said.textContent = said;
    this.table.hidden = true;
    this.go.disabled = true;
    this.plan.disabled = false;
  }

  private async ask(): Promise<void> {
    if (!this.form.reportValidity()) return;
    this.forgetPlan("Asking…");
    this.plan.disabled = true;
    const round = this.round;
    const plans: Evacuation[] = [];
    let wrong = "";
    const answers = this.leaving.asked.map(
      (host) =>
        new Promise<void>((resolve) => {
          const heard = (reply: Reply): void => {
            if (reply.kind === "accepted") return;
            if (reply.evacuation) plans.push(reply.evacuation);
            else wrong = [reply.error?.message, reply.error?.hint].filter(Boolean).join(". ") || reply.kind;
            resolve();
          };
          this.send(host, this.command(true), heard).catch((error: unknown) => {
            wrong = error instanceof Error ? error.message : String(error);
            resolve();
          });
        }),
    );
    await Promise.all(answers);
    if (round !== this.round) return;
    this.show(plans, wrong);
  }

  private show(plans: Evacuation[], wrong: string): void {
    const all = plans.flatMap((plan) => plan.containers);
    const goes = all.filter((one) => one.to);
    const last = Math.max(0, ...goes.map((one) => one.predicted_s ?? 0));
    const words = [`${count(goes.length, "container")} would move, ${all.length - goes.length} would stay`];
    if (last > 0) words.push(`there after about ${Math.ceil(last)} s`);
    this.plan.disabled = false;
    this.said.textContent = wrong || `${words.join("; ")}.`;
    this.table.hidden = all.length === 0;
    this.table.tBodies[0]?.replaceChildren(...all.map(row));
    this.go.disabled = wrong !== "" || goes.length === 0;
    if (!this.go.disabled) this.go.focus();
  }
}

function checkbox(host: string): HTMLElement {
  const label = make("label", "choice");
  const box = make("input");
  box.type = "checkbox";
  box.value = host;
  label.append(box, make("span", "", host));
  return label;
}

function row(one: Evacuee): HTMLElement {
  const line = make("tr", one.to ? "" : "stays");
  const why = make("td");
  why.append(make("span", "", one.error || one.why));
  for (const no of one.not_there) why.append(make("span", "no", no));
  line.append(
    make("th", "", one.container),
    make("td", "", one.memory_bytes ? bytes(one.memory_bytes) : ""),
    make("td", "", one.to || "stays"),
    why,
  );
  (line.firstChild as HTMLTableCellElement).scope = "row";
  return line;
}
