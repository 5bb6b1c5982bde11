// The hosts, each with its containers as cards. A card that has moved travels from where it was.

import { byId, bytes, make, say } from "./dom";
import type { ContainerStatus, HostStatus, MigrationStatus } from "./messages";
import { FROZEN, type Store } from "./store";

const TRAVEL_MS = 700;
/** Before these the copy at the target is no container of its own yet. */
const ARRIVED = new Set(["running", "done"]);

interface HostView {
  section: HTMLElement;
  state: HTMLElement;
  meter: HTMLMeterElement;
  load: HTMLElement;
  engine: HTMLElement;
  cards: HTMLElement;
}

interface Card {
  item: HTMLElement;
  name: HTMLElement;
  image: HTMLElement;
  state: HTMLElement;
  progress: HTMLProgressElement;
  move: HTMLButtonElement;
}

export interface Asks {
  migrate(container: ContainerStatus, from: HTMLElement): void;
}

export class Hosts {
  private readonly views = new Map<string, HostView>();
  private readonly cards = new Map<string, Card>();
  /** Where the card of a moving container was last seen, by migration. */
  private readonly left = new Map<string, DOMRect>();
  private readonly travelled = new Set<string>();
  private filter = "";

  constructor(
    private readonly store: Store,
    private readonly asks: Asks,
    private readonly may: (host: string) => boolean | undefined,
  ) {
    byId<HTMLInputElement>("find").addEventListener("input", (event) => {
      this.filter = (event.target as HTMLInputElement).value.trim().toLowerCase();
      for (const [host, of] of this.store.containers) for (const one of of.values()) this.show(host, one);
    });
  }

  draw(): void {
    const { store } = this;
    for (const host of store.changedHosts) this.drawHost(host);
    for (const id of store.changedMigrations) {
      const move = store.migrations.get(id);
      if (move) this.noteWhereItIs(move);
    }
    for (const [host, ids] of store.changedContainers) {
      if (!this.views.has(host)) this.drawHost(host);
      for (const id of ids) this.drawCard(host, id);
    }
    for (const host of store.changedContainers.keys()) this.drawLoad(host);
    for (const id of store.changedMigrations) {
      const move = store.migrations.get(id);
      if (move && ARRIVED.has(move.phase)) this.travel(move);
    }
    // a copy that shows up only after its move has ended
    for (const ids of store.changedContainers.values()) {
      if (ids.size > 50) continue;
      for (const id of this.left.keys()) {
        const move = store.migrations.get(id);
        if (move && ARRIVED.has(move.phase)) this.travel(move);
      }
    }
  }

  private noteWhereItIs(move: MigrationStatus): void {
    if (this.travelled.has(move.id) || move.phase === "done") return;
    const card = this.cards.get(`${move.source}/${move.container_id}`);
    if (card?.item.isConnected) this.left.set(move.id, card.item.getBoundingClientRect());
  }

  private travel(move: MigrationStatus): void {
    const from = this.left.get(move.id);
    if (!from || this.travelled.has(move.id)) return;
    for (const one of this.store.containers.get(move.target)?.values() ?? []) {
      if (one.name !== move.container || one.state !== "running") continue;
      const card = this.cards.get(`${move.target}/${one.id}`);
      if (!card) continue;
      this.travelled.add(move.id);
      this.left.delete(move.id);
      card.item.dataset["arrived"] = move.id;
      const to = card.item.getBoundingClientRect();
      if (matchMedia("(prefers-reduced-motion: reduce)").matches || !card.item.animate) return;
      card.item.animate(
        [
          { transform: `translate(${from.x - to.x}px, ${from.y - to.y}px)`, zIndex: "5" },
          { transform: "none", zIndex: "5" },
        ],
        { duration: TRAVEL_MS, easing: "ease-in-out" },
      );
      return;
    }
  }

  private drawHost(host: string): void {
    const view = this.views.get(host) ?? this.addHost(host);
    const status = this.store.hosts.get(host);
    view.section.classList.toggle("offline", status?.online === false);
    say(view.state, !status ? "" : !status.online ? "offline" : status.cordoned ? "online, takes no containers" : "online");
    say(view.engine, engineOf(status));
    const may = this.may(host);
    if (may !== undefined) view.section.dataset["may"] = may ? "command" : "look";
    const known = status !== undefined && status.memory_bytes > 0;
    view.meter.hidden = !known;
    if (known) {
      const used = status.memory_bytes - status.memory_free_bytes;
      view.meter.max = status.memory_bytes;
      view.meter.value = used;
      view.meter.title = `${bytes(used)} of ${bytes(status.memory_bytes)} memory in use`;
    }
    this.drawLoad(host);
  }

