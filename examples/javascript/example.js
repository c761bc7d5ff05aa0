// SPDX-License-Identifier: MPL-2.0
// What the examples share: an exchange, a queue bound to it, a publisher that waits for each
// confirm, and a consumer that ends when nothing more has come for three seconds.
"use strict";

const amqp = require("amqplib");

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function example(exchange, args, key, publishAll, consume) {
  const connection = await amqp.connect(process.argv[2] || "amqp://guest:guest@localhost:5672");
  const channel = await connection.createConfirmChannel();
  await channel.assertExchange(exchange, "x-delayed-message",
    { durable: true, arguments: { "x-delayed-type": "direct", ...args } });
  const { queue } = await channel.assertQueue("", { exclusive: true });
  await channel.bindQueue(queue, exchange, key);

  const publish = (body, options) =>
    new Promise((resolve, reject) =>
      channel.publish(exchange, key, Buffer.from(body), { persistent: true, ...options },
        (refused) => (refused ? reject(refused) : resolve())));
  await publishAll(publish);

  let last = Date.now();
  await channel.consume(queue, (message) => {
    last = Date.now();
    consume(message.content.toString());
  }, { noAck: true });
  while (Date.now() - last < 3000) {
    await sleep(100);
  }
  await channel.deleteExchange(exchange);
  await connection.close();
}

function run(...args) {
  example(...args).catch((error) => {
    console.error(error);
    process.exit(1);
  });
}

module.exports = { run, sleep };
