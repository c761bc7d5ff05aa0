// SPDX-License-Identifier: MPL-2.0
// Retry: the consumer rejects, the exchange gives the message back after a pause, three times at most,
// and parks it then.
//
//     npm install amqplib
//     node retry.mjs [amqp://guest:guest@localhost:5672]

import amqp from "amqplib";

const connection = await amqp.connect(process.argv[2] ?? "amqp://guest:guest@localhost:5672");
const channel = await connection.createConfirmChannel();
await channel.assertExchange("retry", "x-delayed-message", {
  durable: true,
  arguments: {
    "x-delayed-type": "direct",
    "x-delay-retry": "100ms,200ms,400ms",
    "x-delay-retry-parking-exchange": "",
    "x-delay-retry-parking-routing-key": "parked",
  },
});
await channel.assertQueue("parked", { durable: true });
await channel.assertQueue("orders", { durable: true, deadLetterExchange: "retry" });

// One more than it was rejected.
function attemptOf({ properties }) {
  const deaths = properties.headers["x-death"] ?? [];
  return deaths.filter((death) => death.queue === "orders")
    .reduce((attempt, death) => attempt + death.count, 1);
}

await channel.consume("orders", (message) => {
  console.log(`${message.content}, attempt ${attemptOf(message)}`);
  channel.reject(message, false);
});
const parked = new Promise((resolve) => channel.consume("parked", resolve));
channel.sendToQueue("orders", Buffer.from("order 1"), { persistent: true });
const message = await parked;
console.log(`${message.content} is parked: ${message.properties.headers["x-delay-death-reason"]}`);
channel.ack(message);
await connection.close();
