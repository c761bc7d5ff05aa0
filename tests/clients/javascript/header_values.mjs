// SPDX-License-Identifier: MPL-2.0
// header_values.mjs CLIENT URL EXCHANGE CASES: sends the cases of ../header_values.py with amqplib, rascal
// or rhea.

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
const send = { amqplib: withAmqplib, rascal: withRascal, rhea: withRhea }[client];
await send(url, exchange, JSON.parse(text), told);
console.log(JSON.stringify(told));
