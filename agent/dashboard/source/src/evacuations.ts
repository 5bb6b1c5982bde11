// Hosts that are being emptied, container by container, and what came of those that were.

import { byId, bytes, clock, count, make, milliseconds, say } from "./dom";
import { showProgress } from "./deck";
import type { Evacuation, Evacuee } from "./messages";
import type { Store } from "./store";

const MARKS: Record<string, string> = { waiting: "·", moving: "▸", moved: "✔", left: "✘", stays: "–" };

interface View {
  item: HTMLDetailsElement;
  title: HTMLElement;
  what: HTMLElement;
  progress: HTMLProgressElement;
  cancel: HTMLButtonElement;
  rows: HTMLElement;
  /** The one that it was last drawn of, and as what. */
  id: string;
  state: string;
}

interface Row {
  item: HTMLElement;
  mark: HTMLElement;
  name: HTMLElement;
  about: HTMLElement;
  progress: HTMLProgressElement;
}

export class Evacuations {
  private readonly views = new Map<string, View>();
  private readonly rows = new Map<string, Row>();

  constructor(
    private readonly store: Store,
    private readonly cancel: (evacuation: Evacuation) => void,
    private readonly may: (host: string) => boolean | undefined,
  ) {}

  draw(): void {
    const { store } = this;
    const hosts = new Set([...store.changedEvacuations, ...store.changedHosts]);
    if (store.changedMigrations.size > 0) for (const [host, one] of store.evacuations) if (one.state === "running") hosts.add(host);
    for (const host of hosts) this.drawOne(host, store.evacuations.get(host));
    byId("evacuations-room").hidden = this.views.size === 0;
  }

  private drawOne(host: string, status: Evacuation | undefined): void {
    if (!status) {
      this.views.get(host)?.item.remove();
      this.views.delete(host);
      return;
    }
    const view = this.views.get(host) ?? this.add(host);
    const running = status.state === "running";
    if (view.id !== status.id) {
      view.rows.replaceChildren();
      view.id = status.id;
      byId("evacuations").prepend(view.item);
    }
    if (view.state !== status.state) view.item.open = running;
    view.state = status.state;
    const over = status.containers.filter((one) => one.state !== "waiting" && one.state !== "moving").length;
    say(view.title, status.kind === "return" ? `${host} gives containers back` : `Evacuation of ${host}`);
    say(view.what, running ? runningWords(status, over) : endedWords(status));
    view.item.classList.toggle("failed", !running && status.containers.some((one) => one.state === "left"));
    view.progress.hidden = !running;
    view.progress.max = status.containers.length || 1;
    view.progress.value = over;
    view.progress.setAttribute("aria-label", `containers of ${host} that are dealt with`);
    view.cancel.hidden = !running || this.may(host) !== true;
    view.cancel.setAttribute("aria-label", `Cancel the evacuation of ${host}`);
    for (const one of status.containers) this.fill(view, status, one);
  }

  private fill(view: View, status: Evacuation, one: Evacuee): void {
    const key = `${status.id}/${one.container_id}`;
    let row = this.rows.get(key);
    if (!row || !row.item.isConnected) {
      row = { item: make("li"), mark: make("span", "mark"), name: make("strong"), about: make("span", "about"), progress: make("progress") };
      row.mark.setAttribute("aria-hidden", "true");
      row.item.append(row.mark, row.name, row.about, row.progress);
      view.rows.append(row.item);
      this.rows.set(key, row);
    }
    row.item.className = `evacuee is-${MARKS[one.state] ? one.state : "other"}`;
    say(row.mark, MARKS[one.state] ?? "?");
    say(row.name, one.container);
    const move = one.state === "moving" ? this.store.migrations.get(one.migration) : undefined;
    row.progress.hidden = !move;
    if (move) showProgress(row.progress, move);
    const words = [one.state === "moving" ? `to ${one.to}` : wordsOf(one)];
    if (move) {
      words.push(move.phase);
      if (move.rate) words.push(`${bytes(move.rate)}/s`);
      if (move.eta_s) words.push(`${milliseconds(move.eta_s * 1000)} left`);
    }
    say(row.about, words.join(" · "));
  }

  private add(host: string): View {
    const view: View = {
      item: make("details", "evacuation"),
      title: make("span", "title"),
      what: make("span", "what"),
      progress: make("progress"),
      cancel: make("button", "cancel", "Cancel"),
      rows: make("ol"),
      id: "",
      state: "",
    };
    view.item.dataset["evacuation"] = host;
    view.cancel.type = "button";
    view.cancel.addEventListener("click", () => {
      const now = this.store.evacuations.get(host);
      if (now) this.cancel(now);
    });
    const summary = make("summary");
    summary.append(view.title, " ", view.what);
    view.item.append(summary, view.progress, view.rows, view.cancel);
    this.views.set(host, view);
    return view;
  }
}

function wordsOf(one: Evacuee): string {
  if (one.state === "moved") return one.blackout_ms == null ? `is on ${one.to}` : `is on ${one.to} · blackout ${milliseconds(one.blackout_ms)}`;
  if (one.state === "waiting") return one.to ? `waits, for ${one.to}` : "waits";
  return one.error || one.why || one.state;
}

function runningWords(status: Evacuation, over: number): string {
  const words = [`${over} of ${count(status.containers.length, "container")}`, `${status.parallel} at once`];
  if (status.deadline) words.push(`until ${clock(status.deadline)}`);
  return words.join(" · ");
}

function endedWords(status: Evacuation): string {
  const moved = status.containers.filter((one) => one.state === "moved").length;
  const left = status.containers.filter((one) => one.state === "left" || one.state === "moving").length;
  const took = Date.parse(status.at) - Date.parse(status.started_at);
  const words = [`${clock(status.at)}`, status.state, `${moved} moved`, `${left} left behind`];
  if (took > 0) words.push(`${milliseconds(took)} in all`);
  if (status.error) words.push(status.error);
  return words.join(" · ");
}
