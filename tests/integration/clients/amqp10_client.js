// SPDX-License-Identifier: MPL-2.0
// AMQP 1.0, with rhea. Arguments: port, the target's address, the source's address.
import assert from 'node:assert/strict';
import rhea from 'rhea';

const [port, target, source] = process.argv.slice(2);
const { types, message } = rhea;

function connect() {
  return rhea.create_container().connect({
    host: '127.0.0.1', port: Number(port), username: 'guest', password: 'guest', reconnect: false,
  });
}

const connection = connect();
const receiver = connection.open_receiver({ source: { address: source }, autoaccept: true });
const sender = connection.open_sender({ target: { address: target } });

const arrivals = [];
let wake = () => {};
receiver.on('message', (context) => {
  arrivals.push({ at: Date.now(), message: context.message });
  wake();
});
const late = setTimeout(() => { throw new Error(`only ${arrivals.length} came`); }, 240000);
async function arrived(count) {
  while (arrivals.length < count) await new Promise((resolve) => { wake = resolve; });
  return arrivals.splice(0, count);
}

await new Promise((resolve) => { sender.once('sendable', resolve); });
const outcomes = new Map();
for (const name of ['accepted', 'rejected', 'released']) {
  sender.on(name, (context) => outcomes.get(context.delivery.id)?.(name));
}
function send(body, annotations, given = { kept: 'yes' }) {
  const at = Date.now();
  const delivery = sender.send({
    body: message.data_section(Buffer.from(body)),
    durable: true,
    message_annotations: annotations,
    application_properties: given,
    message_id: `id-${body}`,
  });
  return new Promise((resolve, reject) => {
    outcomes.set(delivery.id, (outcome) => (outcome === 'accepted' ? resolve(at)
      : reject(new Error(`${body}: ${outcome}`))));
  });
}

// Every annotation, in the types in which libraries write it; each accepted before it is due.
let soon;
const delays = [
  ['uint', 400, { 'x-delay': types.wrap_uint(400) }],
  ['ulong', 800, { 'x-delay': types.wrap_ulong(800) }],
  ['long', 1200, { 'x-opt-delivery-delay': types.wrap_long(1200) }],
  ['int', 1600, { 'x-opt-delivery-delay': types.wrap_int(1600) }],
  ['string', 2000, { 'x-delay': '2000' }],
  ['timestamp', null, null],
];
// A timestamp is in ms, whatever it says: this one has passed.
await send('1970', { 'x-opt-delivery-time': types.wrap_timestamp(1000) });
assert.equal((await arrived(1))[0].message.message_id, 'id-1970');
const published = new Map();
for (const [name, , annotations] of delays) {
  // Later than the one before it, however long it takes until all are accepted.
  soon = Date.now() + 2600;
  published.set(name, await send(name, annotations
    ?? { 'x-opt-delivery-time': types.wrap_timestamp(soon) }));
}
await send('now', {});
// What is not delayed comes in between, the sooner the faster the machine.
const delayed = await arrived(delays.length + 1);
const text = (arrival) => arrival.message.body.content.toString();
assert.equal(delayed.splice(delayed.findIndex((arrival) => text(arrival) === 'now'), 1).length, 1);
assert.deepEqual(delayed.map(text),
  delays.map(([name]) => name));
for (const [index, { at, message: received }] of delayed.entries()) {
  const [name, delay] = delays[index];
  const due = delay === null ? soon : published.get(name) + delay;
  assert.ok(at >= due, `${name} came ${due - at} ms early`);
  assert.equal(received.message_id, `id-${name}`);
  assert.deepEqual(received.application_properties, { kept: 'yes' });
  const xDelay = received.message_annotations['x-delay'];
  if (xDelay !== undefined) assert.equal(Number(xDelay), -delay, name);
  if (name === 'string') assert.equal(xDelay, '-2000');
}

