// SPDX-License-Identifier: MPL-2.0
// HeaderValuesAmqp10.java URL EXCHANGE CASES: sends the cases with amqp-client for AMQP 1.0, as annotations.

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.rabbitmq.client.amqp.Connection;
import com.rabbitmq.client.amqp.Environment;
import com.rabbitmq.client.amqp.Message;
import com.rabbitmq.client.amqp.Publisher;
import com.rabbitmq.client.amqp.impl.AmqpEnvironmentBuilder;
import com.rabbitmq.qpid.protonj2.types.Binary;
import com.rabbitmq.qpid.protonj2.types.UnsignedByte;
import com.rabbitmq.qpid.protonj2.types.UnsignedInteger;
import com.rabbitmq.qpid.protonj2.types.UnsignedShort;
import java.io.File;
import java.util.Date;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.CompletableFuture;

public class HeaderValuesAmqp10 {
    private static final ObjectMapper JSON = new ObjectMapper();

    private static byte[] bytes(JsonNode list) {
        byte[] bytes = new byte[list.size()];
        for (int i = 0; i < bytes.length; i++) {
            bytes[i] = (byte) list.get(i).asInt();
        }
        return bytes;
    }

    private static Object value(String type, JsonNode value) {
        return switch (type) {
            case "b" -> (byte) value.asInt();
            case "B" -> UnsignedByte.valueOf((byte) value.asInt());
            case "s" -> (short) value.asInt();
            case "u" -> UnsignedShort.valueOf((short) value.asInt());
            case "I" -> value.asInt();
            case "i" -> UnsignedInteger.valueOf((int) value.asLong());
            case "l" -> value.asLong();
            case "f" -> (float) value.asDouble();
            case "d" -> value.asDouble();
            case "T" -> new Date(value.asLong() * 1000);
            case "t" -> value.asBoolean();
            case "S" -> value.asText();
            case "x" -> new Binary(bytes(value));
            case "F", "A" -> JSON.convertValue(value, Object.class);
            default -> throw new IllegalArgumentException(type);
        };
    }

    /** As an application property, which may be of fewer types. */
    private static void copy(Message message, Object value) {
        if (value instanceof Byte number) {
            message.property("copy", number);
        } else if (value instanceof Short number) {
            message.property("copy", number);
        } else if (value instanceof Integer number) {
            message.property("copy", number);
        } else if (value instanceof Long number) {
            message.property("copy", number);
        } else if (value instanceof Float number) {
            message.property("copy", number);
        } else if (value instanceof Double number) {
            message.property("copy", number);
        } else if (value instanceof String text) {
            message.property("copy", text);
        } else if (value instanceof Binary octets) {
            message.property("copy", octets.asByteArray());
        }
    }

    /** What the client was told if the message was not accepted. */
    private static String sent(Environment environment, String url, String exchange, JsonNode one)
            throws Exception {
        try (Connection connection = environment.connectionBuilder().uri(url).build()) {
            Publisher publisher = connection.publisherBuilder().exchange(exchange).key("k").build();
            Object value = value(one.get("type").asText(), one.get("value"));
            Message message = publisher.message(one.get("name").asText().getBytes())
                .annotation("x-delay", value);
            if (one.get("copy").asBoolean()) {
                copy(message, value);
            }
            CompletableFuture<String> outcome = new CompletableFuture<>();
            publisher.publish(message, context -> outcome.complete(
                context.status() == Publisher.Status.ACCEPTED ? null
                    : context.status() + ": " + context.failureCause()));
            return outcome.get();
        }
    }

    public static void main(String[] args) throws Exception {
        Map<String, String> told = new LinkedHashMap<>();
        try (Environment environment = new AmqpEnvironmentBuilder().build()) {
            for (JsonNode one : JSON.readTree(new File(args[2]))) {
                told.put(one.get("name").asText(), sent(environment, args[0], args[1], one));
            }
        }
        System.out.println(JSON.writeValueAsString(told));
    }
}
