// SPDX-License-Identifier: MPL-2.0
// rabbitmq-client, which has an AMQP codec of its own and declares as it connects.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { Connection } from 'rabbitmq-client';

const url = process.argv[2];
const exchange = `rc-${randomUUID()}`;
const queue = `rc-${randomUUID()}`;
const connection = new Connection(url);
await connection.onConnect();

const publisher = connection.createPublisher({
  confirm: true,
  maxAttempts: 1,
  exchanges: [{
    exchange, type: 'x-delayed-message', durable: true, autoDelete: true,
    arguments: { 'x-delayed-type': 'direct' },
  }],
});
await publisher.send({ exchange, routingKey: 'nobody', headers: { 'x-delay': 1 } }, 'declares');

const arrivals = [];
let wake = () => {};
const consumer = connection.createConsumer({
  queue, queueOptions: { exclusive: true },
  queueBindings: [{ exchange, routingKey: 'k' }],
}, async (message) => {
  arrivals.push({ at: Date.now(), body: message.body, headers: message.headers });
  wake();
});
await new Promise((resolve) => { consumer.once('ready', resolve); });

const delays = [['800', 800], ['200', 200], ['500', 500], ['as a string', '650']];
const published = new Map();
for (const [body, delay] of delays) {
  published.set(body, Date.now());
  await publisher.send({ exchange, routingKey: 'k', headers: { 'x-delay': delay } }, body);
}
const late = setTimeout(() => { throw new Error(`only ${arrivals.length} came`); }, 240000);
while (arrivals.length < delays.length) await new Promise((resolve) => { wake = resolve; });
clearTimeout(late);

assert.deepEqual(arrivals.map((arrival) => arrival.body).sort(), ['200', '500', '800', 'as a string']);
for (const { at, body, headers } of arrivals) {
  const delay = Number(new Map(delays).get(body));
  assert.ok(at - published.get(body) >= delay, `${body} came early`);
  assert.equal(Number(headers['x-delay']), -delay);
}

await consumer.close();
await publisher.close();
await connection.close();
console.log('ok');
