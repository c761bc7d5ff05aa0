// SPDX-License-Identifier: MPL-2.0
// MQTT 5 with MQTT.js, for RabbitMQ 4: the delay is a user property. The exchange that the broker's setting
// mqtt.exchange names is a delayed one of type topic.
//
//     npm install mqtt
//     node with_mqtt.mjs [mqtt://guest:guest@localhost:1883]

import { once } from "node:events";
import mqtt from "mqtt";

const url = process.argv[2] ?? "mqtt://guest:guest@localhost:1883";
const connect = () => mqtt.connectAsync(url, { protocolVersion: 5, reconnectPeriod: 0 });

const client = await connect();
await client.subscribeAsync("job", { qos: 1 });
const publish = (text, userProperties) => client.publishAsync("job", text,
  { qos: 1, properties: { userProperties } });

const published = Date.now();
const message = once(client, "message");
await publish("order 1", { "x-delay": "5000", "x-delay-key": "order 1" });
await publish("hello", { "x-delay": "6000" });
await publish("", { "x-delay-cancel": "order 1" });

// A wrong delay closes the connection of who asked for it. The reason is in the broker's log.
const doomed = await connect();
doomed.on("error", () => {});
doomed.publish("job", "hello", { qos: 1, properties: { userProperties: { "x-delay": "5m" } } }, () => {});
await once(doomed, "close");
console.log("5m: the connection is closed");

const [, text, packet] = await message;
console.log(`${text}, ${((Date.now() - published) / 1000).toFixed(1)} s later`);
console.log(`x-delay: ${packet.properties.userProperties["x-delay"]}`);
await client.endAsync();
