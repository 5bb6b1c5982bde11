// The moves: under way with their progress, ended as a timeline to scale, the blackout marked; and a plot of blackouts.

import uPlot from "uplot";
import { showProgress } from "./deck";
import { byId, bytes, clock, make, milliseconds, say } from "./dom";
import type { MigrationStatus, PhaseTime } from "./messages";
import { ENDED, FROZEN, type Store } from "./store";

const SHOWN = 30;

interface Row {
  item: HTMLLIElement;
  title: HTMLElement;
  what: HTMLElement;
  progress: HTMLProgressElement;
  line: HTMLElement;
  error: HTMLElement;
  cancel: HTMLButtonElement;
}

export class Moves {
  private readonly rows = new Map<string, Row>();
  private plot: uPlot | undefined;
  private plotted = "";

  constructor(
    private readonly store: Store,
    private readonly cancel: (move: MigrationStatus) => void,
    private readonly may: (host: string) => boolean | undefined,
  ) {
    addEventListener("resize", () => this.plot?.setSize(this.size()));
    // its colours are read once
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      this.plot?.destroy();
      this.plot = undefined;
      this.plotted = "";
      this.drawPlot(this.newest());
    });
  }

  draw(): void {
    if (this.store.changedMigrations.size === 0) return;
    const newest = this.newest();
    const shown = newest.slice(0, SHOWN);
    const ids = new Set(shown.map((move) => move.id));
    for (const [id, row] of this.rows) {
      if (ids.has(id)) continue;
      row.item.remove();
      this.rows.delete(id);
    }
    const list = byId("moves");
    shown.forEach((move, place) => {
      const row = this.rows.get(move.id) ?? this.add(move.id);
      if (list.children[place] !== row.item) list.insertBefore(row.item, list.children[place] ?? null);
      if (this.store.changedMigrations.has(move.id)) this.fill(row, move);
    });
    byId("no-moves").hidden = shown.length > 0;
    this.drawPlot(newest);
  }

  private newest(): MigrationStatus[] {
    return [...this.store.migrations.values()].sort((a, b) => (a.started_at < b.started_at ? 1 : -1));
  }

  private add(id: string): Row {
    const row: Row = {
      item: make("li", "move-row"),
      title: make("p", "title"),
      what: make("p", "what"),
      progress: make("progress"),
      line: make("div", "timeline"),
      error: make("p", "error"),
      cancel: make("button", "cancel", "Cancel"),
    };
    row.item.dataset["move"] = id;
    row.cancel.type = "button";
    row.cancel.addEventListener("click", () => {
      const now = this.store.migrations.get(id);
      if (now) this.cancel(now);
    });
    row.line.setAttribute("role", "img");
    const head = make("div", "head");
    head.append(row.title, row.cancel);
    row.item.append(head, row.what, row.progress, row.line, row.error);
    this.rows.set(id, row);
    return row;
  }

  private fill(row: Row, move: MigrationStatus): void {
    const ended = ENDED.has(move.phase);
    const rehearsed = move.rehearsal && move.phase === "rolled-back" && !move.error;
    say(row.title, `${move.container}: ${move.source} → ${move.target}${move.rehearsal ? " (rehearsal)" : ""}`);
    row.item.dataset["phase"] = move.phase;
    row.item.classList.toggle("failed", ended && move.phase !== "done" && !rehearsed);
    say(row.what, ended ? endedWords(move) : openWords(move));
    row.progress.hidden = ended;
    if (!ended) showProgress(row.progress, move);
    say(row.error, move.error);
    row.error.hidden = !move.error;
    row.cancel.hidden = ended || FROZEN.has(move.phase) || move.phase === "running" || !this.may(move.source);
    row.cancel.setAttribute("aria-label", `Cancel the move of ${move.container}`);
    this.drawLine(row.line, move);
  }

  private drawLine(line: HTMLElement, move: MigrationStatus): void {
    const phases: PhaseTime[] = move.report?.phases ?? this.store.seen.get(move.id) ?? [];
    const end = move.report?.total_ms ?? Date.parse(move.at) - Date.parse(move.started_at);
    const parts = phases.map((phase, place) => {
      const until = phases[place + 1]?.at_ms ?? end;
      return { phase: phase.phase, ms: Math.max(0, until - phase.at_ms) };
    });
    const total = parts.reduce((sum, part) => sum + part.ms, 0) || 1;
    line.hidden = parts.length < 2;
    line.replaceChildren(
      ...parts.map((part) => {
        const bit = make("span", FROZEN.has(part.phase) ? "bit blackout" : "bit");
        bit.style.flexGrow = String(part.ms / total);
        bit.title = `${part.phase}: ${milliseconds(part.ms)}`;
        return bit;
      }),
    );
    const blackout = move.report?.blackout_ms;
    const spoken = parts.map((part) => `${part.phase} ${milliseconds(part.ms)}`).join(", ");
    line.setAttribute("aria-label", blackout == null ? spoken : `${spoken}; blackout ${milliseconds(blackout)}`);
  }

  private size(): { width: number; height: number } {
    return { width: Math.max(200, byId("plot").clientWidth), height: 140 };
  }

  private drawPlot(newest: MigrationStatus[]): void {
    const done = newest.filter((move) => move.report?.blackout_ms != null).reverse();
    const last = done.at(-1);
    const key = `${done.length} ${last?.id}`;
    if (done.length < 2 || key === this.plotted) return;
    this.plotted = key;
    byId("chart").hidden = false;
    const data: uPlot.AlignedData = [
      done.map((move) => Date.parse(move.started_at) / 1000),
      done.map((move) => move.report?.blackout_ms ?? 0),
    ];
    if (this.plot) {
      this.plot.setData(data);
      return;
    }
    const colour = getComputedStyle(document.documentElement).getPropertyValue("--blackout");
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    const grid = { stroke: getComputedStyle(document.documentElement).getPropertyValue("--line"), width: 1 };
    this.plot = new uPlot(
      {
        ...this.size(),
        padding: [8, 28, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: { y: { range: (_, __, most) => [0, most * 1.1 || 1] } },
        axes: [
          { stroke: ink, grid },
          { stroke: ink, grid, size: 55 },
        ],
        series: [{}, { stroke: colour, width: 1, points: { show: true, size: 7, fill: colour } }],
      },
      data,
      byId("plot"),
    );
  }
}

