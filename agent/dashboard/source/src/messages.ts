// What agents publish, as far as it is shown here, and reading it: what is not of that shape is left out, never trusted.

export const ROOT = "transship/v1";

export interface HostStatus {
  host: string;
  online: boolean;
  at: string | null;
  agent_version: string;
  engine: { docker: string; criu: string } | null;
  cpus: number;
  memory_bytes: number;
  memory_free_bytes: number;
  /** From 0 to 1; null until it has been measured. */
  cpu_busy: number | null;
  migrations: number;
  migrations_limit: number;
  cordoned: boolean;
}

/** Whether a container could be moved to a host, as was found when something changed last. */
export interface PeerOutlook {
  verdict: string;
  /** By strategy, as predicted. */
  blackout_ms: Record<string, number>;
  /** Codes. */
  reasons: string[];
}

export interface Outlook {
  /** Codes of what stands against it on its own host. */
  reasons: string[];
  peers: Record<string, PeerOutlook>;
}

export interface ContainerStatus {
  host: string;
  id: string;
  name: string;
  image: string;
  state: string;
  health: string;
  /** Of Docker Compose, where it is of one. */
  project: string;
  /** Where it returns to: an evacuation of that host has brought it here. */
  home: string;
  /** Null until that is known. */
  outlook: Outlook | null;
}

export interface PhaseTime {
  phase: string;
  at_ms: number;
}

export interface Report {
  phases: PhaseTime[];
  blackout_ms: number | null;
  predicted_blackout_ms: number | null;
  total_ms: number;
  wire_bytes: number;
}

export interface MigrationStatus {
  id: string;
  container: string;
  container_id: string;
  source: string;
  target: string;
  phase: string;
  sequence: number;
  started_at: string;
  at: string;
  /** It is taken back at the end, as was wished. */
  rehearsal: boolean;
  strategy: string;
  part: string;
  bytes_sent: number;
  bytes_total: number | null;
  rate: number;
  eta_s: number | null;
  error: string;
  report: Report | null;
}

/** One container of an evacuation. */
export interface Evacuee {
  container: string;
  container_id: string;
  state: string;
  to: string;
  why: string;
  memory_bytes: number;
  predicted_s: number | null;
  migration: string;
  error: string;
  blackout_ms: number | null;
  /** Sentences: why no other host. */
  not_there: string[];
}

export interface Evacuation {
  id: string;
  kind: string;
  /** That is left. */
  host: string;
  state: string;
  sequence: number;
  started_at: string;
  at: string;
  deadline: string;
  parallel: number;
  error: string;
  containers: Evacuee[];
}

export interface AgentEvent {
  host: string;
  at: string;
  kind: string;
  container: string;
}

export interface Reply {
  kind: string;
  migration: string | null;
  error: { code: string; message: string; hint: string } | null;
  evacuation: Evacuation | null;
}

export type Message =
  | { is: "host"; host: string; status: HostStatus }
  | { is: "container"; host: string; id: string; status: ContainerStatus | null }
  | { is: "migration"; id: string; status: MigrationStatus | null }
  | { is: "evacuation"; host: string; status: Evacuation | null }
  | { is: "event"; event: AgentEvent };

type Json = Record<string, unknown>;

const text = (of: Json, key: string): string => (typeof of[key] === "string" ? (of[key] as string) : "");
const number = (of: Json, key: string): number => {
  const found = of[key];
  return typeof found === "number" && Number.isFinite(found) ? found : 0;
};
const numberOrNull = (of: Json, key: string): number | null => (of[key] == null ? null : number(of, key));
const table = (of: unknown): Json | null =>
  typeof of === "object" && of !== null && !Array.isArray(of) ? (of as Json) : null;
const texts = (of: unknown): string[] =>
  Array.isArray(of) ? of.filter((each): each is string => typeof each === "string") : [];
const tables = (of: unknown): Json[] =>
  Array.isArray(of) ? of.map(table).filter((each): each is Json => each !== null) : [];

export function parse(payload: Uint8Array): Json | null {
  try {
    return table(JSON.parse(new TextDecoder().decode(payload)));
  } catch {
    return null;
  }
}

/** A message by its topic, which says who speaks: a broker's access list holds a host to its own, a payload nobody. */
export function read(topic: string, payload: Uint8Array): Message | null {
  const level = topic.slice(ROOT.length + 1).split("/");
  const gone = payload.length === 0;
  const json = gone ? {} : parse(payload);
  if (json === null) return null;
  const [room, first = "", kind, second = ""] = level;
  if (room === "hosts" && kind === "status" && level.length === 3 && !gone) {
    return { is: "host", host: first, status: hostStatus(first, json) };
  }
  if (room === "hosts" && kind === "containers" && level.length === 4) {
    return { is: "container", host: first, id: second, status: gone ? null : containerStatus(first, second, json) };
  }
  if (room === "hosts" && kind === "evacuation" && level.length === 3) {
    return { is: "evacuation", host: first, status: gone ? null : evacuationOf(first, json) };
  }
  if (room === "hosts" && kind === "events" && !gone) {
    return {
      is: "event",
      event: { host: first, at: text(json, "at"), kind: text(json, "kind"), container: text(json, "container") },
    };
  }
  if (room === "migrations" && level[3] === "status" && level.length === 4) {
    return { is: "migration", id: first, status: gone ? null : migrationStatus(first, level[2] ?? "", json) };
  }
  return null;
}

