// SPDX-License-Identifier: MPL-2.0
// header_values.mjs CLIENT URL EXCHANGE CASES: sends the cases of ../header_values.py with amqplib, rascal,
// rabbitmq-client, rhea, mqtt (to the topic k: the exchange is a setting of the broker's) or stompjs.

import { once } from "node:events";
import { readFileSync } from "node:fs";

const TYPES = {
  b: "int8", B: "uint8", s: "int16", u: "uint16", I: "int32", i: "uint32", l: "int64", f: "float",
  d: "double", T: "timestamp",
};

function native(type, value) {
  if (type in TYPES) return { "!": TYPES[type], value };
  if (type === "D") return { "!": "decimal", value: { digits: value[0] >>> 0, places: value[1] } };
  if (type === "x") return Buffer.from(value);
  return value;
}

function headersOf({ type, value, copy }) {
  const header = native(type, value);
  return copy ? { "x-delay": header, copy: header } : { "x-delay": header };
}

async function withAmqplib(url, exchange, cases, told) {
  const { default: amqp } = await import("amqplib");
  const connection = await amqp.connect(url);
  for (const one of cases) {
    const channel = await connection.createConfirmChannel();
    let reason = null;
    channel.on("error", (error) => { reason = error.message; });
    try {
      channel.publish(exchange, "k", Buffer.from(one.name), { headers: headersOf(one) });
      await channel.waitForConfirms();
      await channel.close();
      told[one.name] = null;
    } catch (error) {
      told[one.name] = reason ?? error.message;
    }
  }
  await connection.close();
}

async function withRascal(url, exchange, cases, told) {
  const { default: rascal } = await import("rascal");
  const broker = await rascal.BrokerAsPromised.create({
    vhosts: {
      "/": {
        connection: { url },
        exchanges: { [exchange]: { assert: false } },
        publications: { later: { exchange, routingKey: "k", confirm: true } },
      },
    },
  });
  broker.on("error", () => {});
  for (const one of cases) {
    const sent = await broker.publish("later", one.name, { options: { headers: headersOf(one) } });
    told[one.name] = await new Promise((resolve) => {
      let reason;
      sent.on("success", () => resolve(null));
      // "channel closed", and right after it why.
      sent.on("error", (error) => {
        reason = error.message;
        setImmediate(() => resolve(reason));
      });
    });
  }
  await broker.shutdown();
}

async function withRabbitmqClient(url, exchange, cases, told) {
  const { Connection } = await import("rabbitmq-client");
  const connection = new Connection(url);
  const publisher = connection.createPublisher({ confirm: true });
  // A number that is a whole one is written as an integer of as many bytes as it needs, and so is 2.0.
  const typed = ({ type, value }) => (type === "l" ? BigInt(value) : value);
  for (const one of cases) {
    const header = typed(one);
    const headers = one.copy ? { "x-delay": header, copy: header } : { "x-delay": header };
    told[one.name] = await publisher.send({ exchange, routingKey: "k", headers }, one.name)
      .then(() => null, (error) => error.message);
  }
  await publisher.close();
  await connection.close();
}

// Each in a connection of its own, which a wrong delay ends.
async function withMqtt(url, exchange, cases, told) {
  const { default: mqtt } = await import("mqtt");
  for (const { name, value, copy } of cases) {
    const client = await mqtt.connectAsync(url, { protocolVersion: 5, reconnectPeriod: 0 });
    const userProperties = copy ? { "x-delay": value, copy: value } : { "x-delay": value };
    client.on("error", () => {});
    told[name] = await new Promise((resolve) => {
      client.once("close", () => resolve("closed"));
      client.publish("k", name, { qos: 1, properties: { userProperties } },
        (error) => { if (!error) resolve(null); });
    });
    await client.endAsync(true);
  }
}

async function withStompjs(url, exchange, cases, told) {
  const { Client } = await import("@stomp/stompjs");
  const { WebSocket } = await import("ws");
  for (const { name, value, copy } of cases) {
    told[name] = await new Promise((resolve) => {
      const client = new Client({
        webSocketFactory: () => new WebSocket(url, ["v12.stomp"]),
        connectHeaders: { login: "guest", passcode: "guest", host: "/" },
        reconnectDelay: 0,
        onWebSocketClose: () => resolve("closed"),
        onConnect: () => {
          client.watchForReceipt("taken", async () => {
            resolve(null);
            await client.deactivate();
          });
          client.publish({ destination: `/exchange/${exchange}/k`, body: name,
            headers: { "x-delay": value, ...(copy && { copy: value }), receipt: "taken" } });
        },
      });
      client.activate();
    });
  }
}

async function withRhea(url, exchange, cases, told) {
  const { default: rhea } = await import("rhea");
  const { types } = rhea;
  const typed = {
    b: types.wrap_byte, B: types.wrap_ubyte, s: types.wrap_short, u: types.wrap_ushort,
    I: types.wrap_int, i: types.wrap_uint, f: types.wrap_float, d: types.wrap_double,
    T: (seconds) => types.wrap_timestamp(seconds * 1000),
    l: (value) => {
      const octets = Buffer.alloc(8);
      octets.writeBigInt64BE(BigInt(value));
      return types.wrap_long(octets);
    },
    x: (value) => types.wrap_binary(Buffer.from(value)),
  };
  const { hostname: host, port, username, password } = new URL(url);
  const connection = rhea.create_container()
    .connect({ host, port: Number(port), username, password });
  await once(connection, "connection_open");
  for (const { name, type, value, copy } of cases) {
    const session = connection.create_session();
    session.begin();
    const sender = session.open_sender(`/exchanges/${exchange}/k`);
    await once(sender, "sendable");
    const header = type in typed ? typed[type](value) : value;
    told[name] = await new Promise((resolve) => {
      sender.once("accepted", () => resolve(null));
      for (const outcome of ["rejected", "released", "modified"]) {
        sender.once(outcome, () => resolve(outcome));
      }
      session.once("session_error", ({ session: ended }) => resolve(ended.error.description));
      sender.send({ body: rhea.message.data_section(Buffer.from(name)),
        message_annotations: { "x-delay": header },
        application_properties: copy ? { copy: header } : {} });
    });
    if (told[name] === null) session.close();
  }
  connection.close();
}

const [client, url, exchange, path] = process.argv.slice(2);
// JSON's numbers are doubles here.
const text = readFileSync(path, "utf8").replace(/("value": )(-?\d{16,})(?=[,}])/g, '$1"$2"');
const told = {};
const send = {
  amqplib: withAmqplib, rascal: withRascal, "rabbitmq-client": withRabbitmqClient, rhea: withRhea,
  mqtt: withMqtt, stompjs: withStompjs,
}[client];
await send(url, exchange, JSON.parse(text), told);
console.log(JSON.stringify(told));
