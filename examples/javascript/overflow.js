// SPDX-License-Identifier: MPL-2.0
// A full exchange that keeps what is due soonest: only the next three appointments are of interest,
// so what is due last makes room, and is seen where a dead-letter exchange takes it (that is set by a
// policy: "delay-dead-letter-exchange"). The rest is released one after another, ten in a second at
// most.
//
//     npm install amqplib
//     node overflow.js [amqp://guest:guest@localhost:5672]
"use strict";

const { run } = require("./example");

run("example.overflow", { "x-delay-max-length": 3, "x-delay-overflow": "drop-latest-due",
                          "x-delay-release-rate": 10 }, "appointment",
  async (publish) => {
    for (const [name, delay] of [["dentist", 2500], ["holiday", 60000], ["lunch", 1000],
                                 ["next year", 3600000], ["tea", 4000]]) {
      await publish(name, { headers: { "x-delay": delay } });
    }
  }, (body) => console.log("now:", body));
