// SPDX-License-Identifier: MPL-2.0
package survive;

import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import org.springframework.amqp.AmqpException;
import org.springframework.amqp.core.AmqpAdmin;
import org.springframework.amqp.core.Binding;
import org.springframework.amqp.core.BindingBuilder;
import org.springframework.amqp.core.CustomExchange;
import org.springframework.amqp.core.Queue;
import org.springframework.amqp.core.QueueBuilder;
import org.springframework.amqp.rabbit.annotation.RabbitListener;
import org.springframework.amqp.rabbit.connection.CorrelationData;
import org.springframework.amqp.rabbit.core.RabbitTemplate;
import org.springframework.boot.ApplicationRunner;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.context.annotation.Bean;

/** Nothing is lost when the broker is: what is not confirmed is published again, under a key, so that it
 *  is not there twice if it was only the confirm that was lost. */
@SpringBootApplication
public class SurvivingApplication {
    private static final String EXCHANGE = "example.spring.survive";
    private static final int REMINDERS = 1000;

    private final Set<String> arrived = ConcurrentHashMap.newKeySet();

    public static void main(String[] args) {
        SpringApplication.run(SurvivingApplication.class, args).close();
    }

    @Bean
    CustomExchange exchange() {
        return new CustomExchange(EXCHANGE, "x-delayed-message", true, false,
            Map.of("x-delayed-type", "direct"));
    }

    @Bean
    Queue queue() {
        return QueueBuilder.durable(EXCHANGE).build();
    }

    @Bean
    Binding binding(Queue queue, CustomExchange exchange) {
        return BindingBuilder.bind(queue).to(exchange).with("reminder").noargs();
    }

    /** One that came twice counts once. It is acknowledged when this returns. */
    @RabbitListener(queues = EXCHANGE)
    void remind(String reminder) {
        synchronized (arrived) {
            arrived.add(reminder);
            arrived.notifyAll();
        }
    }

    /** Returns when the broker has it on disk, whatever happens to brokers and connections meanwhile. */
    private static void send(RabbitTemplate template, String reminder) throws InterruptedException {
        while (true) {
            try {
                CorrelationData correlation = new CorrelationData(reminder);
                template.convertAndSend(EXCHANGE, "reminder", reminder, message -> {
                    message.getMessageProperties().setDelayLong(2000L);
                    message.getMessageProperties().setHeader("x-delay-key", reminder);
                    message.getMessageProperties().setHeader("x-delay-on-duplicate", "drop");
                    return message;
                }, correlation);
                if (correlation.getFuture().get(1, TimeUnit.MINUTES).isAck()) {
                    return;
                }
            } catch (AmqpException | ExecutionException | TimeoutException e) {
                Thread.sleep(100);
            }
        }
    }

    @Bean
    ApplicationRunner runner(RabbitTemplate template, AmqpAdmin admin) {
        return arguments -> {
            for (int n = 1; n <= REMINDERS; n++) {
                send(template, "reminder " + n);
                if (n % 100 == 0) {
                    System.out.println(n + " are confirmed");
                }
            }
            synchronized (arrived) {
                while (arrived.size() < REMINDERS) {
                    arrived.wait();
                }
            }
            System.out.println(arrived.size() + " arrived");
            admin.deleteQueue(EXCHANGE);
            admin.deleteExchange(EXCHANGE);
        };
    }
}
