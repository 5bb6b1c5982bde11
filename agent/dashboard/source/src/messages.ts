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
  running: number;
  migrations: number;
  cordoned: boolean;
}

export interface ContainerStatus {
  host: string;
  id: string;
  name: string;
  image: string;
  state: string;
  health: string;
}

export interface PhaseTime {
  phase: string;
  at_ms: number;
}

export interface Report {
  phases: PhaseTime[];
  blackout_ms: number | null;
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
  strategy: string;
  part: string;
  bytes_sent: number;
  bytes_total: number | null;
  rate: number;
  eta_s: number | null;
  error: string;
  report: Report | null;
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
}

export type Message =
  | { is: "host"; host: string; status: HostStatus }
  | { is: "container"; host: string; id: string; status: ContainerStatus | null }
  | { is: "migration"; id: string; status: MigrationStatus | null }
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
    running: number(json, "running"),
    migrations: number(json, "migrations"),
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
  };
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
  const phases = Array.isArray(json["phases"]) ? json["phases"] : [];
  return {
    phases: phases
      .map(table)
      .filter((each): each is Json => each !== null)
      .map((each) => ({ phase: text(each, "phase"), at_ms: number(each, "at_ms") })),
    blackout_ms: numberOrNull(json, "blackout_ms"),
    total_ms: number(json, "total_ms"),
    wire_bytes: number(json, "wire_bytes"),
  };
}

export function replyOf(json: Json): Reply {
  const error = table(json["error"]);
  return {
    kind: text(json, "kind"),
    migration: text(json, "migration") || null,
    error: error && { code: text(error, "code"), message: text(error, "message"), hint: text(error, "hint") },
  };
}
