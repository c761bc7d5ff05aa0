// SPDX-License-Identifier: MPL-2.0
// A delayed message, one that is returned, one that is refused, one that is cancelled.
//
// With com.rabbitmq:amqp-client and org.slf4j:slf4j-api on the class path:
//
//     java -cp 'jars/*' Delays.java [amqp://guest:guest@localhost:5672]

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;

public class Delays {
    private static final String EXCHANGE = "example.jvm.delays";
    private static final String QUEUE = "example.jvm.jobs";

    private static void publish(Channel channel, String key, String body,
                                Map<String, Object> headers) throws Exception {
        channel.basicPublish(EXCHANGE, key, true, new AMQP.BasicProperties.Builder()
            .deliveryMode(2).headers(headers).build(), body.getBytes(StandardCharsets.UTF_8));
    }

    private static String text(byte[] body) {
        return new String(body, StandardCharsets.UTF_8);
    }

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args.length > 0 ? args[0] : "amqp://guest:guest@localhost:5672");
        try (Connection connection = factory.newConnection()) {
            Channel channel = connection.createChannel();
            channel.exchangeDeclare(EXCHANGE, "x-delayed-message", true, false,
                Map.of("x-delayed-type", "direct"));
            channel.queueDeclare(QUEUE, true, false, false, null);
            channel.queueBind(QUEUE, EXCHANGE, "job");
            BlockingQueue<Delivery> arrived = new LinkedBlockingQueue<>();
            channel.basicConsume(QUEUE, true, (tag, delivery) -> arrived.add(delivery), tag -> { });

            Channel publisher = connection.createChannel();
            publisher.confirmSelect();
            BlockingQueue<String> returned = new LinkedBlockingQueue<>();
            publisher.addReturnListener(message -> returned.add(text(message.getBody())));

            long began = System.currentTimeMillis();
            publish(publisher, "job", "job 1", Map.of("x-delay", 1000));
            publisher.waitForConfirmsOrDie();
            Delivery delivery = arrived.take();
            System.out.printf("%s after %.1f s, x-delay is %s%n", text(delivery.getBody()),
                (System.currentTimeMillis() - began) / 1000.0,
                delivery.getProperties().getHeaders().get("x-delay"));

            // What is delayed is not returned: whether a queue is bound is known when it is due.
            publish(publisher, "nobody", "later", Map.of("x-delay", 1));
            publish(publisher, "nobody", "at once", Map.of());
            System.out.println("returned: " + returned.take());

            publish(publisher, "job", "job 2", Map.of("x-delay", 1000, "x-delay-key", "two"));
            publish(publisher, "job", "", Map.of("x-delay-cancel", "two"));
            publish(publisher, "job", "job 3", Map.of("x-delay", 1500));
            publisher.waitForConfirmsOrDie();
            System.out.println(text(arrived.take().getBody()) + ", and job 2 is cancelled");

            // A wrong delay closes the channel. What it had not confirmed by then is sent again.
            CompletableFuture<AMQP.Channel.Close> closed = new CompletableFuture<>();
            publisher.addShutdownListener(
                signal -> closed.complete((AMQP.Channel.Close) signal.getReason()));
            publish(publisher, "job", "job 4", Map.of("x-delay", "5m"));
            System.out.printf("refused: %d %s%n", closed.get().getReplyCode(),
                closed.get().getReplyText());

            channel.queueDelete(QUEUE);
            channel.exchangeDelete(EXCHANGE);
        }
    }
}
