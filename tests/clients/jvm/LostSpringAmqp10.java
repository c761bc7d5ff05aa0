// SPDX-License-Identifier: MPL-2.0
// What Spring's template for AMQP 1.0 says of a broker that is lost while an outcome is out (../lost.py).

import ch.qos.logback.classic.Level;
import ch.qos.logback.classic.Logger;
import com.rabbitmq.client.amqp.Environment;
import com.rabbitmq.client.amqp.impl.AmqpEnvironmentBuilder;
import java.net.URI;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import org.slf4j.LoggerFactory;
import org.springframework.amqp.core.QueueBuilder;
import org.springframework.amqp.rabbitmq.client.RabbitAmqpAdmin;
import org.springframework.amqp.rabbitmq.client.RabbitAmqpTemplate;
import org.springframework.amqp.rabbitmq.client.SingleAmqpConnectionFactory;

public class LostSpringAmqp10 {
    public static void main(String[] args) throws Exception {
        ((Logger) LoggerFactory.getLogger(Logger.ROOT_LOGGER_NAME)).setLevel(Level.OFF);
        int port = URI.create(args[0]).getPort();
        Environment environment = new AmqpEnvironmentBuilder().build();
        new RabbitAmqpAdmin(new SingleAmqpConnectionFactory(environment).setPort(port))
            .declareQueue(QueueBuilder.durable("lost").quorum().build());
        RabbitAmqpTemplate template =
            new RabbitAmqpTemplate(new SingleAmqpConnectionFactory(environment).setPort(port));
        // It connects with the first message.
        template.convertAndSend("lost", "x").get();
        System.out.println("ready");
        System.in.read();
        CompletableFuture<Boolean> outcome = template.convertAndSend("lost", "x");
        System.out.println("sent");
        try {
            System.out.println("confirmed: " + outcome.get());
        } catch (ExecutionException failure) {
            System.out.println(failure.getCause().getClass().getSimpleName() + ": "
                + failure.getCause().getMessage());
        }
        System.exit(0);
    }
}
