// SPDX-License-Identifier: MPL-2.0
// MQTT, with MQTT.js. Arguments: port, protocol version (4 or 5), the URL of the AMQP 0-9-1 side, and
// the delayed exchange of type topic that is the MQTT plugin's exchange.
import assert from 'node:assert/strict';
import amqp from 'amqplib';
import mqtt from 'mqtt';

const [port, version, amqpUrl, exchange] = process.argv.slice(2);

function connect() {
  return mqtt.connectAsync(`mqtt://guest:guest@127.0.0.1:${port}`, {
    protocolVersion: Number(version), reconnectPeriod: 0, connectTimeout: 120000,
  });
}

const client = await connect();
const arrivals = [];
let wake = () => {};
client.on('message', (topic, payload, packet) => {
  arrivals.push({ at: Date.now(), topic, body: payload.toString(), packet });
  wake();
});
const late = setTimeout(() => { throw new Error(`only ${arrivals.length} came`); }, 240000);
async function arrived(count) {
  while (arrivals.length < count) await new Promise((resolve) => { wake = resolve; });
  return arrivals.splice(0, count);
}

await client.subscribeAsync(['sensor/+/state', 'all/#'], { qos: 1 });

// What another protocol delays arrives here, and so does what has no delay.
const connection = await amqp.connect(amqpUrl);
const channel = await connection.createConfirmChannel();
const published = Date.now();
channel.publish(exchange, 'sensor.1.state', Buffer.from('delayed'), { headers: { 'x-delay': 700 } });
await channel.waitForConfirms();
await client.publishAsync('sensor/2/state', 'at once', { qos: 1 });
const both = new Map((await arrived(2)).map((arrival) => [arrival.body, arrival]));
assert.equal(both.get('at once').topic, 'sensor/2/state');
assert.equal(both.get('delayed').topic, 'sensor/1/state');
assert.ok(both.get('delayed').at - published >= 700, 'came early');

if (version === '5') {
  const at = Date.now();
  for (const [topic, name, delay] of [['all/b', 'x-delay', 900], ['all', 'x-opt-delivery-delay', 400],
    ['other', 'x-delay', 10]]) {
    await client.publishAsync(topic, `${delay}`, {
      qos: 1, properties: { userProperties: { [name]: `${delay}`, kept: 'yes' } },
    });
  }
  const delayed = await arrived(2);
  assert.deepEqual(delayed.map((arrival) => [arrival.topic, arrival.body]).sort(),
    [['all', '400'], ['all/b', '900']]);
  for (const arrival of delayed) {
    assert.ok(arrival.at - at >= Number(arrival.body), `${arrival.body} came early`);
    assert.equal(arrival.packet.properties.userProperties.kept, 'yes');
  }

  // A delay that cannot be used closes the connection of the client that asked for it.
  const doomed = await connect();
  const closed = new Promise((resolve) => { doomed.once('close', resolve); });
  doomed.on('error', () => {});
  doomed.publish('all', 'x', { qos: 1, properties: { userProperties: { 'x-delay': 'soon' } } },
    () => {});
  await closed;
}

await client.publishAsync('all', 'after it', { qos: 1 });
assert.equal((await arrived(1))[0].body, 'after it');
clearTimeout(late);
await connection.close();
await client.endAsync();
console.log('ok');
process.exit(0);
