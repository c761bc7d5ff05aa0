// SPDX-License-Identifier: MPL-2.0
// rabbitmq-client: a publisher declares what it publishes to, and connects again by itself.
//
//     npm install rabbitmq-client
//     node with_rabbitmq_client.mjs [amqp://guest:guest@localhost:5672]

import { Connection } from "rabbitmq-client";

const connection = new Connection(process.argv[2] ?? "amqp://guest:guest@localhost:5672");
const later = {
  exchange: "later", type: "x-delayed-message", durable: true,
  arguments: { "x-delayed-type": "direct" },
};
const publisher = connection.createPublisher({ confirm: true, exchanges: [later] });

let returned = false;
publisher.on("basic.return", () => { returned = true; });
async function mandatory(text, headers) {
  returned = false;
  await publisher.send({ exchange: "later", routingKey: "nobody", mandatory: true, headers }, text);
  await new Promise(setImmediate); // the event comes after the confirm
  console.log(`${text}: ${returned ? "returned" : "taken"}`);
}
await mandatory("delayed", { "x-delay": 1000 });
await mandatory("at once", {});

// With maxAttempts above 1 it would be refused as often; the next send() opens another channel.
try {
  await publisher.send({ exchange: "later", routingKey: "job", headers: { "x-delay": "5m" } }, "hello");
} catch (error) {
  console.log(`5m: ${error.message}`);
}

const consumer = connection.createConsumer({
  queue: "work", queueOptions: { durable: true },
  exchanges: [later], queueBindings: [{ exchange: "later", routingKey: "job" }],
}, (message) => consumer.emit("came", message));
await new Promise((resolve) => { consumer.once("ready", resolve); });

const came = new Promise((resolve) => { consumer.once("came", resolve); });
const published = Date.now();
const publish = (text, headers) => publisher.send(
  { exchange: "later", routingKey: "job", durable: true, headers }, text);
await publish("order 1", { "x-delay": 5000, "x-delay-key": "order 1" });
await publish("hello", { "x-delay": 6000 });
await publish("", { "x-delay-cancel": "order 1" });
const message = await came;
console.log(`${message.body}, ${((Date.now() - published) / 1000).toFixed(1)} s later`);
console.log(`x-delay: ${message.headers["x-delay"]}`);

// What the consumer's function throws for is rejected, comes again after a pause, three times at most, and is
// parked then.
let attempt = 0;
const orders = connection.createConsumer({
  queue: "orders", requeue: false,
  queueOptions: { durable: true, arguments: { "x-dead-letter-exchange": "retry" } },
  exchanges: [{
    exchange: "retry", type: "x-delayed-message", durable: true,
    arguments: {
      "x-delayed-type": "direct",
      "x-delay-retry": "100ms,200ms,400ms",
      "x-delay-retry-parking-exchange": "",
      "x-delay-retry-parking-routing-key": "parked",
    },
  }],
}, (order) => {
  console.log(`${order.body}, attempt ${++attempt}`);
  throw new Error("not yet");
});
orders.on("error", () => {});
const parked = connection.createConsumer({ queue: "parked", queueOptions: { durable: true } },
  (order) => parked.emit("came", order));
const last = new Promise((resolve) => { parked.once("came", resolve); });
await Promise.all([orders, parked].map((one) => new Promise((resolve) => { one.once("ready", resolve); })));
await publisher.send({ routingKey: "orders", durable: true }, "order 1");
const order = await last;
console.log(`${order.body} is parked: ${order.headers["x-delay-death-reason"]}`);

for (const one of [consumer, orders, parked]) {
  await one.close();
}
await publisher.close();
await connection.close();