function openWords(move: MigrationStatus): string {
  const words = [move.phase];
  if (move.strategy) words.push(move.strategy);
  if (move.part) words.push(`sending ${called(move.part)}`);
  if (move.bytes_sent) {
    words.push(move.bytes_total ? `${bytes(move.bytes_sent)} of ${bytes(move.bytes_total)}` : bytes(move.bytes_sent));
  }
  if (move.rate) words.push(`${bytes(move.rate)}/s`);
  if (move.eta_s) words.push(`${milliseconds(move.eta_s * 1000)} left`);
  return words.join(" · ");
}

/** What is being sent, in a person's words; `root:0` is a first pass over the writable layer. */
function called(part: string): string {
  const [kind = "", ...rest] = part.split(":");
  if (kind === "volume") return `volume ${rest.slice(0, -1).join(":")}`;
  const words = new Map([
    ["root", "its writable layer"],
    ["bind", "a bind mount"],
    ["layers", "its image"],
    ["images", "its memory"],
    ["pages", "its memory"],
    ["log", "its log"],
    ["printed", "the last lines of its log"],
  ]);
  return words.get(kind) ?? part;
}

function endedWords(move: MigrationStatus): string {
  const words = [clock(move.at), move.phase === "done" ? "arrived" : move.rehearsal ? "rehearsed" : move.phase, move.strategy];
  const report = move.report;
  if (report) {
    if (report.blackout_ms != null) {
      const expected = report.predicted_blackout_ms == null ? "" : ` (expected ${milliseconds(report.predicted_blackout_ms)})`;
      words.push(`blackout ${milliseconds(report.blackout_ms)}${expected}`);
    }
    words.push(`${milliseconds(report.total_ms)} in all`, `${bytes(report.wire_bytes)} sent`);
  }
  return words.filter(Boolean).join(" · ");
}
