// SPDX-License-Identifier: MPL-2.0
// A message that arrives two seconds after it is published.
//
//     npm install amqplib
//     node delayed.mjs [amqp://guest:guest@localhost:5672]

import amqp from "amqplib";

const connection = await amqp.connect(process.argv[2] ?? "amqp://guest:guest@localhost:5672");
const channel = await connection.createConfirmChannel();
await channel.assertExchange("later", "x-delayed-message",
  { durable: true, arguments: { "x-delayed-type": "direct" } });
await channel.assertQueue("work", { durable: true });
await channel.bindQueue("work", "later", "job");

const published = Date.now();
channel.publish("later", "job", Buffer.from("hello"),
  { persistent: true, headers: { "x-delay": 2000 } });
await channel.waitForConfirms();

const message = await new Promise((resolve) => channel.consume("work", resolve));
console.log(`${message.content}, ${((Date.now() - published) / 1000).toFixed(1)} s later`);
console.log(`x-delay: ${message.properties.headers["x-delay"]}`);
channel.ack(message);
await connection.close();
