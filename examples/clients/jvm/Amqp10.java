// SPDX-License-Identifier: MPL-2.0
// AMQP 1.0, RabbitMQ 4.0 and later: the delay is a message annotation. A delayed message, one that is returned, a
// cancel, a wrong delay and a retry.
//
// With com.rabbitmq.client:amqp-client and what it needs on the class path:
//
//     java -cp 'jars/*' Amqp10.java [amqp://guest:guest@localhost:5672]

import com.rabbitmq.client.amqp.Connection;
import com.rabbitmq.client.amqp.Consumer;
import com.rabbitmq.client.amqp.Environment;
import com.rabbitmq.client.amqp.Management;
import com.rabbitmq.client.amqp.Message;
import com.rabbitmq.client.amqp.Publisher;
import com.rabbitmq.client.amqp.impl.AmqpEnvironmentBuilder;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.atomic.AtomicInteger;

public class Amqp10 {
    private static final String EXCHANGE = "example.jvm.amqp10";
    private static final String QUEUE = "example.jvm.amqp10.jobs";
    private static final String RETRY = "example.jvm.amqp10.retry";
    private static final String ORDERS = "example.jvm.amqp10.orders";
    private static final String PARKED = "example.jvm.amqp10.parked";

    private static Message message(Publisher publisher, String body) {
        return publisher.message(body.getBytes()).durable(true);
    }

    /** What the broker made of it. */
    private static String sent(Publisher publisher, Message message) throws Exception {
        CompletableFuture<String> outcome = new CompletableFuture<>();
        publisher.publish(message, context -> outcome.complete(context.failureCause() == null
            ? context.status().toString()
            : context.status() + ": " + context.failureCause().getMessage()));
        return outcome.get();
    }

    /** What is to be routed at once is released if no queue is bound. What is delayed is accepted. */
    private static void mandatory(Connection connection) throws Exception {
        try (Publisher nobody = connection.publisherBuilder().exchange(EXCHANGE).key("nobody").build()) {
            System.out.println("at once: " + sent(nobody, message(nobody, "hello")));
            System.out.println("later: " + sent(nobody, message(nobody, "hello").annotation("x-delay", 1000L)));
        }
    }

    /** Discarded, it comes again after a pause, three times at most, and is parked then. */
    private static void retry(Connection connection, Management management) throws Exception {
        management.exchange(RETRY).type("x-delayed-message").argument("x-delayed-type", "direct")
            .argument("x-delay-retry", "100ms,200ms,400ms").argument("x-delay-retry-parking-exchange", "")
            .argument("x-delay-retry-parking-routing-key", PARKED).declare();
        management.queue(PARKED).quorum().queue().declare();
        management.queue(ORDERS).quorum().queue().deadLetterExchange(RETRY).declare();
        BlockingQueue<String> parked = new LinkedBlockingQueue<>();
        AtomicInteger attempts = new AtomicInteger();
        try (Publisher publisher = connection.publisherBuilder().queue(ORDERS).build();
                Consumer orders = connection.consumerBuilder().queue(ORDERS)
                    .messageHandler((context, message) -> {
                        System.out.println(new String(message.body()) + ", attempt "
                            + attempts.incrementAndGet());
                        context.discard();
                    }).build();
                Consumer ofParked = connection.consumerBuilder().queue(PARKED)
                    .messageHandler((context, message) -> {
                        parked.add(new String(message.body()) + " is parked: "
                            + message.annotation("x-delay-death-reason"));
                        context.accept();
                    }).build()) {
            sent(publisher, message(publisher, "order 1"));
            System.out.println(parked.take());
        }
        management.queueDelete(ORDERS);
        management.queueDelete(PARKED);
        management.exchangeDelete(RETRY);
    }

    public static void main(String[] args) throws Exception {
        Environment environment = new AmqpEnvironmentBuilder().build();
        try (environment; Connection connection = environment.connectionBuilder()
                .uri(args.length > 0 ? args[0] : "amqp://guest:guest@localhost:5672").build()) {
            Management management = connection.management();
            management.exchange(EXCHANGE).type("x-delayed-message")
                .argument("x-delayed-type", "direct").declare();
            management.queue(QUEUE).quorum().queue().declare();
            management.binding().sourceExchange(EXCHANGE).key("job").destinationQueue(QUEUE).bind();

            BlockingQueue<String> arrived = new LinkedBlockingQueue<>();
            Consumer consumer = connection.consumerBuilder().queue(QUEUE)
                .messageHandler((context, message) -> {
                    arrived.add(new String(message.body()) + ", x-delay is "
                        + message.annotation("x-delay"));
                    context.accept();
                }).build();
            Publisher publisher = connection.publisherBuilder().exchange(EXCHANGE).key("job").build();

            long began = System.currentTimeMillis();
            System.out.println(sent(publisher, message(publisher, "job 1").annotation("x-delay", 1000L)));
            System.out.printf("%s, after %.1f s%n", arrived.take(),
                (System.currentTimeMillis() - began) / 1000.0);

            sent(publisher, message(publisher, "job 2").annotation("x-delay", 1000L)
                .annotation("x-delay-key", "two"));
            sent(publisher, message(publisher, "").annotation("x-delay-cancel", "two"));
            sent(publisher, message(publisher, "job 3").annotation("x-delay", 1500L));
            System.out.println(arrived.take());

            mandatory(connection);
            retry(connection, management);

            // A wrong delay closes the publisher.
            System.out.println(sent(publisher, message(publisher, "job 4").annotation("x-delay", "5m")));

            consumer.close();
            management.queueDelete(QUEUE);
            management.exchangeDelete(EXCHANGE);
        }
    }
}
