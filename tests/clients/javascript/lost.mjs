// SPDX-License-Identifier: MPL-2.0
// lost.mjs CLIENT URL: what a client says of a broker that is lost while a confirm is out (../lost.py).

import { once } from "node:events";

const [client, url] = process.argv.slice(2);
const ready = async () => {
  console.log("ready");
  await once(process.stdin, "data");
};
const sent = () => setImmediate(() => console.log("sent"));

async function amqplib() {
  const { default: amqp } = await import("amqplib");
  const connection = await amqp.connect(url);
  const events = [];
  connection.on("error", (error) => events.push(`connection error: ${error.message}`));
  connection.on("close", () => events.push("connection closed"));
  const channel = await connection.createConfirmChannel();
  await channel.assertQueue("lost", { durable: true });
  await ready();
  channel.sendToQueue("lost", Buffer.from("x"), { persistent: true });
  sent();
  try {
    await channel.waitForConfirms();
  } catch (error) {
    console.log(error.message);
  }
  if (events.length < 2) await once(connection, "close");
  console.log(events.join(", "));
}

async function rascal() {
  const { default: library } = await import("rascal");
  const broker = await library.BrokerAsPromised.create({
    vhosts: {
      "/": {
        connection: { url },
        queues: { lost: {} },
        publications: { lost: { queue: "lost", confirm: true } },
      },
    },
  });
  broker.on("error", () => {});
  await ready();
  const publication = await broker.publish("lost", "x");
  sent();
  console.log(await new Promise((resolve) => {
    publication.on("success", () => resolve("confirmed"));
    publication.on("error", (error) => resolve(`error: ${error.message}`));
    publication.on("return", () => resolve("returned"));
  }));
}

async function rabbitmqClient() {
  const { Connection } = await import("rabbitmq-client");
  const connection = new Connection(url);
  connection.on("error", () => {});
  const publisher = connection.createPublisher({ confirm: true, queues: [{ queue: "lost", durable: true }] });
  await connection.queueDeclare({ queue: "lost", durable: true });
  await ready();
  const outcome = publisher.send({ routingKey: "lost", durable: true }, "x");
  sent();
  await outcome.then(() => console.log("confirmed"), (error) => console.log(`${error.code}: ${error.message}`));
}

async function rhea() {
  const { default: library } = await import("rhea");
  const { hostname: host, port, username, password } = new URL(url);
  const options = { host, port: Number(port), username, password };
  // It publishes to the queue that another client declares.
  const { default: amqp } = await import("amqplib");
  const other = await amqp.connect(url);
  await (await other.createChannel()).assertQueue("lost", { durable: true });
  await other.close();
  const connection = library.create_container().connect({ ...options, reconnect: false });
  const sender = connection.open_sender("/queues/lost");
  await once(sender, "sendable");
  const outcomes = ["accepted", "rejected", "released", "modified"];
  const told = new Promise((resolve) => {
    outcomes.forEach((outcome) => sender.on(outcome, () => resolve(outcome)));
    connection.on("disconnected", () => resolve("disconnected"));
  });
  await ready();
  sender.send({ body: "x", durable: true });
  sent();
  console.log(await told);
}

async function mqtt() {
  const { default: library } = await import("mqtt");
  const connection = await library.connectAsync(url, { protocolVersion: 5, reconnectPeriod: 0 });
  connection.on("error", () => {});
  const told = new Promise((resolve) => { connection.once("close", resolve); });
  await ready();
  connection.publish("lost", "x", { qos: 1 }, (error) => console.log(error ? "failed" : "taken"));
  sent();
  await told;
  console.log("closed");
}

async function stompjs() {
  const { Client } = await import("@stomp/stompjs");
  const { WebSocket } = await import("ws");
  const connection = new Client({
    webSocketFactory: () => new WebSocket(url, ["v12.stomp"]),
    connectHeaders: { login: "guest", passcode: "guest", host: "/" }, reconnectDelay: 0,
  });
  const told = new Promise((resolve) => {
    connection.onWebSocketClose = (event) => resolve(`closed: ${event.code}`);
  });
  await new Promise((resolve) => {
    connection.onConnect = resolve;
    connection.activate();
  });
  await ready();
  connection.watchForReceipt("taken", () => console.log("taken"));
  connection.publish({ destination: "/queue/lost", body: "x", headers: { receipt: "taken" } });
  sent();
  console.log(await told);
}

// It does not say when a message is sent.
async function nestjs() {
  const { ClientProxyFactory, Transport } = await import("@nestjs/microservices");
  const { Logger } = await import("@nestjs/common");
  const { lastValueFrom } = await import("rxjs");
  Logger.overrideLogger(false);
  const connection = ClientProxyFactory.create({
    transport: Transport.RMQ,
    options: { urls: [url], queue: "lost", queueOptions: { durable: true }, persistent: true },
  });
  const emit = () => lastValueFrom(connection.emit("lost", "x"), { defaultValue: null });
  await emit();
  await ready();
  await emit().then(() => console.log("taken"), (error) => console.log(`error: ${error.message}`));
}

await ({
  amqplib, rascal, "rabbitmq-client": rabbitmqClient, rhea, mqtt, stompjs, nestjs,
}[client])();
process.exit(0);
