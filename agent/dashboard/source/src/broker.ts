// The page's own connection to the broker: MQTT 5 over WebSockets. What the account may do is the broker's to say.

import mqtt from "mqtt";
import { type Message, parse, read, type Reply, replyOf, ROOT } from "./messages";

const READ = [
  `${ROOT}/hosts/+/status`,
  `${ROOT}/hosts/+/containers/+`,
  `${ROOT}/hosts/+/evacuation`,
  `${ROOT}/hosts/+/events`,
  `${ROOT}/migrations/+/+/status`,
];
const NOT_AUTHORISED = 0x87;

export interface Access {
  url: string;
  user: string;
  password: string;
}

export interface Hears {
  connected(): void;
  /** From now on nothing that is said is missed. */
  listens(): void;
  lost(why: string): void;
  refused(why: string): void;
  message(message: Message): void;
}

function random(bytes: number): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (each) => each.toString(16).padStart(2, "0")).join("");
}

export class NotAllowed extends Error {}

export class Broker {
  private readonly client: mqtt.MqttClient;
  private readonly replies: string;
  private readonly waiting = new Map<string, (reply: Reply) => void>();

  constructor(access: Access, hears: Hears) {
    const name = `transship-dashboard-${random(6)}`;
    this.replies = `${ROOT}/replies/${name}`;
    let ever = false;
    this.client = mqtt.connect(access.url, {
      protocolVersion: 5,
      clientId: name,
      username: access.user,
      password: access.password,
      clean: true,
      keepalive: 120, // timers of a page in the background run once a minute
      timerVariant: "native", // the other one makes a worker of a string, which the page's policy forbids
      connectTimeout: 8000,
      reconnectPeriod: 1500,
      queueQoSZero: false,
      resubscribe: false,
    });
    this.client.on("connect", () => {
      ever = true;
      hears.connected();
      this.client.subscribe([...READ, this.replies], { qos: 1 }, () => hears.listens());
    });
    this.client.on("message", (topic, payload, packet) => {
      if (topic === this.replies) this.replied(payload, packet.properties?.correlationData);
      else {
        const message = read(topic, payload);
        if (message !== null) hears.message(message);
      }
    });
    this.client.on("close", () => hears.lost(""));
    this.client.on("error", (error) => {
      if (!ever || /authori[sz]ed|user ?name/i.test(error.message)) {
        this.client.end(true);
        hears.refused(error.message);
      } else hears.lost(error.message);
    });
    // a broker that is not there is no "error" of the library: the first attempt decides
    this.client.on("offline", () => {
      if (!ever) {
        this.client.end(true);
        hears.refused("the broker does not answer at this address");
      }
    });
  }

  /** Have a host do something; its replies come one by one until the last one. Rejects where the account may not. */
  async command(host: string, what: Record<string, unknown>, heard: (reply: Reply) => void): Promise<void> {
    const id = `c-${random(8)}`;
    this.waiting.set(id, (reply) => {
      if (reply.kind !== "accepted") this.waiting.delete(id);
      heard(reply);
    });
    const payload = JSON.stringify({ id, ...what });
    const properties = { responseTopic: this.replies, correlationData: new TextEncoder().encode(id) as never };
    await new Promise<void>((resolve, reject) => {
      const done = (error?: Error | null, packet?: { reasonCode?: number }): void => {
        const code = packet?.reasonCode ?? (error as { code?: number } | null)?.code;
        if (code === NOT_AUTHORISED) reject(new NotAllowed("this account may not send commands"));
        else if (error) reject(error);
        else resolve();
      };
      this.client.publish(`${ROOT}/hosts/${host}/command`, payload, { qos: 1, properties }, done as never);
    }).catch((error: unknown) => {
      this.waiting.delete(id);
      throw error;
    });
  }

  /** Whether this account may send commands to a host: the broker says so to one that does nothing. */
  async may(host: string): Promise<boolean> {
    try {
      await this.command(host, { kind: "ping" }, () => {});
      return true;
    } catch (error) {
      if (error instanceof NotAllowed) return false;
      throw error;
    }
  }

  private replied(payload: Uint8Array, correlation: Uint8Array | undefined): void {
    const json = parse(payload);
    if (json !== null && correlation) this.waiting.get(new TextDecoder().decode(correlation))?.(replyOf(json));
  }
}
