// SPDX-License-Identifier: MPL-2.0
// AMQP 1.0 with rhea, for RabbitMQ 4: the delay is a message annotation. rhea declares nothing: the exchange
// `later`, the queue `work`, bound to it with the key "job", and the exchange and queues of retry.mjs are there
// already.
//
//     npm install rhea
//     node with_rhea.mjs [amqp://guest:guest@localhost:5672]

import { once } from "node:events";
import rhea from "rhea";

const url = new URL(process.argv[2] ?? "amqp://guest:guest@localhost:5672");
const connection = rhea.create_container().connect({
  host: url.hostname, port: Number(url.port), username: url.username, password: url.password,
});

async function open(address) {
  const sender = connection.open_sender(address);
  await once(sender, "sendable");
  return sender;
}

// What becomes of it.
function send(sender, text, annotations) {
  sender.send({ body: rhea.message.data_section(Buffer.from(text)), durable: true,
    message_annotations: annotations });
  return new Promise((resolve) => {
    sender.once("accepted", () => resolve("taken"));
    sender.once("rejected", () => resolve("refused"));
    sender.once("released", () => resolve("returned"));
  });
}

// What is to be routed at once is released if no queue is bound. What is delayed is accepted.
const nobody = await open("/exchanges/later/nobody");
console.log(`delayed: ${await send(nobody, "hello", { "x-delay": 1000 })}`);
console.log(`at once: ${await send(nobody, "hello", {})}`);

// A wrong delay ends the session, and with it all that is sent in it.
const session = connection.create_session();
session.begin();
const doomed = session.open_sender("/exchanges/later/job");
await once(doomed, "sendable");
doomed.send({ body: "hello", message_annotations: { "x-delay": "5m" } });
const [{ session: ended }] = await once(session, "session_error");
console.log(`5m: ${ended.error.description}`);

const sender = await open("/exchanges/later/job");
const published = Date.now();
for (const [text, annotations] of [
  ["order 1", { "x-delay": 5000, "x-delay-key": "order 1" }],
  ["hello", { "x-delay": 6000 }],
  ["", { "x-delay-cancel": "order 1" }],
]) {
  await send(sender, text, annotations);
}

const work = connection.open_receiver("/queues/work");
const [{ message }] = await once(work, "message");
console.log(`${message.body.content}, ${((Date.now() - published) / 1000).toFixed(1)} s later`);
console.log(`x-delay: ${message.message_annotations["x-delay"]}`);

// Rejected, it comes again after a pause, three times at most, and is parked then.
await send(await open("/queues/orders"), "order 1", {});
const orders = connection.open_receiver({ source: "/queues/orders", autoaccept: false });
for (const attempt of [1, 2, 3, 4]) {
  const [{ message: order, delivery }] = await once(orders, "message");
  console.log(`${order.body.content}, attempt ${attempt}`);
  delivery.reject();
}
const [{ message: parked }] = await once(connection.open_receiver("/queues/parked"), "message");
console.log(`${parked.body.content} is parked: ${parked.message_annotations["x-delay-death-reason"]}`);
connection.close();
