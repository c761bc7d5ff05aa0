// SPDX-License-Identifier: MPL-2.0
// amqplib writes a number in the smallest AMQP type that holds it: -128..127 as a signed byte.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import amqp from 'amqplib';

const url = process.argv[2];
const connection = await amqp.connect(url);
const channel = await connection.createConfirmChannel();
const exchange = `js-${randomUUID()}`;

await channel.assertExchange(exchange, 'x-delayed-message', {
  durable: true,
  autoDelete: true,
  arguments: { 'x-delayed-type': 'direct' },
});
const { queue } = await channel.assertQueue('', { exclusive: true });
await channel.bindQueue(queue, exchange, 'k');

const arrivals = [];
let wake = () => {};
await channel.consume(queue, (message) => {
  arrivals.push({ at: Date.now(), body: message.content.toString(), message });
  wake();
}, { noAck: true });

async function arrived(count) {
  const late = setTimeout(() => { throw new Error(`${arrivals.length} of ${count} came`); }, 240000);
  while (arrivals.length < count) await new Promise((resolve) => { wake = resolve; });
  clearTimeout(late);
  return arrivals.splice(0, count);
}

function publish(body, headers, options = {}) {
  return new Promise((resolve, reject) => {
    const published = Date.now();
    channel.publish(exchange, 'k', Buffer.from(body), { headers, persistent: true, ...options },
      (refused) => (refused ? reject(refused) : resolve(published)));
  });
}

// Every way in which a JavaScript number or string reaches the wire.
const delays = new Map([
  ['signed byte', 100], ['short', 300], ['int', 500], ['double', 700.5],
  ['string', '900'], ['long, tagged', { '!': 'int64', value: 1100 }],
]);
const published = new Map();
for (const [name, delay] of delays) published.set(name, await publish(name, { 'x-delay': delay }));
await publish('now', {});
// What is not delayed comes in between, the sooner the faster the machine.
const delayed = await arrived(delays.size + 1);
assert.equal(delayed.splice(delayed.findIndex((arrival) => arrival.body === 'now'), 1)[0].body, 'now');
assert.deepEqual(delayed.map((arrival) => arrival.body), [...delays.keys()]);
for (const { at, body, message } of delayed) {
  const given = delays.get(body);
  const delay = Math.ceil(Number(given.value ?? given));
  assert.ok(at - published.get(body) >= delay, `${body} came early`);
  assert.equal(Math.trunc(Number(message.properties.headers['x-delay'])), -delay, body);
}

// Published again as it came, a message is not delayed again.
const again = delayed[0].message;
await publish('again', again.properties.headers);
await publish('after it', {});
assert.deepEqual((await arrived(2)).map((arrival) => arrival.body), ['again', 'after it']);

// null is no delay.
await publish('null', { 'x-delay': null });
assert.equal((await arrived(1))[0].body, 'null');

// A delayed mandatory message is not returned.
channel.on('return', () => { throw new Error('returned'); });
await publish('mandatory', { 'x-delay': 200 }, { mandatory: true });
assert.equal((await arrived(1))[0].body, 'mandatory');

// A delay that cannot be used is a channel error that says so.
const doomed = await connection.createChannel();
const failed = once(doomed, 'error');
doomed.publish(exchange, 'k', Buffer.from('x'), { headers: { 'x-delay': 'soon' } });
const [error] = await failed;
assert.equal(error.code, 406);
assert.match(error.message, /x-delay.*soon/);

await connection.close();
console.log('ok');
