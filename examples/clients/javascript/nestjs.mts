// SPDX-License-Identifier: MPL-2.0
// NestJS: a microservice behind a delayed exchange, and a client that sends it events for later.
//
//     npm install @nestjs/common @nestjs/core @nestjs/microservices amqplib amqp-connection-manager \
//         reflect-metadata rxjs
//     npx tsc --experimentalDecorators --emitDecoratorMetadata --module nodenext --target es2022 --types node nestjs.mts
//     node nestjs.mjs [amqp://guest:guest@localhost:5672]

import "reflect-metadata";
import { Controller, Module } from "@nestjs/common";
import { NestFactory } from "@nestjs/core";
import {
  ClientProxyFactory, Ctx, EventPattern, type MicroserviceOptions, Payload, RmqContext, type RmqOptions,
  RmqRecordBuilder, Transport,
} from "@nestjs/microservices";
import { lastValueFrom } from "rxjs";

const rabbitmq: RmqOptions = {
  transport: Transport.RMQ,
  options: {
    urls: [process.argv[2] ?? "amqp://guest:guest@localhost:5672"],
    // The patterns of events are routing keys of this exchange.
    wildcards: true,
    exchange: "later",
    exchangeType: "x-delayed-message",
    // Else a wrong delay closes the channel, and other events fail until Nest has connected again.
    exchangeArguments: { "x-delayed-type": "topic", "x-delay-unusable": "nack" },
    queue: "work",
    // What a handler rejects goes to an exchange that gives it back later: see docs/retries.md.
    queueOptions: { durable: true, arguments: { "x-dead-letter-exchange": "retry" } },
    noAck: false,
    persistent: true,
  },
};

let left = 2;
let done: () => void;
const finished = new Promise<void>((resolve) => { done = resolve; });

@Controller()
class Orders {
  @EventPattern("order.*")
  async expire(@Payload() order: { id: number, sent: number }, @Ctx() context: RmqContext) {
    const message = context.getMessage();
    const seconds = ((Date.now() - order.sent) / 1000).toFixed(1);
    console.log(`order ${order.id}, ${seconds} s later, x-delay: ${message.properties.headers["x-delay"]}`);
    context.getChannelRef().ack(message);
    left -= 1;
    if (left === 0) done();
  }
}

@Module({ controllers: [Orders] })
class Application {}

const application = await NestFactory.createMicroservice<MicroserviceOptions>(
  Application, { ...rabbitmq, logger: ["error"] });
await application.listen();

// A client of its own declares no queue.
const { urls, wildcards, exchange, exchangeType, exchangeArguments } = rabbitmq.options!;
const client = ClientProxyFactory.create({
  transport: Transport.RMQ,
  options: { urls, wildcards, exchange, exchangeType, exchangeArguments, persistent: true },
});

async function emit(id: number, headers: Record<string, unknown>) {
  const record = new RmqRecordBuilder({ id, sent: Date.now() })
    .setOptions({ headers: headers as Record<string, string> }).build();
  await lastValueFrom(client.emit("order.expire", record), { defaultValue: null });
}

await emit(1, { "x-delay": 2000 });
await emit(2, { "x-delay": 60000, "x-delay-key": "order 2" });
await emit(2, { "x-delay-cancel": "order 2" });
await emit(3, { "x-delay": "5m" }).catch((error) => console.log(`order 3: ${error.message}`));
await emit(4, {});
await finished;
await client.close();
await application.close();
