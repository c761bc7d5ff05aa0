// SPDX-License-Identifier: MPL-2.0
// Cancel: a message with the header x-delay-cancel cancels what is pending under that key.
//
//     npm install amqplib
//     node cancel.mjs [amqp://guest:guest@localhost:5672]

import amqp from "amqplib";

const connection = await amqp.connect(process.argv[2] ?? "amqp://guest:guest@localhost:5672");
const channel = await connection.createConfirmChannel();
await channel.assertExchange("later", "x-delayed-message",
  { durable: true, arguments: { "x-delayed-type": "direct" } });
await channel.assertQueue("work", { durable: true });
await channel.bindQueue("work", "later", "job");

function publish(text, headers) {
  channel.publish("later", "job", Buffer.from(text), { persistent: true, headers });
  return channel.waitForConfirms();
}

for (const order of ["order 1", "order 2", "order 3"]) {
  await publish(order, { "x-delay": 5000, "x-delay-key": order });
}
await publish("", { "x-delay-cancel": "order 2" });

let left = 2;
await new Promise((resolve) => channel.consume("work", (message) => {
  console.log(`expired: ${message.content}`);
  channel.ack(message);
  left -= 1;
  if (left === 0) resolve();
}));
await connection.close();
