// What is known, and what of it has changed since it was last drawn. Nothing of the page, nothing of the broker.

import type { AgentEvent, ContainerStatus, Evacuation, HostStatus, Message, MigrationStatus, PhaseTime } from "./messages";

const KEEP_EVENTS = 200;

export const ENDED = new Set(["done", "refused", "rolled-back", "discarded", "stranded"]);
/** Phases in which nothing runs anywhere: the blackout. */
export const FROZEN = new Set(["frozen", "restoring", "prepared", "committed"]);

export class Store {
  readonly hosts = new Map<string, HostStatus>();
  /** By host, then by id. */
  readonly containers = new Map<string, Map<string, ContainerStatus>>();
  readonly migrations = new Map<string, MigrationStatus>();
  /** By the host that is left: the one that goes on, or the last. */
  readonly evacuations = new Map<string, Evacuation>();
  /** Phases as they were seen here, for a move whose report has not come yet. */
  readonly seen = new Map<string, PhaseTime[]>();
  readonly events: AgentEvent[] = [];

  /** Those that have not ended. */
  private readonly open = new Set<string>();

  readonly changedContainers = new Map<string, Set<string>>();
  readonly changedHosts = new Set<string>();
  readonly changedMigrations = new Set<string>();
  readonly changedEvacuations = new Set<string>();
  eventsChanged = false;

  take(message: Message): void {
    switch (message.is) {
      case "host":
        this.hosts.set(message.host, message.status);
        this.changedHosts.add(message.host);
        return;
      case "container":
        this.takeContainer(message.host, message.id, message.status);
        return;
      case "migration":
        this.takeMigration(message.id, message.status);
        return;
      case "evacuation":
        this.takeEvacuation(message.host, message.status);
        return;
      case "event":
        this.events.unshift(message.event);
        this.events.length = Math.min(this.events.length, KEEP_EVENTS);
        this.eventsChanged = true;
    }
  }

  /** Those of a host that an evacuation has brought elsewhere. */
  away(host: string): ContainerStatus[] {
    const found: ContainerStatus[] = [];
    for (const of of this.containers.values()) for (const one of of.values()) if (one.home === host) found.push(one);
    return found;
  }

  /** All that was drawn is done with. */
  drawn(): void {
    for (const each of [this.changedHosts, this.changedContainers, this.changedMigrations, this.changedEvacuations]) {
      each.clear();
    }
    this.eventsChanged = false;
  }

  opened(): number {
    return this.open.size;
  }

  /** The host that a running container's open move goes to or comes from. */
  moveOf(container: ContainerStatus): MigrationStatus | undefined {
    for (const id of this.open) {
      const move = this.migrations.get(id);
      if (!move) continue;
      if (move.source === container.host && move.container_id === container.id) return move;
      if (move.target === container.host && move.container === container.name) return move;
    }
    return undefined;
  }

  forgetAll(): void {
    for (const [host, of] of this.containers) this.changedContainers.set(host, new Set(of.keys()));
    this.containers.clear();
    for (const id of this.migrations.keys()) this.changedMigrations.add(id);
    this.migrations.clear();
    this.open.clear();
    for (const host of this.evacuations.keys()) this.changedEvacuations.add(host);
    this.evacuations.clear();
  }

  private takeEvacuation(host: string, status: Evacuation | null): void {
    this.changedEvacuations.add(host);
    if (this.hosts.has(host)) this.changedHosts.add(host);
    const before = this.evacuations.get(host);
    if (status === null) this.evacuations.delete(host);
    else if (before?.id !== status.id || before.sequence <= status.sequence) this.evacuations.set(host, status);
  }

  private takeContainer(host: string, id: string, status: ContainerStatus | null): void {
    const of = this.containers.get(host) ?? new Map<string, ContainerStatus>();
    this.containers.set(host, of);
    for (const home of [of.get(id)?.home, status?.home]) if (home && this.hosts.has(home)) this.changedHosts.add(home);
    if (status === null) of.delete(id);
    else of.set(id, status);
    this.touch(host, id);
  }

  private touch(host: string, id: string): void {
    const changed = this.changedContainers.get(host) ?? new Set<string>();
    this.changedContainers.set(host, changed.add(id));
  }

  private takeMigration(id: string, status: MigrationStatus | null): void {
    this.changedMigrations.add(id);
    const before = this.migrations.get(id);
    if (status === null) {
      this.migrations.delete(id);
      this.open.delete(id);
      this.seen.delete(id);
      return;
    }
    if (before && before.sequence > status.sequence) return;
    this.migrations.set(id, status);
    if (ENDED.has(status.phase)) this.open.delete(id);
    else this.open.add(id);
    const phases = this.seen.get(id) ?? [];
    this.seen.set(id, phases);
    if (phases.at(-1)?.phase !== status.phase) {
      phases.push({ phase: status.phase, at_ms: Math.max(0, Date.parse(status.at) - Date.parse(status.started_at)) });
    }
    // its card at either end shows the phase
    this.touch(status.source, status.container_id);
    for (const each of this.containers.get(status.target)?.values() ?? []) {
      if (each.name === status.container) this.touch(status.target, each.id);
    }
  }
}
