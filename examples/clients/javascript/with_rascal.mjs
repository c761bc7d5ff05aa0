// SPDX-License-Identifier: MPL-2.0
// rascal: everything that is declared is in its configuration; a publication tells what became of it.
//
//     npm install rascal
//     node with_rascal.mjs [amqp://guest:guest@localhost:5672]

import rascal from "rascal";

const broker = await rascal.BrokerAsPromised.create({
  vhosts: {
    "/": {
      connection: { url: process.argv[2] ?? "amqp://guest:guest@localhost:5672" },
      exchanges: {
        later: {
          type: "x-delayed-message",
          options: { durable: true, arguments: { "x-delayed-type": "direct" } },
        },
        retry: {
          type: "x-delayed-message",
          options: {
            durable: true,
            arguments: {
              "x-delayed-type": "direct",
              "x-delay-retry": "100ms,200ms,400ms",
              "x-delay-retry-parking-exchange": "",
              "x-delay-retry-parking-routing-key": "parked",
            },
          },
        },
      },
      queues: {
        work: { options: { durable: true } },
        orders: { options: { durable: true, arguments: { "x-dead-letter-exchange": "retry" } } },
        parked: { options: { durable: true } },
      },
      bindings: { job: { source: "later", destination: "work", bindingKey: "job" } },
      publications: {
        later: { exchange: "later", routingKey: "job", confirm: true },
        nobody: { exchange: "later", routingKey: "nobody", confirm: true },
        orders: { queue: "orders", confirm: true },
      },
      subscriptions: {
        work: { queue: "work" }, orders: { queue: "orders" }, parked: { queue: "parked" },
      },
    },
  },
});
broker.on("error", (error) => console.error(error.message));

// rascal publishes everything as mandatory. A channel that the broker closes is two errors: "channel
// closed", and right after it why. rascal opens another one by itself.
async function publish(publication, text, headers) {
  const sent = await broker.publish(publication, text, { options: { headers } });
  return new Promise((resolve) => {
    let returned = false;
    sent.on("return", () => { returned = true; });
    sent.on("success", () => resolve(returned ? "returned" : "taken"));
    let reason;
    sent.on("error", (error) => {
      reason = error.message;
      setImmediate(() => resolve(reason));
    });
  });
}

console.log(`delayed: ${await publish("nobody", "hello", { "x-delay": 1000 })}`);
console.log(`at once: ${await publish("nobody", "hello", {})}`);
console.log(`5m: ${await publish("later", "hello", { "x-delay": "5m" })}`);

const published = Date.now();
await publish("later", "order 1", { "x-delay": 5000, "x-delay-key": "order 1" });
await publish("later", "hello", { "x-delay": 6000 });
await publish("later", "", { "x-delay-cancel": "order 1" });
const subscription = await broker.subscribe("work");
await new Promise((resolve) => {
  subscription.on("message", (message, content, ackOrNack) => {
    console.log(`${content}, ${((Date.now() - published) / 1000).toFixed(1)} s later`);
    console.log(`x-delay: ${message.properties.headers["x-delay"]}`);
    ackOrNack();
    resolve();
  });
});

// Nacked, which is rejected, it comes again after a pause, three times at most, and is parked then.
await publish("orders", "order 1", {});
let attempt = 0;
const orders = await broker.subscribe("orders");
orders.on("message", (message, content, ackOrNack) => {
  console.log(`${content}, attempt ${++attempt}`);
  ackOrNack(new Error("not yet"));
});
const parked = await broker.subscribe("parked");
await new Promise((resolve) => {
  parked.on("message", (message, content, ackOrNack) => {
    console.log(`${content} is parked: ${message.properties.headers["x-delay-death-reason"]}`);
    ackOrNack();
    resolve();
  });
});
await broker.shutdown();
