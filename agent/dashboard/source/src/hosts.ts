// The hosts, each with its load, what may be done with it, and its containers. A card that has moved travels.

import { Deck, type Wish } from "./deck";
import { byId, bytes, count, make, say } from "./dom";
import type { ContainerStatus, HostStatus, MigrationStatus } from "./messages";
import type { Store } from "./store";

const TRAVEL_MS = 700;
/** Before these the copy at the target is no container of its own yet. */
const ARRIVED = new Set(["running", "done"]);
/** After so many new cards at once nobody follows one of them with the eyes. */
const FOLLOWED = 50;

interface HostView {
  section: HTMLElement;
  state: HTMLElement;
  load: HTMLElement;
  cpu: Meter;
  memory: Meter;
  engine: HTMLElement;
  actions: HTMLElement;
  evacuate: HTMLButtonElement;
  cordon: HTMLButtonElement;
  back: HTMLButtonElement;
  deck: Deck;
}

interface Meter {
  row: HTMLElement;
  meter: HTMLMeterElement;
  text: HTMLElement;
}

export interface Asks {
  migrate(container: ContainerStatus, from: HTMLElement): void;
  evacuate(host: string, from: HTMLElement): void;
  bringBack(host: string, from: HTMLElement): void;
  cordon(host: string, so: boolean): void;
}

export class Hosts {
  private readonly views = new Map<string, HostView>();
  /** Where the card of a moving container was last seen, by migration. */
  private readonly left = new Map<string, DOMRect>();
  private readonly travelled = new Set<string>();
  private wish: Wish = { find: "", state: "", group: "" };

  constructor(
    private readonly store: Store,
    private readonly asks: Asks,
    private readonly may: (host: string) => boolean | undefined,
  ) {
    const read = (id: string): string => byId<HTMLInputElement | HTMLSelectElement>(id).value.trim();
    const again = (): void => {
      this.wish = { find: read("find").toLowerCase(), state: read("show"), group: read("group") };
      for (const [host, of] of this.store.containers) {
        for (const id of of.keys()) this.drawCard(host, id);
      }
      this.settle(this.views.keys());
    };
    for (const id of ["find", "show", "group"]) byId(id).addEventListener("input", again);
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
    this.settle(store.changedContainers.keys());
    for (const id of store.changedMigrations) this.travelIfArrived(id);
    // a copy that shows up only after its move has ended
    for (const ids of store.changedContainers.values()) {
      if (ids.size <= FOLLOWED) for (const id of this.left.keys()) this.travelIfArrived(id);
    }
  }

  private settle(hosts: Iterable<string>): void {
    for (const host of hosts) {
      const view = this.views.get(host);
      if (!view) continue;
      const shown = view.deck.settle();
      view.section.dataset["shown"] = String(shown);
      const sought = this.wish.find !== "" && !host.toLowerCase().includes(this.wish.find);
      view.section.hidden = sought && shown === 0;
    }
    const views = [...this.views.values()];
    const shown = views.reduce((sum, view) => sum + Number(view.section.dataset["shown"] ?? 0), 0);
    const all = [...this.store.containers.values()].reduce((sum, of) => sum + of.size, 0);
    const narrowed = this.wish.find !== "" || this.wish.state !== "";
    say(byId("found"), narrowed ? `${shown} of ${count(all, "container")}` : `${count(views.length, "host")}, ${count(all, "container")}`);
  }

  private noteWhereItIs(move: MigrationStatus): void {
    if (this.travelled.has(move.id) || move.phase === "done") return;
    const card = this.views.get(move.source)?.deck.card(move.container_id);
    if (card?.item.isConnected && !card.item.hidden) this.left.set(move.id, card.item.getBoundingClientRect());
  }

  private travelIfArrived(id: string): void {
    const move = this.store.migrations.get(id);
    if (move && ARRIVED.has(move.phase)) this.travel(move);
  }

