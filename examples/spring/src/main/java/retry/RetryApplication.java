// SPDX-License-Identifier: MPL-2.0
package retry;

import com.rabbitmq.client.Channel;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import org.springframework.amqp.core.AmqpAdmin;
import org.springframework.amqp.core.CustomExchange;
import org.springframework.amqp.core.Declarables;
import org.springframework.amqp.core.Message;
import org.springframework.amqp.core.MessageBuilder;
import org.springframework.amqp.core.QueueBuilder;
import org.springframework.amqp.rabbit.annotation.RabbitListener;
import org.springframework.amqp.rabbit.connection.ConnectionFactory;
import org.springframework.amqp.rabbit.core.RabbitTemplate;
import org.springframework.amqp.rabbit.listener.SimpleMessageListenerContainer;
import org.springframework.amqp.support.AmqpHeaders;
import org.springframework.boot.ApplicationRunner;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.context.annotation.Bean;
import org.springframework.messaging.handler.annotation.Header;

/** Retry: what a listener throws is tried again later, by the queue's dead-letter exchange, and parked
 *  when it has failed too often. Spring's own retry, which would keep the message in memory, is not used. */
@SpringBootApplication
public class RetryApplication {
    private static final String RETRY = "example.spring.retry";
    private static final String ORDERS = "example.spring.orders";
    private static final String PAYMENTS = "example.spring.payments";
    private static final String PARKED = "example.spring.parked";

    /** What arrives as JSON. */
    public record Order(String name) {
    }

    private final CountDownLatch parked = new CountDownLatch(3);

    public static void main(String[] args) {
        SpringApplication.run(RetryApplication.class, args).close();
    }

    @Bean
    Declarables retry() {
        return new Declarables(
            new CustomExchange(RETRY, "x-delayed-message", true, false, Map.of(
                "x-delayed-type", "direct", "x-delay-retry", "100ms,200ms,400ms",
                "x-delay-retry-parking-exchange", "",
                "x-delay-retry-parking-routing-key", PARKED)),
            QueueBuilder.durable(PARKED).build(),
            QueueBuilder.durable(ORDERS).deadLetterExchange(RETRY).build(),
            QueueBuilder.durable(PAYMENTS).deadLetterExchange(RETRY).build());
    }

    /** Which attempt this is: one more than it died in that queue. */
    private static long attempt(List<Map<String, ?>> deaths, String queue) {
        long attempt = 1;
        for (Map<String, ?> death : deaths == null ? List.<Map<String, ?>>of() : deaths) {
            if (queue.equals(String.valueOf(death.get("queue")))) {
                attempt += ((Number) death.get("count")).longValue();
            }
        }
        return attempt;
    }

    @RabbitListener(queues = ORDERS)
    void order(Order order, @Header(name = "x-death", required = false) List<Map<String, ?>> deaths) {
        long attempt = attempt(deaths, ORDERS);
        if (order.name().equals("order 2") || attempt < 3) {
            System.out.printf("%s, attempt %d: no answer%n", order.name(), attempt);
            throw new IllegalStateException("no answer");
        }
        System.out.printf("%s, attempt %d: done%n", order.name(), attempt);
    }

    @RabbitListener(queues = PAYMENTS, ackMode = "MANUAL")
    void payment(Order payment, Channel channel, @Header(AmqpHeaders.DELIVERY_TAG) long tag)
            throws IOException {
        channel.basicReject(tag, false);
    }

    /** No converter looks at what is parked: what it cannot convert is there, too. */
    @Bean
    SimpleMessageListenerContainer parkedContainer(ConnectionFactory connections) {
        SimpleMessageListenerContainer container = new SimpleMessageListenerContainer(connections);
        container.setQueueNames(PARKED);
        container.setMessageListener(this::parked);
        return container;
    }

    private void parked(Message message) {
        Map<String, Object> headers = message.getMessageProperties().getHeaders();
        System.out.printf("%s is parked: %s, %s times rejected%n",
            new String(message.getBody(), StandardCharsets.UTF_8),
            headers.get("x-delay-death-reason"), headers.get("x-delay-death-count"));
        parked.countDown();
    }

    @Bean
    ApplicationRunner runner(RabbitTemplate template, AmqpAdmin admin) {
        return arguments -> {
            template.convertAndSend(ORDERS, new Order("order 1"));
            template.convertAndSend(ORDERS, new Order("order 2"));
            template.convertAndSend(PAYMENTS, new Order("payment"));
            template.send(ORDERS, MessageBuilder.withBody("not JSON".getBytes())
                .setContentType("application/json").build());
            parked.await();
            for (String queue : List.of(ORDERS, PAYMENTS, PARKED)) {
                admin.deleteQueue(queue);
            }
            admin.deleteExchange(RETRY);
        };
    }
}
