// SPDX-License-Identifier: MPL-2.0
// STOMP, with stompjs over TCP. Arguments: port, the delayed exchange, and a queue that is
// bound to it with the key "k".
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { Client } from '@stomp/stompjs';
import { TCPWrapper } from '@stomp/tcp-wrapper';

const [port, exchange, queue] = process.argv.slice(2);

function connect(options = {}) {
  const client = new Client({
    webSocketFactory: () => new TCPWrapper('127.0.0.1', Number(port)),
    connectHeaders: { login: 'guest', passcode: 'guest', host: '/' },
    reconnectDelay: 0,
    ...options,
  });
  return new Promise((resolve) => {
    client.onConnect = () => resolve(client);
    client.activate();
  });
}

const client = await connect();
const arrivals = [];
let wake = () => {};
client.subscribe(`/amq/queue/${queue}`, (message) => {
  arrivals.push({ at: Date.now(), body: message.body, headers: message.headers });
  wake();
});
const late = setTimeout(() => { throw new Error(`only ${arrivals.length} came`); }, 240000);
async function arrived(count) {
  while (arrivals.length < count) await new Promise((resolve) => { wake = resolve; });
  return arrivals.splice(0, count);
}

function send(body, headers) {
  const receipt = randomUUID();
  const at = Date.now();
  return new Promise((resolve) => {
    client.watchForReceipt(receipt, () => resolve(at));
    client.publish({ destination: `/exchange/${exchange}/k`, body,
      headers: { ...headers, receipt, persistent: 'true', kept: 'yes' } });
  });
}

const published = new Map();
published.set('900', await send('900', { 'x-delay': '900' }));
published.set('400', await send('400', { 'x-opt-delivery-delay': '400' }));
await send('now', {});
const came = (await arrived(3)).sort((a, b) => (a.body < b.body ? -1 : 1));
assert.deepEqual(came.map((arrival) => arrival.body), ['400', '900', 'now']);
const delayed = came.slice(0, 2);
for (const { at, body, headers } of delayed) {
  assert.ok(at - published.get(body) >= Number(body), `${body} came early`);
  assert.equal(headers.kept, 'yes');
}
assert.equal(delayed[1].headers['x-delay'], '-900');

// A delay that cannot be used is an ERROR frame that says so.
const refused = new Promise((resolve) => {
  connect({ onStompError: resolve }).then((doomed) => doomed.publish({
    destination: `/exchange/${exchange}/k`, body: 'x', headers: { 'x-delay': 'soon' } }));
});
const error = await refused;
assert.match(`${error.headers.message} ${error.body}`, /x-delay.*soon/s);

await send('after it', {});
assert.equal((await arrived(1))[0].body, 'after it');
clearTimeout(late);
await client.deactivate();
console.log('ok');
process.exit(0);
