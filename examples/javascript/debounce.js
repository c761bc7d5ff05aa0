// SPDX-License-Identifier: MPL-2.0
// Debounce: a burst of changes to one thing leads to one message, a while after the last of them.
// Each change replaces the delayed message of the one before it, because it has the same key.
//
//     npm install amqplib
//     node debounce.js [amqp://guest:guest@localhost:5672]
"use strict";

const { run, sleep } = require("./example");

run("example.debounce", {}, "reindex", async (publish) => {
  // Asks for a reindex one second from now, unless another change comes before.
  const changed = (document, version) =>
    publish(`${document}: version ${version}`, {
      headers: {
        "x-delay": 1000,
        "x-delay-key": `reindex ${document}`,
        "x-delay-on-duplicate": "replace",
      },
    });
  for (let version = 1; version <= 5; version++) {
    await changed("report.odt", version);
    await sleep(100);
  }
  await changed("letter.odt", 1);
}, (body) => console.log("reindex", body));