function hostStatus(host: string, json: Json): HostStatus {
  const engine = table(json["engine"]);
  return {
    host,
    online: json["online"] === true,
    at: text(json, "at") || null,
    agent_version: text(json, "agent_version"),
    engine: engine && { docker: text(engine, "docker"), criu: text(engine, "criu") },
    cpus: number(json, "cpus"),
    memory_bytes: number(json, "memory_bytes"),
    memory_free_bytes: number(json, "memory_free_bytes"),
    cpu_busy: numberOrNull(json, "cpu_busy"),
    migrations: number(json, "migrations"),
    migrations_limit: number(json, "migrations_limit"),
    cordoned: json["cordoned"] === true,
  };
}

function containerStatus(host: string, id: string, json: Json): ContainerStatus {
  return {
    host,
    id,
    name: text(json, "name"),
    image: text(json, "image"),
    state: text(json, "state"),
    health: text(json, "health"),
    project: text(table(json["labels"]) ?? {}, "com.docker.compose.project"),
    home: text(json, "home"),
    outlook: outlookOf(table(json["outlook"])),
  };
}

function outlookOf(json: Json | null): Outlook | null {
  if (json === null) return null;
  const peers = Object.entries(table(json["peers"]) ?? {}).map(([host, said]): [string, PeerOutlook] => {
    const peer = table(said) ?? {};
    const spans = Object.entries(table(peer["blackout_ms"]) ?? {}).filter((one): one is [string, number] => typeof one[1] === "number");
    return [host, { verdict: text(peer, "verdict"), blackout_ms: Object.fromEntries(spans), reasons: texts(peer["reasons"]) }];
  });
  return { reasons: texts(json["reasons"]), peers: Object.fromEntries(peers) };
}

function migrationStatus(id: string, source: string, json: Json): MigrationStatus {
  const error = table(json["error"]);
  const report = table(json["report"]);
  return {
    id,
    source,
    container: text(json, "container"),
    container_id: text(json, "container_id"),
    target: text(json, "target"),
    phase: text(json, "phase"),
    sequence: number(json, "sequence"),
    started_at: text(json, "started_at"),
    at: text(json, "at"),
    rehearsal: json["rehearsal"] === true,
    strategy: text(json, "strategy"),
    part: text(json, "part"),
    bytes_sent: number(json, "bytes_sent"),
    bytes_total: numberOrNull(json, "bytes_total"),
    rate: number(json, "rate"),
    eta_s: numberOrNull(json, "eta_s"),
    error: error ? text(error, "message") : "",
    report: report && reportOf(report),
  };
}

function reportOf(json: Json): Report {
  return {
    phases: tables(json["phases"]).map((each) => ({ phase: text(each, "phase"), at_ms: number(each, "at_ms") })),
    blackout_ms: numberOrNull(json, "blackout_ms"),
    predicted_blackout_ms: numberOrNull(json, "predicted_blackout_ms"),
    total_ms: number(json, "total_ms"),
    wire_bytes: number(json, "wire_bytes"),
  };
}

function evacuationOf(host: string, json: Json): Evacuation {
  return {
    host,
    id: text(json, "id"),
    kind: text(json, "kind"),
    state: text(json, "state"),
    sequence: number(json, "sequence"),
    started_at: text(json, "started_at"),
    at: text(json, "at"),
    deadline: text(json, "deadline"),
    parallel: number(json, "parallel"),
    error: text(table(json["error"]) ?? {}, "message"),
    containers: tables(json["containers"]).map(evacueeOf),
  };
}

function evacueeOf(json: Json): Evacuee {
  return {
    container: text(json, "container"),
    container_id: text(json, "container_id"),
    state: text(json, "state"),
    to: text(json, "to"),
    why: text(json, "why"),
    memory_bytes: number(json, "memory_bytes"),
    predicted_s: numberOrNull(json, "predicted_s"),
    migration: text(json, "migration"),
    error: text(table(json["error"]) ?? {}, "message"),
    blackout_ms: numberOrNull(json, "blackout_ms"),
    not_there: tables(json["not_there"]).flatMap((no) =>
      tables(no["reasons"]).map((reason) => `not on ${text(no, "host")}: ${text(reason, "message")}`),
    ),
  };
}

export function replyOf(json: Json): Reply {
  const error = table(json["error"]);
  const evacuation = table(json["evacuation"]);
  return {
    kind: text(json, "kind"),
    migration: text(json, "migration") || null,
    error: error && { code: text(error, "code"), message: text(error, "message"), hint: text(error, "hint") },
    evacuation: evacuation && evacuationOf(text(evacuation, "host"), evacuation),
  };
}
