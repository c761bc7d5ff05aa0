// SPDX-License-Identifier: MPL-2.0
// rascal declares everything from a configuration, and retries by publishing again.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import rascal from 'rascal';

const url = process.argv[2];
const name = `rascal-${randomUUID()}`;

const broker = await rascal.BrokerAsPromised.create({
  vhosts: {
    '/': {
      connection: { url },
      namespace: false,
      exchanges: {
        [name]: {
          type: 'x-delayed-message',
          options: { durable: true, arguments: { 'x-delayed-type': 'topic' } },
        },
      },
      queues: { [name]: { options: { durable: true, arguments: { 'x-expires': 3600000 } } } },
      bindings: { b: { source: name, destination: name, bindingKey: 'orders.#' } },
      publications: { later: { exchange: name, routingKey: 'orders.new', confirm: true } },
      subscriptions: { s: { queue: name, contentType: 'application/json' } },
    },
  },
});
broker.on('error', (error) => { throw error; });

const arrivals = [];
let wake = () => {};
const subscription = await broker.subscribe('s');
subscription.on('message', (message, content, ackOrNack) => {
  arrivals.push({ at: Date.now(), content, headers: message.properties.headers });
  ackOrNack();
  wake();
});

async function publish(content, headers) {
  const published = Date.now();
  const publication = await broker.publish('later', content, { options: { headers } });
  await new Promise((resolve, reject) => {
    publication.on('success', resolve).on('error', reject).on('return', reject);
  });
  return published;
}

const published = await publish({ order: 1 }, { 'x-delay': 600 });
await publish({ order: 2 }, {});
const late = setTimeout(() => { throw new Error(`only ${arrivals.length} came`); }, 240000);
while (arrivals.length < 2) await new Promise((resolve) => { wake = resolve; });
clearTimeout(late);

arrivals.sort((a, b) => a.content.order - b.content.order);
assert.deepEqual(arrivals.map((arrival) => arrival.content.order), [1, 2]);
assert.ok(arrivals[0].at - published >= 600, 'early');
assert.equal(arrivals[0].headers['x-delay'], -600);

await broker.nuke();
console.log('ok');
