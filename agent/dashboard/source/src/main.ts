// The page put together: one store, one connection, and a drawing of what has changed at most once a frame.

import "uplot/dist/uPlot.min.css";
import "./style.css";
import { ask } from "./ask";
import { type Access, Broker, NotAllowed } from "./broker";
import { byId, count, say } from "./dom";
import { Evacuations } from "./evacuations";
import { drawEvents } from "./events";
import { Hosts } from "./hosts";
import { LeaveDialog, type Leaving } from "./leave";
import type { ContainerStatus, Evacuation, MigrationStatus, Reply } from "./messages";
import { Moves } from "./moves";
import { Store } from "./store";

const store = new Store();
const mayCommand = new Map<string, boolean>();
const asking = new Set<string>();
const may = (host: string): boolean | undefined => mayCommand.get(host);
let broker: Broker | undefined;

const hosts = new Hosts(
  store,
  {
    migrate: (one, from) => void migrate(one, from),
    evacuate,
    bringBack,
    cordon: (host, cordoned) => void send(host, { kind: "cordon", cordoned }, `${cordoned ? "Cordoning" : "Uncordoning"} ${host}`),
  },
  may,
);
const moves = new Moves(store, (move) => void cancel(move), may);
const evacuations = new Evacuations(store, (one) => void cancelEvacuation(one), may);

let waiting = false;
function redraw(): void {
  if (waiting) return;
  waiting = true;
  const frame = (): void => {
    waiting = false;
    hosts.draw();
    moves.draw();
    evacuations.draw();
    drawEvents(store);
    store.drawn();
  };
  // a page in the background gets no frames, and should be right when it is looked at
  if (document.hidden) setTimeout(frame, 500);
  else requestAnimationFrame(frame);
}

function tell(text: string): void {
  byId("said").textContent = text;
}

async function send(host: string, what: Record<string, unknown>, doing: string): Promise<void> {
  tell(`${doing}…`);
  const heard = (reply: Reply): void => {
    const left = reply.evacuation?.containers.filter((one) => one.state === "left").length ?? 0;
    if (reply.kind === "accepted") tell(`${doing}: accepted`);
    else if (reply.kind === "finished") tell(`${doing}: ${left ? `${count(left, "container")} left behind` : "done"}`);
    else tell(`${doing}: ${[reply.error?.message, reply.error?.hint].filter(Boolean).join(". ") || reply.kind}`);
  };
  try {
    await broker?.command(host, what, heard);
  } catch (error) {
    tell(`${doing}: ${error instanceof Error ? error.message : String(error)}`);
    if (error instanceof NotAllowed) allowed(host, false);
  }
}

async function migrate(one: ContainerStatus, from: HTMLElement): Promise<void> {
  const choice = await ask(one, store, from);
  if (!choice) return;
  const strategy = { strategy: choice.strategy, allow_postcopy: choice.strategy === "postcopy" };
  await send(one.host, { kind: "migrate", container: one.id, to: choice.to, ...strategy }, `Moving ${one.name} to ${choice.to}`);
}

async function cancel(move: MigrationStatus): Promise<void> {
  await send(move.source, { kind: "cancel", migration: move.id }, `Cancelling the move of ${move.container}`);
}

function others(host: string): string[] {
  const found = [...store.hosts.values()].filter((one) => one.online && one.host !== host && !one.cordoned);
  return found.map((one) => one.host).sort();
}

function leave(leaving: Leaving, doing: string, from: HTMLElement): void {
  const ask = async (host: string, what: Record<string, unknown>, heard: (reply: Reply) => void): Promise<void> => {
    await broker?.command(host, what, heard);
  };
  new LeaveDialog(leaving, ask, (host, what) => void send(host, what, doing)).open(from);
}

function evacuate(host: string, from: HTMLElement): void {
  const limit = store.hosts.get(host)?.migrations_limit ?? 0;
  leave({ kind: "evacuate", host, asked: [host], targets: others(host), limit }, `Evacuating ${host}`, from);
}

function bringBack(host: string, from: HTMLElement): void {
  const asked = [...new Set(store.away(host).map((one) => one.host))].sort();
  leave({ kind: "return", host, asked, targets: [], limit: 0 }, `Bringing containers back to ${host}`, from);
}

async function cancelEvacuation(one: Evacuation): Promise<void> {
  await send(one.host, { kind: "cancel-evacuation", evacuation: one.id }, `Cancelling the evacuation of ${one.host}`);
}

function allowed(host: string, so: boolean): void {
  mayCommand.set(host, so);
  store.changedHosts.add(host);
  store.changedContainers.set(host, new Set(store.containers.get(host)?.keys()));
  for (const move of store.migrations.values()) if (move.source === host) store.changedMigrations.add(move.id);
  redraw();
}

async function probe(host: string): Promise<void> {
  if (mayCommand.has(host) || asking.has(host) || !broker) return;
  asking.add(host);
  try {
    allowed(host, await broker.may(host));
  } catch {
    // the connection broke: asked again with the host's next word
  } finally {
    asking.delete(host);
  }
}

function connect(access: Access): void {
  say(byId("state"), `connecting to ${access.url}`);
  broker = new Broker(access, {
    connected() {
      byId("login").hidden = true;
      byId("main").hidden = false;
      byId("login-error").textContent = "";
      store.forgetAll(); // all that is retained comes again
      mayCommand.clear();
      redraw();
    },
    listens() {
      say(byId("state"), `connected as ${access.user || "nobody"}`);
      byId("state").className = "up";
    },
    lost(why) {
      say(byId("state"), `the broker is away${why ? `: ${why}` : ""}`);
      byId("state").className = "down";
    },
    refused(why) {
      say(byId("state"), "");
      byId("main").hidden = true;
      byId("login").hidden = false;
      byId("login-error").textContent = why;
    },
    message(message) {
      store.take(message);
      if (message.is === "host" && message.status.online) void probe(message.host);
      redraw();
    },
  });
}

async function defaultUrl(): Promise<string> {
  try {
    const answer = await fetch("broker.json");
    const said: unknown = await answer.json();
    const url = (said as { url?: unknown }).url;
    if (typeof url === "string" && url) return url;
  } catch {
    // an agent that says nothing: a guess, to be corrected by hand
  }
  return `${location.protocol === "https:" ? "wss" : "ws"}://${location.hostname}:9001`;
}

async function start(): Promise<void> {
  // what stands behind # is not sent to anybody; a password does not stay in the address bar
  const said = new URLSearchParams(location.hash.slice(1));
  if (said.size > 0) history.replaceState(null, "", location.pathname + location.search);
  const form = byId<HTMLFormElement>("login");
  const field = (name: string): HTMLInputElement => form.elements.namedItem(name) as HTMLInputElement;
  field("url").value = said.get("url") ?? (await defaultUrl());
  field("user").value = said.get("user") ?? "";
  field("password").value = said.get("password") ?? "";
  const access = (): Access => ({ url: field("url").value, user: field("user").value, password: field("password").value });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    connect(access());
  });
  if (said.has("user")) connect(access());
  else form.hidden = false;
}

void start();
