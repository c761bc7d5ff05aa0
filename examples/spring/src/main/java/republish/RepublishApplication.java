// SPDX-License-Identifier: MPL-2.0
package republish;

import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import org.springframework.amqp.core.AmqpAdmin;
import org.springframework.amqp.core.BindingBuilder;
import org.springframework.amqp.core.CustomExchange;
import org.springframework.amqp.core.Declarables;
import org.springframework.amqp.core.Message;
import org.springframework.amqp.core.Queue;
import org.springframework.amqp.core.QueueBuilder;
import org.springframework.amqp.rabbit.annotation.RabbitListener;
import org.springframework.amqp.rabbit.core.RabbitTemplate;
import org.springframework.amqp.rabbit.retry.MessageRecoverer;
import org.springframework.amqp.rabbit.retry.RepublishMessageRecoverer;
import org.springframework.boot.ApplicationRunner;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.context.annotation.Bean;

/** Spring's own retry, which publishes what fails to an exchange that is a delayed one. */
@SpringBootApplication
public class RepublishApplication {
    private static final String EXCHANGE = "example.spring.republish";
    private static final String JOBS = "example.spring.republish.jobs";
    private static final String FAILED = "example.spring.republish.failed";

    private final BlockingQueue<Message> failed = new LinkedBlockingQueue<>();

    public static void main(String[] args) {
        new SpringApplicationBuilder(RepublishApplication.class)
            .properties("spring.rabbitmq.listener.simple.retry.enabled=true",
                        "spring.rabbitmq.listener.simple.retry.initial-interval=100ms")
            .run(args).close();
    }

    @Bean
    Declarables declarations() {
        CustomExchange exchange = new CustomExchange(EXCHANGE, "x-delayed-message", true, false,
            Map.of("x-delayed-type", "direct"));
        Queue jobs = QueueBuilder.durable(JOBS).build();
        Queue failures = QueueBuilder.durable(FAILED).build();
        return new Declarables(exchange, jobs, failures,
            BindingBuilder.bind(jobs).to(exchange).with("job").noargs(),
            BindingBuilder.bind(failures).to(exchange).with("failed").noargs());
    }

    /** Without this it is delayed once more, by what it was delayed by before. */
    @Bean
    MessageRecoverer recoverer(RabbitTemplate template) {
        return new RepublishMessageRecoverer(template, EXCHANGE, "failed") {
            @Override
            protected Map<String, Object> additionalHeaders(Message message, Throwable cause) {
                message.getMessageProperties().setDelayLong(null);
                return Map.of();
            }
        };
    }

    @RabbitListener(queues = JOBS)
    void work(String job) {
        System.out.println(job + ": no answer");
        throw new IllegalStateException("no answer");
    }

    @RabbitListener(queues = FAILED)
    void failed(Message message) {
        failed.add(message);
    }

    @Bean
    ApplicationRunner runner(RabbitTemplate template, AmqpAdmin admin) {
        return arguments -> {
            template.convertAndSend(EXCHANGE, "job", "job 1", message -> {
                message.getMessageProperties().setDelayLong(1000L);
                return message;
            });
            Message message = failed.take();
            System.out.printf("%s has failed: %s; it was delayed again by: %s%n",
                new String(message.getBody()),
                message.getMessageProperties().getHeaders().get("x-exception-message"),
                message.getMessageProperties().getReceivedDelayLong());
            admin.deleteQueue(JOBS);
            admin.deleteQueue(FAILED);
            admin.deleteExchange(EXCHANGE);
        };
    }
}
