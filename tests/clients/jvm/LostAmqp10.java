// SPDX-License-Identifier: MPL-2.0
// What amqp-client for AMQP 1.0 says of a broker that is lost while an outcome is out (../lost.py).

import com.rabbitmq.client.amqp.Connection;
import com.rabbitmq.client.amqp.Environment;
import com.rabbitmq.client.amqp.Publisher;
import com.rabbitmq.client.amqp.impl.AmqpEnvironmentBuilder;
import java.util.concurrent.CompletableFuture;

public class LostAmqp10 {
    public static void main(String[] args) throws Exception {
        Environment environment = new AmqpEnvironmentBuilder().build();
        Connection connection = environment.connectionBuilder().uri(args[0]).build();
        connection.management().queue("lost").quorum().queue().declare();
        Publisher publisher = connection.publisherBuilder().queue("lost").build();
        System.out.println("ready");
        System.in.read();
        CompletableFuture<String> outcome = new CompletableFuture<>();
        publisher.publish(publisher.message("x".getBytes()).durable(true),
            context -> outcome.complete(context.status() + ": " + context.failureCause()));
        System.out.println("sent");
        System.out.println(outcome.get());
        System.exit(0);
    }
}
