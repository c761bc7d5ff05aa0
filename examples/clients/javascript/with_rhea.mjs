// SPDX-License-Identifier: MPL-2.0
// AMQP 1.0 with rhea, for RabbitMQ 4: the delay is a message annotation. The exchange `later` and the
// queue `work`, bound to it with the key "job", are there already.
//
//     npm install rhea
//     node with_rhea.mjs [amqp://guest:guest@localhost:5672]

import { once } from "node:events";
import rhea from "rhea";

const url = new URL(process.argv[2] ?? "amqp://guest:guest@localhost:5672");
const connection = rhea.create_container().connect({
  host: url.hostname, port: Number(url.port), username: url.username, password: url.password,
});

function send(sender, text, annotations) {
  sender.send({ body: rhea.message.data_section(Buffer.from(text)), durable: true,
    message_annotations: annotations });
  return new Promise((resolve, reject) => {
    sender.once("accepted", resolve);
    sender.once("rejected", () => reject(new Error(`${text}: rejected`)));
    sender.once("released", () => reject(new Error(`${text}: released`)));
  });
}

const sender = connection.open_sender("/exchanges/later/job");
await once(sender, "sendable");
const published = Date.now();
await send(sender, "order 1", { "x-delay": 5000, "x-delay-key": "order 1" });
await send(sender, "hello", { "x-delay": 6000 });
await send(sender, "", { "x-delay-cancel": "order 1" });

// A wrong delay ends the session, and with it all that is sent in it.
const session = connection.create_session();
session.begin();
const doomed = session.open_sender("/exchanges/later/job");
await once(doomed, "sendable");
doomed.send({ body: "hello", message_annotations: { "x-delay": "5m" } });
const [{ session: ended }] = await once(session, "session_error");
console.log(`5m: ${ended.error.description}`);

const receiver = connection.open_receiver("/queues/work");
const [{ message }] = await once(receiver, "message");
console.log(`${message.body.content}, ${((Date.now() - published) / 1000).toFixed(1)} s later`);
console.log(`x-delay: ${message.message_annotations["x-delay"]}`);
connection.close();
