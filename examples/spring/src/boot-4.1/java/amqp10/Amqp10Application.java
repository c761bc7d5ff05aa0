// SPDX-License-Identifier: MPL-2.0
package amqp10;

import com.rabbitmq.client.amqp.Environment;
import com.rabbitmq.client.amqp.impl.AmqpEnvironmentBuilder;
import java.util.Map;
import java.util.concurrent.ExecutionException;
import org.springframework.amqp.core.BindingBuilder;
import org.springframework.amqp.core.CustomExchange;
import org.springframework.amqp.core.Declarables;
import org.springframework.amqp.core.Queue;
import org.springframework.amqp.core.QueueBuilder;
import org.springframework.amqp.rabbitmq.client.RabbitAmqpAdmin;
import org.springframework.amqp.rabbitmq.client.RabbitAmqpTemplate;
import org.springframework.amqp.rabbitmq.client.SingleAmqpConnectionFactory;
import org.springframework.beans.factory.annotation.Qualifier;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.boot.ApplicationRunner;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.context.annotation.Bean;

/** Spring's template for AMQP 1.0: the delay is set as for AMQP 0-9-1. Takes RabbitMQ 4.0 or later. */
@SpringBootApplication
public class Amqp10Application {
    private static final String EXCHANGE = "example.spring.amqp10";
    private static final String QUEUE = "example.spring.amqp10.jobs";

    public static void main(String[] args) {
        SpringApplication.run(Amqp10Application.class, args).close();
    }

    @Bean
    Environment amqpEnvironment() {
        return new AmqpEnvironmentBuilder().build();
    }

    // Of two connections: RabbitMQ may leave a session unanswered that is begun right after the end of
    // another, as the admin's ends when it has declared.
    @Bean
    SingleAmqpConnectionFactory adminConnection(
            Environment amqpEnvironment, @Value("${spring.rabbitmq.port:5672}") int port) {
        return new SingleAmqpConnectionFactory(amqpEnvironment).setPort(port);
    }

    @Bean
    SingleAmqpConnectionFactory templateConnection(
            Environment amqpEnvironment, @Value("${spring.rabbitmq.port:5672}") int port) {
        return new SingleAmqpConnectionFactory(amqpEnvironment).setPort(port);
    }

    @Bean
    RabbitAmqpAdmin admin(@Qualifier("adminConnection") SingleAmqpConnectionFactory connection) {
        return new RabbitAmqpAdmin(connection);
    }

    @Bean
    RabbitAmqpTemplate amqpTemplate(@Qualifier("templateConnection") SingleAmqpConnectionFactory connection) {
        return new RabbitAmqpTemplate(connection);
    }

    @Bean
    Declarables declarations() {
        CustomExchange exchange = new CustomExchange(EXCHANGE, "x-delayed-message", true, false,
            Map.of("x-delayed-type", "direct"));
        Queue jobs = QueueBuilder.durable(QUEUE).quorum().build();
        return new Declarables(exchange, jobs, BindingBuilder.bind(jobs).to(exchange).with("job").noargs());
    }

    @Bean
    ApplicationRunner runner(RabbitAmqpTemplate template) {
        return arguments -> {
            long began = System.currentTimeMillis();
            template.convertAndSend(EXCHANGE, "job", "job 1", message -> {
                message.getMessageProperties().setDelayLong(1000L);
                return message;
            }).get();
            System.out.printf("%s after %.1f s%n", template.receiveAndConvert(QUEUE).get(),
                (System.currentTimeMillis() - began) / 1000.0);

            try {
                template.convertAndSend(EXCHANGE, "job", "job 2", message -> {
                    message.getMessageProperties().setHeader("x-delay", "5m");
                    return message;
                }).get();
            } catch (ExecutionException refused) {
                System.out.println("refused: " + refused.getCause().getMessage());
            }
        };
    }
}
