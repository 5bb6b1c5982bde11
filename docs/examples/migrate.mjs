// Moves a container and waits for the end: node migrate.mjs HOST CONTAINER TARGET. Needs mqtt.js 5 (npm install mqtt).
// The broker is in MQTT_HOST and MQTT_PORT; with TLS and a password also in MQTT_CA, MQTT_USERNAME and MQTT_PASSWORD.

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import mqtt from "mqtt";

const ROOT = "transship/v1";
const { MQTT_HOST, MQTT_PORT, MQTT_CA, MQTT_USERNAME, MQTT_PASSWORD } = process.env;
const [host, container, target] = process.argv.slice(2);

const client = await mqtt.connectAsync(`${MQTT_CA ? "mqtts" : "mqtt"}://${MQTT_HOST}:${MQTT_PORT}`, {
  protocolVersion: 5,
  username: MQTT_USERNAME,
  password: MQTT_PASSWORD,
  ca: MQTT_CA && readFileSync(MQTT_CA),
});

const moved = new Promise((resolve) => {
  client.on("message", (topic, payload) => {
    const content = JSON.parse(payload.toString());
    if (topic.startsWith(`${ROOT}/migrations/`)) {
      console.log(`${content.phase}: ${content.bytes_sent} bytes`);
    } else if (content.kind === "accepted") {
      console.log(`accepted as ${content.migration}`);
      client.subscribe(`${ROOT}/migrations/${content.migration}/${host}/status`, { qos: 1 });
    } else if (content.kind === "finished") {
      console.log(`moved; frozen for ${content.report.blackout_ms.toFixed()} ms`);
      resolve(true);
    } else {
      console.log(`${content.error.message} (${content.error.consequence})`);
      resolve(false);
    }
  });
});

const command = { version: 1, kind: "migrate", id: randomUUID(), container, to: target };
const replies = `${ROOT}/replies/${randomUUID()}`;
await client.subscribeAsync(replies, { qos: 1 });
await client.publishAsync(`${ROOT}/hosts/${host}/command`, JSON.stringify(command), {
  qos: 1,
  properties: { responseTopic: replies, correlationData: Buffer.from(command.id), messageExpiryInterval: 15 },
});
process.exitCode = (await moved) ? 0 : 1;
await client.endAsync();
