// What is known, and what of it has changed since it was last drawn. Nothing of the page, nothing of the broker.

import type { AgentEvent, ContainerStatus, HostStatus, Message, MigrationStatus, PhaseTime } from "./messages";

const KEEP_EVENTS = 200;

export const ENDED = new Set(["done", "refused", "rolled-back", "discarded", "stranded"]);
/** Phases in which nothing runs anywhere: the blackout. */
export const FROZEN = new Set(["frozen", "restoring", "prepared", "committed"]);

export class Store {
  readonly hosts = new Map<string, HostStatus>();
  /** By host, then by id. */
  readonly containers = new Map<string, Map<string, ContainerStatus>>();
  readonly migrations = new Map<string, MigrationStatus>();
  /** Phases as they were seen here, for a move whose report has not come yet. */
  readonly seen = new Map<string, PhaseTime[]>();
  readonly events: AgentEvent[] = [];

  readonly changedContainers = new Map<string, Set<string>>();
  readonly changedHosts = new Set<string>();
  readonly changedMigrations = new Set<string>();
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
      case "event":
        this.events.unshift(message.event);
        this.events.length = Math.min(this.events.length, KEEP_EVENTS);
        this.eventsChanged = true;
    }
  }

  /** The host that a running container's open move goes to or comes from. */
  moveOf(container: ContainerStatus): MigrationStatus | undefined {
    for (const move of this.migrations.values()) {
      if (ENDED.has(move.phase)) continue;
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
  }

  private takeContainer(host: string, id: string, status: ContainerStatus | null): void {
    const of = this.containers.get(host) ?? new Map<string, ContainerStatus>();
    this.containers.set(host, of);
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
      this.seen.delete(id);
      return;
    }
    if (before && before.sequence > status.sequence) return;
    this.migrations.set(id, status);
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
