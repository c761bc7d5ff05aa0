// SPDX-License-Identifier: MPL-2.0
// Retry-After: a consumer that cannot handle a message now says when it is to come back. It publishes the
// message again, with the time, to a delayed exchange, awaits the confirm, and only then acknowledges the
// one that it got. If it ends between the two, the message comes twice; it is never lost.
//
//     npm install amqplib
//     node retry_after.js [amqp://guest:guest@localhost:5672]
"use strict";

const amqp = require("amqplib");

const EXCHANGE = "example.later";
const ORDERS = "example.later.orders";

// What a service answers with 429 or 503, and its header Retry-After.
class Busy extends Error {
  constructor(retryAfterMs) {
    super(`busy, again in ${retryAfterMs} ms`);
    this.retryAfterMs = retryAfterMs;
  }
}

function work(attempt) {
  if (attempt < 3) {
    throw new Busy(500);
  }
}

async function onOrder(channel, message) {
  const { headers } = message.properties;
  const attempt = headers.attempt ?? 1;
  if (Date.now() < (headers["x-opt-delivery-time"] ?? 0)) {
    throw new Error("too early");
  }
  try {
    work(attempt);
  } catch (busy) {
    if (!(busy instanceof Busy)) {
      throw busy;
    }
    console.log(`${message.content}, attempt ${attempt}: ${busy.message}`);
    // All else stays as it is, its messageId too, by which it can be found and cancelled meanwhile.
    channel.publish(EXCHANGE, ORDERS, message.content, {
      ...message.properties,
      persistent: true,
      mandatory: true,
      headers: { ...headers, attempt: attempt + 1, "x-opt-delivery-time": Date.now() + busy.retryAfterMs },
    });
    await channel.waitForConfirms();
    channel.ack(message);
    return false;
  }
  console.log(`${message.content}, attempt ${attempt}: done`);
  channel.ack(message);
  return true;
}

async function main() {
  const connection = await amqp.connect(process.argv[2] || "amqp://guest:guest@localhost:5672");
  const channel = await connection.createConfirmChannel();
  await channel.assertExchange(EXCHANGE, "x-delayed-message", {
    durable: true,
    arguments: { "x-delayed-type": "direct" },
  });
  await channel.assertQueue(ORDERS, { durable: true });
  await channel.bindQueue(ORDERS, EXCHANGE, ORDERS);
  channel.sendToQueue(ORDERS, Buffer.from("order 1"), { persistent: true, messageId: "order-1" });
  await channel.waitForConfirms();

  await new Promise((resolve, reject) => {
    channel.consume(ORDERS, (message) => {
      if (message !== null) { // null: the queue was deleted
        onOrder(channel, message).then((done) => done && resolve(), reject);
      }
    });
  });

  await channel.deleteQueue(ORDERS);
  await channel.deleteExchange(EXCHANGE);
  await connection.close();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
