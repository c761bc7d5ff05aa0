// SPDX-License-Identifier: MPL-2.0
// Cancel: what was to happen later does not happen, because something else has. A message with the
// header x-delay-cancel cancels what is pending under that key, and does nothing else.
//
//     npm install amqplib
//     node cancel.js [amqp://guest:guest@localhost:5672]
"use strict";

const { run } = require("./example");

run("example.cancel", {}, "expire", async (publish) => {
  for (const order of ["order 1", "order 2", "order 3"]) {
    await publish(order, { headers: { "x-delay": 1000, "x-delay-key": order } });
  }
  // Order 2 is paid for in time.
  await publish("", { headers: { "x-delay-cancel": "order 2" } });
}, (body) => console.log("expired:", body));
