// SPDX-License-Identifier: MPL-2.0
// What amqplib says of a broker that is lost while a confirm is out (../lost.py).

import { once } from "node:events";
import amqp from "amqplib";

const connection = await amqp.connect(process.argv[2]);
const events = [];
connection.on("error", (error) => events.push(`connection error: ${error.message}`));
connection.on("close", () => events.push("connection closed"));
const channel = await connection.createConfirmChannel();
await channel.assertQueue("lost", { durable: true });
console.log("ready");
await once(process.stdin, "data");
channel.sendToQueue("lost", Buffer.from("x"), { persistent: true });
setImmediate(() => console.log("sent"));
try {
  await channel.waitForConfirms();
} catch (error) {
  console.log(error.message);
}
if (events.length < 2) await once(connection, "close");
console.log(events.join(", "));
process.exit(0);
