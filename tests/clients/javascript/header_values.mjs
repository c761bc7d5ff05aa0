// SPDX-License-Identifier: MPL-2.0
// header_values.mjs URL EXCHANGE CASES: sends the cases of ../header_values.py with amqplib.

import { readFileSync } from "node:fs";
import amqp from "amqplib";

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

const [url, exchange, path] = process.argv.slice(2);
// JSON's numbers are doubles here.
const text = readFileSync(path, "utf8").replace(/("value": )(-?\d{16,})(?=[,}])/g, '$1"$2"');
const connection = await amqp.connect(url);
const told = {};
for (const { name, type, value, copy } of JSON.parse(text)) {
  const channel = await connection.createConfirmChannel();
  let reason = null;
  channel.on("error", (error) => { reason = error.message; });
  const header = native(type, value);
  const headers = copy ? { "x-delay": header, copy: header } : { "x-delay": header };
  try {
    channel.publish(exchange, "k", Buffer.from(name), { headers });
    await channel.waitForConfirms();
    await channel.close();
    told[name] = null;
  } catch (error) {
    told[name] = reason ?? error.message;
  }
}
await connection.close();
console.log(JSON.stringify(told));
