// SPDX-License-Identifier: MPL-2.0
// Retry: what fails is tried again later, and is parked when it has failed too often. The consumer
// only rejects. Its queue dead-letters to a delayed exchange, which gives each message back to the
// queue after a pause that grows, three times at most.
//
// With amqp-client.jar and slf4j-api.jar (Debian: apt install librabbitmq-client-java):
//
//     java -cp amqp-client.jar:slf4j-api.jar Retry.java [amqp://guest:guest@localhost:5672]

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.Delivery;
import com.rabbitmq.client.MessageProperties;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;

public class Retry {
    private static final String EXCHANGE = "example.retry";
    private static final String ORDERS = "example.retry.orders";
    private static final String PARKED = "example.retry.parked";

    /** Which attempt this is: one more than it was rejected. */
    private static long attemptOf(AMQP.BasicProperties properties) {
        Map<String, Object> headers = properties.getHeaders();
        long attempt = 1;
        if (headers != null && headers.get("x-death") instanceof List<?> deaths) {
            for (Object entry : deaths) {
                Map<?, ?> death = (Map<?, ?>) entry;
                if (ORDERS.equals(death.get("queue").toString())) {
                    attempt += (Long) death.get("count");
                }
            }
        }
        return attempt;
    }

    /** Order 1 can be done when the warehouse is back, order 2 never. */
    private static void work(String order, long attempt) {
        if (order.equals("order 2") || attempt < 3) {
            throw new IllegalStateException("no answer");
        }
    }

    private static void publish(Channel channel, String order) throws IOException {
        channel.basicPublish("", ORDERS, MessageProperties.PERSISTENT_BASIC,
            order.getBytes(StandardCharsets.UTF_8));
    }

    private static void onOrder(Channel channel, Delivery delivery) throws IOException {
        String order = new String(delivery.getBody(), StandardCharsets.UTF_8);
        long attempt = attemptOf(delivery.getProperties());
        long tag = delivery.getEnvelope().getDeliveryTag();
        try {
            work(order, attempt);
        } catch (IllegalStateException e) {
            System.out.printf("%s, attempt %d: %s%n", order, attempt, e.getMessage());
            channel.basicReject(tag, false);
            return;
        }
        System.out.printf("%s, attempt %d: done%n", order, attempt);
        channel.basicAck(tag, false);
        publish(channel, "order 2");
    }

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args.length > 0 ? args[0] : "amqp://guest:guest@localhost:5672");
        try (Connection connection = factory.newConnection()) {
            Channel channel = connection.createChannel();
            channel.exchangeDeclare(EXCHANGE, "x-delayed-message", true, false, Map.of(
                "x-delayed-type", "direct",
                "x-delay-retry", "100ms,200ms,400ms",
                "x-delay-retry-parking-exchange", "",
                "x-delay-retry-parking-routing-key", PARKED));
            channel.queueDeclare(PARKED, true, false, false, null);
            channel.queueDeclare(ORDERS, true, false, false,
                Map.of("x-dead-letter-exchange", EXCHANGE));

            CompletableFuture<Delivery> parked = new CompletableFuture<>();
            channel.basicConsume(ORDERS, false, (tag, delivery) -> onOrder(channel, delivery),
                tag -> { });
            channel.basicConsume(PARKED, true, (tag, delivery) -> parked.complete(delivery),
                tag -> { });
            publish(channel, "order 1");
            Delivery delivery = parked.get();
            Map<String, Object> headers = delivery.getProperties().getHeaders();
            System.out.printf("%s is parked: %s, %s times rejected%n",
                new String(delivery.getBody(), StandardCharsets.UTF_8),
                headers.get("x-delay-death-reason"), headers.get("x-delay-death-count"));

            channel.queueDelete(ORDERS);
            channel.queueDelete(PARKED);
            channel.exchangeDelete(EXCHANGE);
        }
    }
}
