// SPDX-License-Identifier: MPL-2.0
// Delays that cannot be used over AMQP 1.0, where the exchange nacks. Arguments: port, the target's
// address, the source's address, whether the broker's AMQP 1.0 has nacks.
import assert from 'node:assert/strict';
import rhea from 'rhea';

const [port, target, source, nacks] = process.argv.slice(2);
const { message } = rhea;

const late = setTimeout(() => { throw new Error('not answered'); }, 240000);

const connection = rhea.create_container().connect({
  host: '127.0.0.1', port: Number(port), username: 'guest', password: 'guest', reconnect: false,
});
const receiver = connection.open_receiver({ source: { address: source }, autoaccept: true });
const arrivals = [];
let wake = () => {};
receiver.on('message', ({ message: { body } }) => { arrivals.push(body.content.toString()); wake(); });

async function open(options) {
  const sender = connection.open_sender({ target: { address: target }, ...options });
  await new Promise((resolve) => { sender.once('sendable', resolve); });
  return sender;
}

function send(sender, body, delay) {
  return sender.send({
    body: message.data_section(Buffer.from(body)), message_annotations: { 'x-delay': delay },
  });
}

const sender = await open();
if (nacks === 'true') {
  const outcomes = new Map();
  const settled = new Promise((resolve) => {
    for (const name of ['accepted', 'rejected', 'released']) {
      sender.on(name, ({ delivery }) => {
        outcomes.set(delivery.id, name);
        if (outcomes.size === 3) resolve();
      });
    }
  });
  const presettled = await open({ snd_settle_mode: 1 });
  send(presettled, 'unheard of', 'soon');
  const ids = ['1', 'soon', '2'].map((delay) => send(sender, delay, delay).id);
  await settled;
  assert.deepEqual(ids.map((id) => outcomes.get(id)), ['accepted', 'rejected', 'accepted']);
  while (arrivals.length < 2) await new Promise((resolve) => { wake = resolve; });
  assert.deepEqual(arrivals.sort(), ['1', '2']);
} else {
  const failed = new Promise((resolve) => {
    for (const kind of ['sender', 'session', 'connection']) {
      connection.on(`${kind}_error`, (context) => resolve(context[kind].error));
    }
  });
  send(sender, 'soon', 'soon');
  const error = await failed;
  assert.equal(error.condition, 'amqp:precondition-failed', String(error));
  assert.match(error.description, /annotation x-delay.*soon/);
}
clearTimeout(late);
connection.close();
console.log('ok');
process.exit(0);
