// SPDX-License-Identifier: MPL-2.0
// The official Java client, which Spring AMQP stands on. Headers reach the wire as Integer, Long,
// Short, Byte, String, Double or BigDecimal, and come back as Java types by their wire type.

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.DeliverCallback;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

public class JavaClient {
    private static final class Arrival {
        final long at = System.currentTimeMillis();
        final String body;
        final AMQP.BasicProperties properties;

        Arrival(byte[] body, AMQP.BasicProperties properties) {
            this.body = new String(body, StandardCharsets.UTF_8);
            this.properties = properties;
        }
    }

    private static void check(boolean holds, String otherwise) {
        if (!holds) {
            throw new AssertionError(otherwise);
        }
    }

    private static AMQP.BasicProperties delay(Object delay) {
        Map<String, Object> headers = new HashMap<>();
        if (delay != null) {
            headers.put("x-delay", delay);
        }
        return new AMQP.BasicProperties.Builder().deliveryMode(2).headers(headers).build();
    }

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args[0]);
        try (Connection connection = factory.newConnection()) {
            Channel channel = connection.createChannel();
            String exchange = "java-" + UUID.randomUUID();
            channel.exchangeDeclare(exchange, "x-delayed-message", true, true,
                Map.of("x-delayed-type", "direct"));
            String queue = channel.queueDeclare().getQueue();
            channel.queueBind(queue, exchange, "k");
            channel.confirmSelect();
            channel.addReturnListener((code, text, x, key, properties, body) -> {
                throw new AssertionError("returned: " + text);
            });

            BlockingQueue<Arrival> arrivals = new LinkedBlockingQueue<>();
            DeliverCallback arrived = (tag, delivery) ->
                arrivals.add(new Arrival(delivery.getBody(), delivery.getProperties()));
            channel.basicConsume(queue, true, arrived, tag -> { });

            Map<String, Object> delays = new LinkedHashMap<>();
            delays.put("Byte", (byte) 120);
            delays.put("Short", (short) 300);
            delays.put("Integer", 500);
            delays.put("Long", 700L);
            delays.put("Double", 900.5);
            delays.put("BigDecimal", new BigDecimal("1100.25"));
            delays.put("String", "1300");
            Map<String, Long> published = new HashMap<>();
            for (Map.Entry<String, Object> entry : delays.entrySet()) {
                published.put(entry.getKey(), System.currentTimeMillis());
                channel.basicPublish(exchange, "k", true, delay(entry.getValue()),
                    entry.getKey().getBytes(StandardCharsets.UTF_8));
            }
            channel.waitForConfirmsOrDie(120_000);

            List<String> order = new ArrayList<>();
            for (int i = 0; i < delays.size(); i++) {
                Arrival arrival = arrivals.poll(120, TimeUnit.SECONDS);
                check(arrival != null, "only came: " + order);
                order.add(arrival.body);
                long wanted = new BigDecimal(delays.get(arrival.body).toString())
                    .setScale(0, java.math.RoundingMode.CEILING).longValue();
                check(arrival.at - published.get(arrival.body) >= wanted,
                    arrival.body + " came early");
                Object negated = arrival.properties.getHeaders().get("x-delay");
                check(new BigDecimal(negated.toString()).longValue() == -wanted,
                    arrival.body + " has x-delay " + negated);
                check(!(delays.get(arrival.body) instanceof Number) || negated instanceof Long,
                    "a number comes back as a Long, not as " + negated.getClass());
            }
            check(order.equals(new ArrayList<>(delays.keySet())), "in another order: " + order);

            channel.basicPublish(exchange, "k", delay(-500), "at once".getBytes());
            Arrival atOnce = arrivals.poll(120, TimeUnit.SECONDS);
            check(atOnce != null && atOnce.body.equals("at once"), "a negative delay was delayed");

            CompletableFuture<String> closed = new CompletableFuture<>();
            channel.addShutdownListener(cause -> closed.complete(cause.getReason().toString()));
            channel.basicPublish(exchange, "k", delay("soon"), "x".getBytes());
            String reason = closed.get(120, TimeUnit.SECONDS);
            check(reason.contains("406") && reason.contains("x-delay"), reason);
            check(connection.isOpen(), "the connection was closed, too");
        }
        System.out.println("ok");
    }
}
