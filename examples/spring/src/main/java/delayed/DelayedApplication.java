// SPDX-License-Identifier: MPL-2.0
package delayed;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.ShutdownSignalException;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import org.springframework.amqp.core.AmqpAdmin;
import org.springframework.amqp.core.Binding;
import org.springframework.amqp.core.BindingBuilder;
import org.springframework.amqp.core.CustomExchange;
import org.springframework.amqp.core.MessagePostProcessor;
import org.springframework.amqp.core.Queue;
import org.springframework.amqp.core.QueueBuilder;
import org.springframework.amqp.rabbit.annotation.Exchange;
import org.springframework.amqp.rabbit.annotation.QueueBinding;
import org.springframework.amqp.rabbit.annotation.RabbitListener;
import org.springframework.amqp.rabbit.connection.CachingConnectionFactory;
import org.springframework.amqp.rabbit.connection.ChannelListener;
import org.springframework.amqp.rabbit.connection.CorrelationData;
import org.springframework.amqp.rabbit.core.RabbitTemplate;
import org.springframework.amqp.support.AmqpHeaders;
import org.springframework.boot.ApplicationRunner;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.context.annotation.Bean;
import org.springframework.messaging.handler.annotation.Header;

/** Delayed messages with Spring AMQP: declared as beans and by annotations, published with confirms
 *  and returns, refused, cancelled. */
@SpringBootApplication
public class DelayedApplication {
    private static final String LATER = "example.spring.later";
    private static final String WORK = "example.spring.work";
    private static final String REMINDERS = "example.spring.reminders";

    private final BlockingQueue<String> arrived = new LinkedBlockingQueue<>();

    public static void main(String[] args) {
        SpringApplication.run(DelayedApplication.class, args).close();
    }

    @Bean
    CustomExchange later() {
        return new CustomExchange(LATER, "x-delayed-message", true, false,
            Map.of("x-delayed-type", "direct"));
    }

    @Bean
    Queue work() {
        return QueueBuilder.durable(WORK).build();
    }

    @Bean
    Binding workBinding(Queue work, CustomExchange later) {
        return BindingBuilder.bind(work).to(later).with("job").noargs();
    }

    @RabbitListener(queues = WORK)
    void work(String job, @Header(AmqpHeaders.RECEIVED_DELAY) long delay) {
        arrived.add(job + ", delayed by " + delay + " ms");
    }

    @RabbitListener(bindings = @QueueBinding(
        value = @org.springframework.amqp.rabbit.annotation.Queue(REMINDERS),
        exchange = @Exchange(value = REMINDERS, type = "topic", delayed = "true"),
        key = "remind.#"))
    void remind(String what) {
        arrived.add("reminded of " + what);
    }

    /** What became of the message. A delayed one counts as taken: it is never returned. */
    private static String sent(RabbitTemplate template, String exchange, String key, String body,
                               MessagePostProcessor properties) throws Exception {
        CorrelationData correlation = new CorrelationData();
        template.convertAndSend(exchange, key, body, properties, correlation);
        if (!correlation.getFuture().get().isAck()) {
            return "refused";
        }
        return correlation.getReturned() == null ? "confirmed"
            : "returned: " + correlation.getReturned().getReplyText();
    }

    /** Why a channel was closed: a confirm's own reason is "Channel closed by application". */
    private static final class Closed implements ChannelListener {
        private final BlockingQueue<String> reasons = new LinkedBlockingQueue<>();

        @Override
        public void onCreate(Channel channel, boolean transactional) {
        }

        @Override
        public void onShutDown(ShutdownSignalException signal) {
            if (signal.getReason() instanceof AMQP.Channel.Close close) {
                reasons.add(close.getReplyCode() + " " + close.getReplyText());
            }
        }
    }

    private static MessagePostProcessor delay(long milliseconds) {
        return message -> {
            message.getMessageProperties().setDelayLong(milliseconds);
            return message;
        };
    }

    private static MessagePostProcessor header(String name, Object value) {
        return message -> {
            message.getMessageProperties().setHeader(name, value);
            return message;
        };
    }

    private static MessagePostProcessor both(MessagePostProcessor one, MessagePostProcessor other) {
        return message -> other.postProcessMessage(one.postProcessMessage(message));
    }

    @Bean
    ApplicationRunner runner(RabbitTemplate template, AmqpAdmin admin,
                             CachingConnectionFactory connections) {
        return arguments -> {
            Closed closed = new Closed();
            connections.addChannelListener(closed);

            long began = System.currentTimeMillis();
            System.out.println(sent(template, LATER, "job", "job 1", delay(1000)));
            System.out.printf("%s, came after %.1f s%n", arrived.take(),
                (System.currentTimeMillis() - began) / 1000.0);

            System.out.println(sent(template, REMINDERS, "remind.me", "lunch", delay(100)));
            System.out.println(arrived.take());

            System.out.println(sent(template, LATER, "nobody", "job 2", message -> message));
            System.out.println(sent(template, LATER, "nobody", "job 3", delay(1)));

            System.out.println(sent(template, LATER, "job", "job 4", header("x-delay", "5m")));
            System.out.println(closed.reasons.take());

            sent(template, LATER, "job", "job 5", both(delay(500), header("x-delay-key", "five")));
            sent(template, LATER, "job", "", header("x-delay-cancel", "five"));
            sent(template, LATER, "job", "job 6", delay(1000));
            System.out.println(arrived.take());

            admin.deleteQueue(WORK);
            admin.deleteQueue(REMINDERS);
            admin.deleteExchange(LATER);
            admin.deleteExchange(REMINDERS);
        };
    }
}
