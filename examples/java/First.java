// SPDX-License-Identifier: MPL-2.0
// The first message: published now, consumed five seconds later.
//
// With amqp-client.jar and slf4j-api.jar (Debian: apt install librabbitmq-client-java):
//
//     java -cp amqp-client.jar:slf4j-api.jar First.java [amqp://guest:guest@localhost:5672]

import com.rabbitmq.client.*;
import java.util.Map;
import java.util.concurrent.CompletableFuture;

public class First {
    public static void main(String[] args) throws Exception {
        var factory = new ConnectionFactory();
        factory.setUri(args.length > 0 ? args[0] : "amqp://guest:guest@localhost:5672");
        try (var connection = factory.newConnection(); var channel = connection.createChannel()) {
            channel.confirmSelect();
            channel.exchangeDeclare("later", "x-delayed-message", true, false,
                Map.of("x-delayed-type", "direct"));
            channel.queueDeclare("work", true, false, false, null);
            channel.queueBind("work", "later", "job");
            channel.basicPublish("later", "job", new AMQP.BasicProperties.Builder()
                .deliveryMode(2).headers(Map.of("x-delay", 5000)).build(), "hello".getBytes());
            channel.waitForConfirmsOrDie();
            long published = System.currentTimeMillis();

            var arrived = new CompletableFuture<String>();
            channel.basicConsume("work", true,
                (tag, delivery) -> arrived.complete(new String(delivery.getBody())), tag -> { });
            System.out.printf("%s, %.1f s later%n", arrived.get(),
                (System.currentTimeMillis() - published) / 1000.0);
        }
    }
}
