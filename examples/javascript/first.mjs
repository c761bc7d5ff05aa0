// SPDX-License-Identifier: MPL-2.0
// The first message: published now, consumed five seconds later.
//
//     npm install amqplib
//     node first.mjs [amqp://guest:guest@localhost:5672]

import amqp from "amqplib";

const connection = await amqp.connect(process.argv[2] ?? "amqp://guest:guest@localhost:5672");
const channel = await connection.createConfirmChannel();
await channel.assertExchange("later", "x-delayed-message",
  { durable: true, arguments: { "x-delayed-type": "direct" } });
await channel.assertQueue("work", { durable: true });
await channel.bindQueue("work", "later", "job");
channel.publish("later", "job", Buffer.from("hello"),
  { persistent: true, headers: { "x-delay": 5000 } });
await channel.waitForConfirms();
const published = Date.now();

const message = await new Promise((resolve) => channel.consume("work", resolve, { noAck: true }));
console.log(`${message.content}, ${((Date.now() - published) / 1000).toFixed(1)} s later`);
await connection.close();
