// The cards of one host: in order, under headings if they are grouped, and one stop of the Tab key for all of them.

import { hide, label, make, say } from "./dom";
import type { ContainerStatus, MigrationStatus } from "./messages";
import { shortly, stuck } from "./outlook";
import { FROZEN } from "./store";

/** With more of them each card is one line. */
const COMPACT = 24;

export interface Wish {
  find: string;
  state: string;
  group: string;
}

export interface Card {
  item: HTMLElement;
  key: string;
  group: string;
  name: HTMLElement;
  image: HTMLElement;
  state: HTMLElement;
  outlook: HTMLElement;
  progress: HTMLProgressElement;
  move: HTMLButtonElement;
}

/** A card, or a heading. */
interface Place {
  key: string;
  item: HTMLElement;
  card?: Card;
}

const BETWEEN = "\u0001";

export class Deck {
  readonly list = make("ul", "cards");
  private readonly cards = new Map<string, Card>();
  private readonly places: Place[] = [];
  private readonly heads = new Map<string, HTMLElement>();

  constructor(private readonly host: string) {
    this.list.setAttribute("aria-label", `Containers of ${host}; the arrow keys go from one to the next`);
    this.list.addEventListener("keydown", (event) => this.walk(event));
    this.list.addEventListener("focusin", (event) => this.stopAt(event.target as HTMLElement));
  }

  card(id: string): Card | undefined {
    return this.cards.get(id);
  }

  remove(id: string): void {
    const card = this.cards.get(id);
    if (!card) return;
    this.cards.delete(id);
    this.takeOut(card.key);
    card.item.remove();
    this.dropEmptyHeads();
  }

  /** What is shown of a container; where its card stands follows from that. */
  fill(status: ContainerStatus, move: MigrationStatus | undefined, may: boolean, wish: Wish, clicked: () => void): Card {
    const card = this.cards.get(status.id) ?? this.add(status.id, clicked);
    say(card.name, status.name);
    say(card.image, status.image);
    const coming = move !== undefined && move.target === this.host;
    const state = status.health ? `${status.state}, ${status.health}` : status.state;
    say(card.state, move ? words(move, coming) : status.home ? `${state}, at home on ${status.home}` : state);
    const outlook = status.state === "running" && !move ? shortly(status.outlook) : "";
    say(card.outlook, outlook);
    hide(card.outlook, !outlook);
    const looks = ["card", `is-${known(status.state)}`];
    if (move) looks.push("moving");
    else if (state === "running" && !status.home) looks.push("plain");
    if (coming) looks.push("coming");
    if (outlook && stuck(status.outlook)) looks.push("stuck");
    if (move && FROZEN.has(move.phase)) looks.push("frozen");
    if (card.item.className !== looks.join(" ")) card.item.className = looks.join(" ");
    hide(card.progress, !move || coming);
    if (move && !coming) showProgress(card.progress, move);
    hide(card.move, status.state !== "running" || move !== undefined || !may);
    label(card.move, `Move ${status.name} from ${this.host}`);
    this.put(card, status, wish);
    hide(card.item, !fits(status, this.host, move !== undefined, wish));
    return card;
  }

  /** Numbers and the Tab key's stop, once a frame; how many are shown. */
  settle(): number {
    const shown = new Map<string, number>();
    let all = 0;
    let stop: HTMLButtonElement | undefined;
    let first: HTMLButtonElement | undefined;
    for (const { card } of this.places) {
      if (!card || card.item.hidden) continue;
      all += 1;
      shown.set(card.group, (shown.get(card.group) ?? 0) + 1);
      if (card.move.hidden) continue;
      first ??= card.move;
      if (card.move.tabIndex === 0) stop ??= card.move;
    }
    if (!stop && first) this.stopAt(first);
    for (const [group, head] of this.heads) {
      head.hidden = !shown.get(group);
      say(head, `${group} (${shown.get(group) ?? 0})`);
    }
    this.list.classList.toggle("compact", this.cards.size > COMPACT);
    return all;
  }

