// SPDX-License-Identifier: MPL-2.0
// Retry: what fails is tried again later, and is parked when it has failed too often. The consumer
// only rejects. Its queue dead-letters to a delayed exchange, which gives each message back to the
// queue after a pause that grows, three times at most.
//
//     npm install amqplib
//     node retry.js [amqp://guest:guest@localhost:5672]
"use strict";

const amqp = require("amqplib");

const EXCHANGE = "example.retry";
const ORDERS = "example.retry.orders";
const PARKED = "example.retry.parked";

// Which attempt this is: one more than it was rejected.
function attemptOf({ properties }) {
  const deaths = properties.headers["x-death"] || [];
  return deaths.filter((death) => death.queue === ORDERS)
    .reduce((attempt, death) => attempt + death.count, 1);
}

// Order 1 can be done when the warehouse is back, order 2 never.
function work(order, attempt) {
  if (order === "order 2" || attempt < 3) {
    throw new Error("no answer");
  }
}

async function main() {
  const connection = await amqp.connect(process.argv[2] || "amqp://guest:guest@localhost:5672");
  const channel = await connection.createConfirmChannel();
  await channel.assertExchange(EXCHANGE, "x-delayed-message", {
    durable: true,
    arguments: {
      "x-delayed-type": "direct",
      "x-delay-retry": "100ms,200ms,400ms",
      "x-delay-retry-parking-exchange": "",
      "x-delay-retry-parking-routing-key": PARKED,
    },
  });
  await channel.assertQueue(PARKED, { durable: true });
  await channel.assertQueue(ORDERS, { durable: true, deadLetterExchange: EXCHANGE });

  const publish = (order) => channel.sendToQueue(ORDERS, Buffer.from(order), { persistent: true });

  await channel.consume(ORDERS, (message) => {
    if (message === null) {
      return; // the queue was deleted
    }
    const order = message.content.toString();
    const attempt = attemptOf(message);
    try {
      work(order, attempt);
    } catch (error) {
      console.log(`${order}, attempt ${attempt}: ${error.message}`);
      channel.reject(message, false);
      return;
    }
    console.log(`${order}, attempt ${attempt}: done`);
    channel.ack(message);
    publish("order 2");
  });

  const parked = new Promise((resolve) => {
    channel.consume(PARKED, resolve, { noAck: true });
  });
  publish("order 1");
  const { content, properties: { headers } } = await parked;
  console.log(`${content} is parked: ${headers["x-delay-death-reason"]}, `
    + `${headers["x-delay-death-count"]} times rejected`);

  await channel.deleteQueue(ORDERS);
  await channel.deleteQueue(PARKED);
  await channel.deleteExchange(EXCHANGE);
  await connection.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
