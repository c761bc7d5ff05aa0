// SPDX-License-Identifier: MPL-2.0
package stream;

import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.function.Consumer;
import org.springframework.amqp.core.AmqpAdmin;
import org.springframework.amqp.core.CustomExchange;
import org.springframework.amqp.core.Declarables;
import org.springframework.amqp.core.Message;
import org.springframework.amqp.core.QueueBuilder;
import org.springframework.amqp.rabbit.core.RabbitTemplate;
import org.springframework.boot.ApplicationRunner;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.boot.builder.SpringApplicationBuilder;
import org.springframework.cloud.stream.function.StreamBridge;
import org.springframework.context.annotation.Bean;
import org.springframework.messaging.support.MessageBuilder;

/** Spring Cloud Stream: a binding that delays, and what its consumer throws is tried again by the
 *  exchange. The bindings are in stream.yml. */
@SpringBootApplication
public class StreamApplication {
    private static final String PARKED = "example.stream.parked";

    public record Job(String name) {
    }

    public static void main(String[] args) {
        new SpringApplicationBuilder(StreamApplication.class)
            .properties("spring.config.name=application,stream").run(args).close();
    }

    @Bean
    Declarables retry() {
        return new Declarables(
            new CustomExchange("example.stream.retry", "x-delayed-message", true, false, Map.of(
                "x-delayed-type", "direct", "x-delay-retry", "100ms,200ms,400ms",
                "x-delay-retry-parking-exchange", "",
                "x-delay-retry-parking-routing-key", PARKED)),
            QueueBuilder.durable(PARKED).build());
    }

    @Bean
    Consumer<Job> work() {
        return job -> {
            System.out.println(job.name() + ": no answer");
            throw new IllegalStateException("no answer");
        };
    }

    private static void printParked(RabbitTemplate template) {
        Message message = template.receive(PARKED, -1);
        Map<String, Object> headers = message.getMessageProperties().getHeaders();
        System.out.printf("%s is parked: %s, %s times rejected%n",
            new String(message.getBody(), StandardCharsets.UTF_8),
            headers.get("x-delay-death-reason"), headers.get("x-delay-death-count"));
    }

    @Bean
    ApplicationRunner runner(StreamBridge bridge, RabbitTemplate template, AmqpAdmin admin) {
        return arguments -> {
            long began = System.currentTimeMillis();
            bridge.send("later-out-0",
                MessageBuilder.withPayload(new Job("job 1")).setHeader("later", 1000L).build());
            printParked(template);
            System.out.printf("after %.1f s%n", (System.currentTimeMillis() - began) / 1000.0);

            bridge.send("later-out-0", "not JSON");
            printParked(template);

            admin.deleteQueue("example.stream.later.work");
            admin.deleteQueue("example.stream.later.work.dlq");
            admin.deleteQueue(PARKED);
            admin.deleteExchange("example.stream.later");
            admin.deleteExchange("example.stream.retry");
        };
    }
}