  private add(id: string, clicked: () => void): Card {
    const card: Card = {
      item: make("li"),
      key: "",
      group: "",
      name: make("strong"),
      image: make("span", "image"),
      state: make("span", "state"),
      outlook: make("span", "outlook"),
      progress: make("progress"),
      move: make("button", "move", "Move…"),
    };
    card.item.dataset["id"] = id;
    card.move.type = "button";
    card.move.tabIndex = -1;
    card.move.addEventListener("click", clicked);
    card.progress.hidden = true;
    card.item.append(card.name, card.image, card.state, card.outlook, card.progress, card.move);
    this.cards.set(id, card);
    return card;
  }

  private put(card: Card, status: ContainerStatus, wish: Wish): void {
    const group = groupOf(status, wish.group);
    const key = [group, status.name, status.id].join(BETWEEN);
    if (key === card.key) return;
    if (card.key) this.takeOut(card.key);
    card.group = group;
    card.key = key;
    if (group && !this.heads.has(group)) {
      const head = make("li", "group");
      this.heads.set(group, head);
      this.bringIn({ key: group, item: head });
    }
    this.bringIn({ key, item: card.item, card });
    this.dropEmptyHeads();
  }

  /** Headings that nothing stands under any more. */
  private dropEmptyHeads(): void {
    for (const [group, head] of [...this.heads]) {
      if (this.places[this.find(group) + 1]?.key.startsWith(group + BETWEEN)) continue;
      head.remove();
      this.heads.delete(group);
      this.takeOut(group);
    }
  }

  /** Where the key stands, or would. */
  private find(key: string): number {
    let low = 0;
    let high = this.places.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if ((this.places[middle] as Place).key < key) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  private bringIn(place: Place): void {
    const at = this.find(place.key);
    const focused = place.item.contains(document.activeElement) ? (document.activeElement as HTMLElement) : null;
    this.list.insertBefore(place.item, this.places[at]?.item ?? null);
    this.places.splice(at, 0, place);
    focused?.focus();
  }

  private takeOut(key: string): void {
    const at = this.find(key);
    if (this.places[at]?.key === key) this.places.splice(at, 1);
  }

  private stopAt(button: HTMLElement): void {
    if (!button.classList.contains("move")) return;
    for (const card of this.cards.values()) card.move.tabIndex = card.move === button ? 0 : -1;
  }

  private walk(event: KeyboardEvent): void {
    const steps: Record<string, number> = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
    const step = steps[event.key];
    if (step === undefined && event.key !== "Home" && event.key !== "End") return;
    const cards = this.places.map((place) => place.card).filter((card) => card && !card.item.hidden && !card.move.hidden);
    const buttons: HTMLElement[] = cards.map((card) => (card as Card).move);
    const at = buttons.indexOf(document.activeElement as HTMLElement);
    const to = event.key === "Home" ? 0 : event.key === "End" ? buttons.length - 1 : at + (step ?? 0);
    event.preventDefault();
    buttons[Math.max(0, Math.min(buttons.length - 1, to))]?.focus();
  }
}

export function showProgress(progress: HTMLProgressElement, move: MigrationStatus): void {
  label(progress, `bytes of ${move.container} sent`);
  if (move.bytes_total) {
    progress.max = move.bytes_total;
    progress.value = Math.min(move.bytes_sent, move.bytes_total);
  } else progress.removeAttribute("value");
}

function fits(one: ContainerStatus, host: string, moving: boolean, wish: Wish): boolean {
  const state = wish.state === "moving" ? moving : wish.state === "running" ? one.state === "running" : one.state !== "running";
  if (wish.state && !state) return false;
  return !wish.find || [one.name, one.image, one.project, host].some((text) => text.toLowerCase().includes(wish.find));
}

function groupOf(one: ContainerStatus, by: string): string {
  if (by === "project") return one.project || "no project";
  if (by === "image") return one.image;
  return by === "state" ? one.state : "";
}

function words(move: MigrationStatus, coming: boolean): string {
  return coming ? `coming from ${move.source}: ${move.phase}` : `to ${move.target}: ${move.phase}`;
}

/** Docker's words for a state, of which classes are made; any other word makes none. */
function known(state: string): string {
  const states = ["created", "running", "paused", "restarting", "removing", "exited", "dead"];
  return states.includes(state) ? state : "other";
}