// Keys, as annotations; without one, the message id is the key.
const HOUR = 3600000;
const keyed = (key, onDuplicate, delay) => ({
  'x-delay': types.wrap_uint(delay), 'x-delay-key': key, 'x-delay-on-duplicate': onDuplicate,
});
await send('replaced', keyed('a', 'keep', HOUR));
await send('stays', keyed('a', 'replace', 600));
await send('pending', keyed('b', 'keep', HOUR));
await send('dropped', keyed('b', 'drop', 600));
await send('cancelled', { 'x-delay': types.wrap_uint(HOUR) });
await send('a cancel', { 'x-delay-cancel': 'id-cancelled' });
await send('last', { 'x-delay': types.wrap_uint(1200) });
assert.deepEqual((await arrived(2)).map(text), ['stays', 'last']);

// Application properties, where no annotation says otherwise. They come as they were sent; an
// annotation says that the message has been delayed, also when it is sent again as it came.
const sent = [
  ['property', 400, { 'x-delay': types.wrap_long(400) }, {}],
  ['text', 700, { 'x-delay': '700' }, {}],
  ['other property', 1000, { 'x-opt-delivery-delay': types.wrap_int(1000) }, {}],
  ['annotation', 1300, { 'x-delay': types.wrap_int(HOUR) }, { 'x-delay': types.wrap_uint(1300) }],
  ['zero', 0, { 'x-delay': types.wrap_int(HOUR) }, { 'x-opt-delivery-delay': types.wrap_uint(0) }],
];
const at = new Map();
for (const [name, , given, annotations] of sent) {
  at.set(name, await send(name, annotations, { kept: 'yes', ...given }));
}
const came = new Map((await arrived(sent.length)).map((arrival) => [text(arrival), arrival]));
for (const [name, delay, given] of sent) {
  const { at: when, message: received } = came.get(name);
  assert.ok(when >= at.get(name) + delay, `${name} came early`);
  const [header] = Object.keys(given);
  assert.equal(String(received.application_properties[header]), String(Number(given[header])));
  assert.equal(received.application_properties.kept, 'yes');
  if (delay > 0) assert.equal(Number(received.message_annotations[header]), -delay, name);
}
for (const name of ['property', 'other property', 'annotation']) {
  const { message_annotations: annotations, application_properties: given } = came.get(name).message;
  await send(`${name} again`, annotations, { ...given, 'x-delay': types.wrap_int(HOUR),
    'x-opt-delivery-delay': types.wrap_int(HOUR) });
}
assert.equal((await arrived(3)).length, 3);
await send('replaced', {}, { 'x-delay': types.wrap_int(HOUR), 'x-delay-key': 'p' });
await send('replacement', { 'x-delay': types.wrap_int(1) }, { 'x-delay-key': 'p',
  'x-delay-on-duplicate': 'replace' });
assert.equal(text((await arrived(1))[0]), 'replacement');

// A delay that cannot be used: refused in the protocol's own words, and only this connection is told.
for (const [section, word] of [['message_annotations', 'annotation'],
  ['application_properties', 'application property']]) {
  const doomed = connect();
  const failed = new Promise((resolve) => {
    for (const kind of ['sender', 'session', 'connection']) {
      doomed.on(`${kind}_error`, (context) => resolve(context[kind].error));
    }
    doomed.on('disconnected', () => resolve(new Error('disconnected without a reason')));
  });
  doomed.open_sender({ target: { address: target } }).once('sendable', (context) => {
    context.sender.send({ body: 'x', [section]: { 'x-delay': 'soon' } });
  });
  const error = await failed;
  assert.equal(error.condition, 'amqp:precondition-failed', String(error));
  assert.match(error.description, new RegExp(`${word} x-delay.*soon`));
  doomed.close();
}

await send('after it', {});
assert.equal((await arrived(1))[0].message.body.content.toString(), 'after it');
clearTimeout(late);
connection.close();
console.log('ok');
process.exit(0);
