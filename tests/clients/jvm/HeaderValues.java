// SPDX-License-Identifier: MPL-2.0
// HeaderValues.java URL EXCHANGE CASES: sends the cases with amqp-client.

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.impl.LongStringHelper;
import java.io.File;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.util.Date;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;

public class HeaderValues {
    private static final ObjectMapper JSON = new ObjectMapper();

    private static byte[] bytes(JsonNode list) {
        byte[] bytes = new byte[list.size()];
        for (int i = 0; i < bytes.length; i++) {
            bytes[i] = (byte) list.get(i).asInt();
        }
        return bytes;
    }

    /** The value as the Java type that amqp-client writes as that AMQP type. */
    private static Object value(String type, JsonNode value) {
        return switch (type) {
            case "b" -> (byte) value.asInt();
            case "s" -> (short) value.asInt();
            case "I" -> value.asInt();
            case "l" -> value.asLong();
            case "f" -> (float) value.asDouble();
            case "d" -> value.asDouble();
            case "D" -> new BigDecimal(BigInteger.valueOf(value.get(0).asLong()), value.get(1).asInt());
            case "T" -> new Date(value.asLong() * 1000);
            case "t" -> value.asBoolean();
            case "S" -> value.isArray() ? LongStringHelper.asLongString(bytes(value)) : value.asText();
            case "x" -> bytes(value);
            case "F", "A", "V" -> JSON.convertValue(value, Object.class);
            default -> throw new IllegalArgumentException(type);
        };
    }

    /** What the client was told if the message was not confirmed. */
    private static String sent(Connection connection, String exchange, JsonNode one) throws Exception {
        Map<String, Object> headers = new HashMap<>();
        headers.put("x-delay", value(one.get("type").asText(), one.get("value")));
        if (one.get("copy").asBoolean()) {
            headers.put("copy", headers.get("x-delay"));
        }
        Channel channel = connection.createChannel();
        channel.confirmSelect();
        try {
            channel.basicPublish(exchange, "k", new AMQP.BasicProperties.Builder().deliveryMode(2)
                .headers(headers).build(), one.get("name").asText().getBytes());
            channel.waitForConfirmsOrDie();
        } catch (Exception e) {
            return String.valueOf(channel.getCloseReason());
        }
        channel.close();
        return null;
    }

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args[0]);
        Map<String, String> told = new LinkedHashMap<>();
        try (Connection connection = factory.newConnection()) {
            for (JsonNode one : JSON.readTree(new File(args[2]))) {
                told.put(one.get("name").asText(), sent(connection, args[1], one));
            }
        }
        System.out.println(JSON.writeValueAsString(told));
    }
}
