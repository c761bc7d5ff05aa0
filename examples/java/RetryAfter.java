// SPDX-License-Identifier: MPL-2.0
// Retry-After: a consumer that cannot handle a message now says when it is to come back. It publishes the
// message again, with the time, to a delayed exchange, awaits the confirm, and only then acknowledges the
// one that it got. If it ends between the two, the message comes twice; it is never lost.
//
// With amqp-client.jar and slf4j-api.jar (Debian: apt install librabbitmq-client-java):
//
//     java -cp amqp-client.jar:slf4j-api.jar RetryAfter.java [amqp://guest:guest@localhost:5672]

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.GetResponse;
import java.nio.charset.StandardCharsets;
import java.util.HashMap;
import java.util.Map;

public class RetryAfter {
    private static final String EXCHANGE = "example.later";
    private static final String ORDERS = "example.later.orders";

    /** What a service answers with 429 or 503, and its header Retry-After. */
    private static class Busy extends Exception {
        final long retryAfterMs;

        Busy(long retryAfterMs) {
            super("busy, again in " + retryAfterMs + " ms");
            this.retryAfterMs = retryAfterMs;
        }
    }

    private static void work(long attempt) throws Busy {
        if (attempt < 3) {
            throw new Busy(500);
        }
    }

    /** Whether it is done. */
    private static boolean onOrder(Channel channel, GetResponse message) throws Exception {
        Map<String, Object> headers = message.getProps().getHeaders() == null
            ? Map.of() : message.getProps().getHeaders();
        String order = new String(message.getBody(), StandardCharsets.UTF_8);
        long attempt = (Long) headers.getOrDefault("attempt", 1L);
        if (System.currentTimeMillis() < (Long) headers.getOrDefault("x-opt-delivery-time", 0L)) {
            throw new IllegalStateException("too early");
        }
        boolean done = true;
        try {
            work(attempt);
            System.out.printf("%s, attempt %d: done%n", order, attempt);
        } catch (Busy busy) {
            System.out.printf("%s, attempt %d: %s%n", order, attempt, busy.getMessage());
            // All else stays as it is, its message id too, by which it can be found and cancelled meanwhile.
            Map<String, Object> with = new HashMap<>(headers);
            with.put("attempt", attempt + 1);
            with.put("x-opt-delivery-time", System.currentTimeMillis() + busy.retryAfterMs);
            channel.basicPublish(EXCHANGE, ORDERS, true, message.getProps().builder().headers(with).build(),
                message.getBody());
            channel.waitForConfirmsOrDie();
            done = false;
        }
        channel.basicAck(message.getEnvelope().getDeliveryTag(), false);
        return done;
    }

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args.length > 0 ? args[0] : "amqp://guest:guest@localhost:5672");
        try (Connection connection = factory.newConnection(); Channel channel = connection.createChannel()) {
            channel.confirmSelect();
            channel.exchangeDeclare(EXCHANGE, "x-delayed-message", true, false,
                Map.of("x-delayed-type", "direct"));
            channel.queueDeclare(ORDERS, true, false, false, null);
            channel.queueBind(ORDERS, EXCHANGE, ORDERS);
            channel.basicPublish("", ORDERS, new AMQP.BasicProperties.Builder().deliveryMode(2)
                .messageId("order-1").build(), "order 1".getBytes(StandardCharsets.UTF_8));
            channel.waitForConfirmsOrDie();

            boolean done = false;
            while (!done) {
                GetResponse message = channel.basicGet(ORDERS, false);
                if (message == null) {
                    Thread.sleep(50);
                } else {
                    done = onOrder(channel, message);
                }
            }
            channel.queueDelete(ORDERS);
            channel.exchangeDelete(EXCHANGE);
        }
    }
}
