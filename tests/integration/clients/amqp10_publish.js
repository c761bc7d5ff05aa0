// SPDX-License-Identifier: MPL-2.0
// Publishes one message over AMQP 1.0, with a section of every kind. Arguments: port, the target's
// address, the delay in ms, what tells the message from others.
import rhea from 'rhea';

const [port, target, delay, name] = process.argv.slice(2);
const { types, message } = rhea;

const connection = rhea.create_container().connect({
  host: '127.0.0.1', port: Number(port), username: 'guest', password: 'guest', reconnect: false,
});
const sender = connection.open_sender({ target: { address: target } });
await new Promise((resolve) => { sender.once('sendable', resolve); });
sender.send({
  body: name === '0' ? 'a value'
    : message.data_section(Buffer.from(`amqp 1.0 ${name}`)),
  durable: true,
  priority: 7,
  ttl: 86400000,
  message_annotations: { 'x-delay': types.wrap_ulong(Number(delay)), 'x-other': 'annotation' },
  application_properties: { text: 'é', number: types.wrap_int(-5), flag: true },
  message_id: types.wrap_ulong(100 + Number(name)),
  correlation_id: 'c', subject: 'a subject', content_type: 'text/plain', group_id: 'g',
});
await new Promise((resolve, reject) => {
  sender.once('accepted', resolve);
  for (const outcome of ['rejected', 'released']) {
    sender.once(outcome, () => reject(new Error(outcome)));
  }
});
connection.close();
console.log('ok');
