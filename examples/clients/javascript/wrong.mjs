// SPDX-License-Identifier: MPL-2.0
// A wrong delay closes the channel. amqplib rejects what is not confirmed, and says why in the
// channel's "error" event: without a listener the process ends.
//
//     npm install amqplib
//     node wrong.mjs [amqp://guest:guest@localhost:5672]

import amqp from "amqplib";

const connection = await amqp.connect(process.argv[2] ?? "amqp://guest:guest@localhost:5672");

async function publish(delay) {
  const channel = await connection.createConfirmChannel();
  let reason = null;
  channel.on("error", (error) => { reason = error; });
  await channel.assertExchange("later", "x-delayed-message",
    { durable: true, arguments: { "x-delayed-type": "direct" } });
  try {
    channel.publish("later", "job", Buffer.from("hello"), { headers: { "x-delay": delay } });
    await channel.waitForConfirms();
    console.log(`${delay}: taken`);
    await channel.close();
  } catch (error) {
    console.log(`${delay}: ${(reason ?? error).message}`);
  }
}

await publish("5m");
await publish(1000);
await connection.close();
