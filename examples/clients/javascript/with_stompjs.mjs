// SPDX-License-Identifier: MPL-2.0
// STOMP over a WebSocket, with stompjs. The exchange `later` and the queue `work`, bound to it with the
// key "job", are there already.
//
//     npm install @stomp/stompjs ws
//     node with_stompjs.mjs [ws://localhost:15674/ws]

import { Client } from "@stomp/stompjs";
import { WebSocket } from "ws";

const url = process.argv[2] ?? "ws://localhost:15674/ws";

function connect(options) {
  return new Promise((resolve) => {
    const client = new Client({
      // A browser has one of its own, and takes brokerURL.
      webSocketFactory: () => new WebSocket(url, ["v12.stomp"]),
      connectHeaders: { login: "guest", passcode: "guest", host: "/" },
      reconnectDelay: 0,
      onConnect: () => resolve(client),
      ...options,
    });
    client.activate();
  });
}

const client = await connect();
// The receipt comes when the broker has the message on disk.
function send(text, headers) {
  return new Promise((resolve) => {
    const receipt = crypto.randomUUID();
    client.watchForReceipt(receipt, resolve);
    client.publish({ destination: "/exchange/later/job", body: text,
      headers: { ...headers, receipt, persistent: "true" } });
  });
}

const published = Date.now();
const message = new Promise((resolve) => client.subscribe("/amq/queue/work", resolve));
await send("order 1", { "x-delay": "5000", "x-delay-key": "order 1" });
await send("hello", { "x-delay": "6000" });
await send("", { "x-delay-cancel": "order 1" });

// A wrong delay ends the connection of who asked for it.
const reason = new Promise((resolve) => {
  connect({
    onStompError: (frame) => resolve(`${frame.headers.message}: ${frame.body}`),
    onWebSocketClose: (event) => resolve(`the connection is closed, ${event.code}`),
  }).then((doomed) => doomed.publish({ destination: "/exchange/later/job", body: "hello",
    headers: { "x-delay": "5m" } }));
});
console.log(`5m: ${await reason}`);

const { body, headers } = await message;
console.log(`${body}, ${((Date.now() - published) / 1000).toFixed(1)} s later`);
console.log(`x-delay: ${headers["x-delay"]}`);
await client.deactivate();
