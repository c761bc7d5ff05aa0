// SPDX-License-Identifier: MPL-2.0
// Spring AMQP 2.4: it drops a header x-delay that is a 64-bit integer, so a converter reads it.
//
// With org.springframework.amqp:spring-rabbit 2.4 and what it needs on the class path:
//
//     java -cp 'jars/*' Spring2.java [amqp://guest:guest@localhost:5672]

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Envelope;
import java.net.URI;
import java.util.Map;
import org.springframework.amqp.core.BindingBuilder;
import org.springframework.amqp.core.CustomExchange;
import org.springframework.amqp.core.Message;
import org.springframework.amqp.core.MessageProperties;
import org.springframework.amqp.core.Queue;
import org.springframework.amqp.rabbit.connection.CachingConnectionFactory;
import org.springframework.amqp.rabbit.core.RabbitAdmin;
import org.springframework.amqp.rabbit.core.RabbitTemplate;
import org.springframework.amqp.rabbit.support.DefaultMessagePropertiesConverter;

public class Spring2 {
    private static final String NAME = "example.spring2";

    /** For setMessagePropertiesConverter of a template or a listener's container. */
    private static class ReceivedDelay extends DefaultMessagePropertiesConverter {
        @Override
        public MessageProperties toMessageProperties(AMQP.BasicProperties source, Envelope envelope,
                String charset) {
            MessageProperties properties = super.toMessageProperties(source, envelope, charset);
            Map<String, Object> headers = source.getHeaders();
            if (headers != null && headers.get("x-delay") instanceof Long) {
                // Negative: published with it again, the message is not delayed again.
                properties.setHeader("x-delay", headers.get("x-delay"));
            }
            return properties;
        }
    }

    private static void send(RabbitTemplate template, String job) {
        template.convertAndSend(NAME, "job", job, message -> {
            message.getMessageProperties().setDelay(1000);
            return message;
        });
    }

    private static void receive(RabbitTemplate template) {
        Message message = template.receive(NAME, 120_000);
        Long delay = message.getMessageProperties().getHeader("x-delay");
        System.out.println(new String(message.getBody()) + ", receivedDelay is "
            + message.getMessageProperties().getReceivedDelay() + ", x-delay is " + delay);
    }

    public static void main(String[] args) {
        URI uri = URI.create(args.length > 0 ? args[0] : "amqp://guest:guest@localhost:5672");
        CachingConnectionFactory connections = new CachingConnectionFactory(uri.getHost(), uri.getPort());
        RabbitAdmin admin = new RabbitAdmin(connections);
        CustomExchange exchange = new CustomExchange(NAME, "x-delayed-message", true, false,
            Map.of("x-delayed-type", "direct"));
        Queue queue = new Queue(NAME);
        admin.declareExchange(exchange);
        admin.declareQueue(queue);
        admin.declareBinding(BindingBuilder.bind(queue).to(exchange).with("job").noargs());

        RabbitTemplate plain = new RabbitTemplate(connections);
        send(plain, "job 1");
        receive(plain);

        RabbitTemplate template = new RabbitTemplate(connections);
        template.setMessagePropertiesConverter(new ReceivedDelay());
        send(template, "job 2");
        receive(template);

        admin.deleteQueue(NAME);
        admin.deleteExchange(NAME);
        connections.destroy();
    }
}
