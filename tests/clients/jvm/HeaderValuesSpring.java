// SPDX-License-Identifier: MPL-2.0
// HeaderValuesSpring.java PORT EXCHANGE CASES: sends the cases with Spring's template for AMQP 1.0, which
// makes application properties of headers.

import com.rabbitmq.client.amqp.Environment;
import com.rabbitmq.client.amqp.impl.AmqpEnvironmentBuilder;
import java.io.File;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import org.springframework.amqp.core.Message;
import org.springframework.amqp.core.MessageProperties;
import org.springframework.amqp.rabbitmq.client.RabbitAmqpTemplate;
import org.springframework.amqp.rabbitmq.client.SingleAmqpConnectionFactory;
import tools.jackson.databind.JsonNode;
import tools.jackson.databind.ObjectMapper;

public class HeaderValuesSpring {
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
            case "s" -> (short) value.asInt();
            case "I" -> value.asInt();
            case "l" -> value.asLong();
            case "f" -> (float) value.asDouble();
            case "d" -> value.asDouble();
            case "t" -> value.asBoolean();
            case "S" -> value.asString();
            case "x" -> bytes(value);
            default -> throw new IllegalArgumentException(type);
        };
    }

    /** What the template's user was told if the message was not accepted. */
    private static String sent(Environment environment, int port, String exchange, JsonNode one)
            throws Exception {
        SingleAmqpConnectionFactory connections = new SingleAmqpConnectionFactory(environment).setPort(port);
        RabbitAmqpTemplate template = new RabbitAmqpTemplate(connections);
        MessageProperties properties = new MessageProperties();
        Object value = value(one.get("type").asString(), one.get("value"));
        properties.setHeader("x-delay", value);
        if (one.get("copy").asBoolean()) {
            properties.setHeader("copy", value);
        }
        try {
            template.send(exchange, "k", new Message(one.get("name").asString().getBytes(), properties)).get();
            return null;
        } catch (ExecutionException refused) {
            StringBuilder told = new StringBuilder();
            for (Throwable cause = refused; cause != null; cause = cause.getCause()) {
                told.append(cause).append("; ");
            }
            return told.toString();
        } finally {
            template.destroy();
            connections.destroy();
        }
    }

    public static void main(String[] args) throws Exception {
        Map<String, String> told = new LinkedHashMap<>();
        try (Environment environment = new AmqpEnvironmentBuilder().build()) {
            for (JsonNode one : JSON.readTree(new File(args[2]))) {
                told.put(one.get("name").asString(),
                    sent(environment, Integer.parseInt(args[0]), args[1], one));
            }
        }
        System.out.println(JSON.writeValueAsString(told));
    }
}
