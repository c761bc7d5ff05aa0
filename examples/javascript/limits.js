// SPDX-License-Identifier: MPL-2.0
// Limits and defaults of an exchange: a delay for messages that ask for none, and so many messages
// pending at most. What is beyond is refused: the publisher sees a nack. (A policy can say the
// same: "delay-default" and "delay-max-length".)
//
//     npm install amqplib
//     node limits.js [amqp://guest:guest@localhost:5672]
"use strict";

const { run } = require("./example");

run("example.limits", { "x-delay-default": 1000, "x-delay-max-length": 3 }, "job",
  async (publish) => {
    for (let number = 1; number <= 5; number++) {
      await publish(`job ${number}`, {}).catch(() => console.log("refused: job", number));
    }
  }, (body) => console.log("done:", body));
