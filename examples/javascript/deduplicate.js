// SPDX-License-Identifier: MPL-2.0
// Deduplicate: however often it is asked for, a thing is done once. The first message with a key
// stays; those that come while it is pending are confirmed and dropped. Here the messageId is the
// key, as it is wherever there is no x-delay-key.
//
//     npm install amqplib
//     node deduplicate.js [amqp://guest:guest@localhost:5672]
"use strict";

const { run } = require("./example");

run("example.deduplicate", {}, "reminder", async (publish) => {
  const remind = (invoice, attempt) =>
    publish(`${invoice}, attempt ${attempt}`, {
      messageId: `reminder ${invoice}`,
      headers: { "x-delay": 1000, "x-delay-on-duplicate": "drop" },
    });
  for (const attempt of [1, 2, 3]) {
    await remind("invoice 17", attempt);
  }
  await remind("invoice 18", 1);
}, (body) => console.log("remind of", body));