  private drawLoad(host: string): void {
    const view = this.views.get(host);
    if (!view) return;
    const status = this.store.hosts.get(host);
    const of = this.store.containers.get(host);
    const running = [...(of?.values() ?? [])].filter((one) => one.state === "running").length;
    const parts = [`${running} of ${of?.size ?? 0} containers running`];
    if (status?.memory_bytes) {
      parts.push(`${bytes(status.memory_bytes - status.memory_free_bytes)} of ${bytes(status.memory_bytes)} memory`);
    }
    if (status?.cpus) parts.push(`${status.cpus} CPUs`);
    if (status?.migrations) parts.push(`${status.migrations} moves`);
    say(view.load, parts.join(", "));
  }

  private addHost(host: string): HostView {
    const section = make("section", "host");
    section.dataset["host"] = host;
    const title = make("h2", "", host);
    title.id = `host-${host}`;
    section.setAttribute("aria-labelledby", title.id);
    const view: HostView = {
      section,
      state: make("span", "online"),
      meter: make("meter"),
      load: make("p", "load"),
      engine: make("p", "engine"),
      cards: make("ul", "cards"),
    };
    view.meter.setAttribute("aria-label", `memory in use on ${host}`);
    const head = make("div", "head");
    head.append(title, view.state);
    section.append(head, view.load, view.meter, view.engine, view.cards);
    this.views.set(host, view);
    const parent = byId("hosts");
    const after = [...this.views.keys()].sort().find((name) => name > host);
    parent.insertBefore(section, after ? (this.views.get(after)?.section ?? null) : null);
    return view;
  }

  private drawCard(host: string, id: string): void {
    const key = `${host}/${id}`;
    const status = this.store.containers.get(host)?.get(id);
    const found = this.cards.get(key);
    if (!status) {
      found?.item.remove();
      this.cards.delete(key);
      return;
    }
    const card = found ?? this.addCard(host, id);
    say(card.name, status.name);
    say(card.image, status.image);
    const move = this.store.moveOf(status);
    const coming = move !== undefined && move.target === host;
    say(card.state, move ? words(move, coming) : status.health ? `${status.state}, ${status.health}` : status.state);
    card.item.className = ["card", `is-${known(status.state)}`, move ? "moving" : "", coming ? "coming" : ""].join(" ").trim();
    card.item.classList.toggle("frozen", move !== undefined && FROZEN.has(move.phase));
    card.progress.hidden = !move || coming;
    if (move && !coming) {
      if (move.bytes_total) {
        card.progress.max = move.bytes_total;
        card.progress.value = Math.min(move.bytes_sent, move.bytes_total);
      } else card.progress.removeAttribute("value");
    }
    card.move.hidden = status.state !== "running" || move !== undefined || !this.may(host);
    card.move.setAttribute("aria-label", `Move ${status.name} from ${host}`);
    this.show(host, status);
  }

  private addCard(host: string, id: string): Card {
    const card: Card = {
      item: make("li"),
      name: make("strong"),
      image: make("span", "image"),
      state: make("span", "state"),
      progress: make("progress"),
      move: make("button", "move", "Move…"),
    };
    card.item.dataset["id"] = id;
    card.move.type = "button";
    card.move.addEventListener("click", () => {
      const now = this.store.containers.get(host)?.get(id);
      if (now) this.asks.migrate(now, card.move);
    });
    card.progress.hidden = true;
    card.item.append(card.name, card.image, card.state, card.progress, card.move);
    this.cards.set(`${host}/${id}`, card);
    this.views.get(host)?.cards.append(card.item);
    return card;
  }

  private show(host: string, one: ContainerStatus): void {
    const card = this.cards.get(`${host}/${one.id}`);
    if (!card) return;
    const hit = !this.filter || one.name.toLowerCase().includes(this.filter) || one.image.toLowerCase().includes(this.filter);
    card.item.hidden = !hit;
  }
}

function engineOf(status: HostStatus | undefined): string {
  if (!status?.online) return "";
  return status.engine ? `Docker ${status.engine.docker}, CRIU ${status.engine.criu}` : "Docker does not answer";
}

function words(move: MigrationStatus, coming: boolean): string {
  return coming ? `coming from ${move.source}: ${move.phase}` : `to ${move.target}: ${move.phase}`;
}

/** Docker's words for a state, of which classes are made; any other word makes none. */
function known(state: string): string {
  const states = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
  return states.includes(state) ? state : "other";
}
