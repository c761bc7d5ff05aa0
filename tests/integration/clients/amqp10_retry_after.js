// SPDX-License-Identifier: MPL-2.0
// AMQP 1.0, with rhea: a consumer chooses when what it cannot handle now comes back, by the time that it
// gives with the outcome modified. Arguments: port, the address to send to, and of the queue to consume
// from. Prints for each delivery, in ms since the epoch, when it came and not before when it was to.
import assert from 'node:assert/strict';
import rhea from 'rhea';

const [port, target, source] = process.argv.slice(2);
const { message, types } = rhea;
const PAUSES = [1500, 300, 900];

const connection = rhea.create_container().connect({
  host: '127.0.0.1', port: Number(port), username: 'guest', password: 'guest', reconnect: false,
});
const late = setTimeout(() => { throw new Error('it does not come back'); }, 240000);

const sender = connection.open_sender({ target: { address: target } });
sender.once('sendable', () => sender.send({
  body: message.data_section(Buffer.from('busy')), durable: true, message_id: 'id',
  message_annotations: { 'x-mine': 'kept' }, application_properties: { kept: 'yes' },
}));

await new Promise((resolve) => {
  let due = 0;
  const pauses = [...PAUSES];
  connection.open_receiver({ source: { address: source }, autoaccept: false, credit_window: 1 })
    .on('message', ({ message: received, delivery }) => {
      console.log(Date.now(), due);
      assert.equal(received.body.content.toString(), 'busy');
      assert.equal(received.message_id, 'id');
      assert.equal(received.application_properties.kept, 'yes');
      assert.equal(received.message_annotations['x-mine'], 'kept');
      if (pauses.length === 0) {
        delivery.accept();
        resolve();
        return;
      }
      due = Date.now() + pauses.shift();
      delivery.modified({
        undeliverable_here: true, delivery_failed: true,
        message_annotations: { 'x-opt-delivery-time': types.wrap_long(due) },
      });
    });
});
clearTimeout(late);
connection.close();
