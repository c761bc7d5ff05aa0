// SPDX-License-Identifier: MPL-2.0
// AMQP 1.0, with rhea: a message that is rejected until it is parked. Arguments: port, the address to
// send to, of the same queue to consume from, and of the queue where it is parked; and whether the
// broker shows AMQP 1.0 clients the headers that it adds.
import assert from 'node:assert/strict';
import rhea from 'rhea';

const [port, target, source, parked, shown] = process.argv.slice(2);
const { types, message } = rhea;

const connection = rhea.create_container().connect({
  host: '127.0.0.1', port: Number(port), username: 'guest', password: 'guest', reconnect: false,
});
const late = setTimeout(() => { throw new Error('it is not parked'); }, 240000);

function assertWhole(received) {
  assert.equal(received.body.content.toString(), 'poison');
  assert.equal(received.application_properties.kept, 'yes');
  assert.equal(received.message_id, 'id');
  assert.equal(received.message_annotations['x-mine'], 'kept');
}

let rejected = 0;
const worker = connection.open_receiver({
  source: { address: source }, autoaccept: false, credit_window: 1,
});
worker.on('message', (context) => {
  assertWhole(context.message);
  rejected += 1;
  context.delivery.reject();
});

const sender = connection.open_sender({ target: { address: target } });
sender.once('sendable', () => sender.send({
  body: message.data_section(Buffer.from('poison')),
  durable: true,
  message_annotations: { 'x-mine': 'kept', 'x-delay': types.wrap_uint(3600000) },
  application_properties: { kept: 'yes' },
  message_id: 'id',
}));

const received = await new Promise((resolve) => {
  connection.open_receiver({ source: { address: parked }, autoaccept: true })
    .on('message', (context) => resolve(context.message));
});
assertWhole(received);
assert.equal(rejected, 3);
if (shown === 'true') {
  const { message_annotations: annotations } = received;
  assert.equal(annotations['x-delay-death-reason'], 'attempts_used_up');
  assert.equal(Number(annotations['x-delay-death-count']), 3);
}
clearTimeout(late);
connection.close();
console.log('ok');