  private travel(move: MigrationStatus): void {
    const from = this.left.get(move.id);
    if (!from || this.travelled.has(move.id)) return;
    for (const one of this.store.containers.get(move.target)?.values() ?? []) {
      if (one.name !== move.container || one.state !== "running") continue;
      const card = this.views.get(move.target)?.deck.card(one.id);
      if (!card) continue;
      this.travelled.add(move.id);
      this.left.delete(move.id);
      card.item.dataset["arrived"] = move.id;
      const to = card.item.getBoundingClientRect();
      if (matchMedia("(prefers-reduced-motion: reduce)").matches || !card.item.animate || card.item.hidden) return;
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
    view.section.classList.toggle("cordoned", status?.cordoned === true);
    say(view.state, !status ? "" : !status.online ? "offline" : status.cordoned ? "online, takes no containers" : "online");
    say(view.engine, engineOf(status));
    const may = this.may(host);
    if (may !== undefined) view.section.dataset["may"] = may ? "command" : "look";
    const used = status ? status.memory_bytes - status.memory_free_bytes : 0;
    const all = status?.memory_bytes ?? 0;
    show(view.memory, all > 0, used / (all || 1), `${bytes(used)} of ${bytes(all)}`);
    const busy = status?.cpu_busy ?? null;
    show(view.cpu, busy !== null, busy ?? 0, `${Math.round((busy ?? 0) * 100)} % of ${status?.cpus ?? 0}`);
    this.drawLoad(host);
  }

  private drawLoad(host: string): void {
    const view = this.views.get(host);
    if (!view) return;
    const status = this.store.hosts.get(host);
    const of = this.store.containers.get(host);
    const running = [...(of?.values() ?? [])].filter((one) => one.state === "running").length;
    const parts = [`${running} of ${count(of?.size ?? 0, "container")} running`];
    if (status?.migrations) parts.push(`${count(status.migrations, "move")} from here`);
    say(view.load, parts.join(", "));
    const may = this.may(host) === true && status?.online === true;
    const leaving = this.store.evacuations.get(host)?.state === "running";
    const away = this.store.away(host).length;
    view.actions.hidden = !may;
    view.evacuate.hidden = running === 0 || leaving;
    view.back.hidden = away === 0 || status?.cordoned === true;
    say(view.back, `Bring back ${away}…`);
    view.cordon.hidden = leaving;
    say(view.cordon, status?.cordoned ? "Uncordon" : "Cordon");
    view.cordon.setAttribute("aria-label", `${status?.cordoned ? "Uncordon" : "Cordon"} ${host}`);
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
      load: make("p", "load"),
      cpu: meter("CPU", `processors busy on ${host}`),
      memory: meter("Memory", `memory in use on ${host}`),
      engine: make("p", "engine"),
      actions: make("div", "actions"),
      evacuate: button("Evacuate…", `Evacuate ${host}`),
      cordon: button("Cordon"),
      back: button("Bring back…"),
      deck: new Deck(host),
    };
    view.evacuate.addEventListener("click", () => this.asks.evacuate(host, view.evacuate));
    view.back.addEventListener("click", () => this.asks.bringBack(host, view.back));
    view.cordon.addEventListener("click", () => this.asks.cordon(host, !this.store.hosts.get(host)?.cordoned));
    view.actions.hidden = true;
    view.actions.append(view.evacuate, view.cordon, view.back);
    const head = make("div", "head");
    head.append(title, view.state);
    section.append(head, view.load, view.cpu.row, view.memory.row, view.engine, view.actions, view.deck.list);
    this.views.set(host, view);
    const after = [...this.views.keys()].sort().find((name) => name > host);
    byId("hosts").insertBefore(section, after ? (this.views.get(after)?.section ?? null) : null);
    return view;
  }

  private drawCard(host: string, id: string): void {
    const deck = this.views.get(host)?.deck;
    const status = this.store.containers.get(host)?.get(id);
    if (!deck) return;
    if (!status) {
      deck.remove(id);
      return;
    }
    const card = deck.fill(status, this.store.moveOf(status), this.may(host) === true, this.wish, () => {
      const now = this.store.containers.get(host)?.get(id);
      if (now) this.asks.migrate(now, card.move);
    });
  }
}

function button(text: string, label = ""): HTMLButtonElement {
  const made = make("button", "", text);
  made.type = "button";
  if (label) made.setAttribute("aria-label", label);
  return made;
}

function meter(name: string, label: string): Meter {
  const made: Meter = { row: make("p", "meter"), meter: make("meter"), text: make("span") };
  made.meter.setAttribute("aria-label", label);
  made.meter.high = 0.85;
  made.meter.optimum = 0;
  made.row.append(make("span", "", name), made.meter, made.text);
  return made;
}

function show(one: Meter, known: boolean, part: number, text: string): void {
  one.row.hidden = !known;
  one.meter.value = part;
  say(one.text, text);
}

function engineOf(status: HostStatus | undefined): string {
  if (!status?.online) return "";
  return status.engine ? `Docker ${status.engine.docker}, CRIU ${status.engine.criu}` : "Docker does not answer";
}
