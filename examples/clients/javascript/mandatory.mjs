// SPDX-License-Identifier: MPL-2.0
// Mandatory: what is delayed is taken, and never returned; what is not delayed is returned if no queue
// is bound now.
//
//     npm install amqplib
//     node mandatory.mjs [amqp://guest:guest@localhost:5672]

import amqp from "amqplib";

const connection = await amqp.connect(process.argv[2] ?? "amqp://guest:guest@localhost:5672");
const channel = await connection.createConfirmChannel();
await channel.assertExchange("later", "x-delayed-message",
  { durable: true, arguments: { "x-delayed-type": "direct" } });

// A return comes before the message's confirm.
let returned = null;
channel.on("return", (message) => { returned = message; });

async function publish(text, headers) {
  returned = null;
  channel.publish("later", "nobody", Buffer.from(text), { mandatory: true, headers });
  await channel.waitForConfirms();
  console.log(returned ? `${text}: returned, ${returned.fields.replyText}` : `${text}: taken`);
}

await publish("in a second", { "x-delay": 1000 });
await publish("at once", {});
await connection.close();
