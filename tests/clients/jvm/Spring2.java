// SPDX-License-Identifier: MPL-2.0
// Spring2.java URL: what Spring AMQP 2 shows of a delay.

import java.net.URI;
import java.util.Map;
import org.springframework.amqp.core.BindingBuilder;
import org.springframework.amqp.core.CustomExchange;
import org.springframework.amqp.core.Message;
import org.springframework.amqp.core.Queue;
import org.springframework.amqp.rabbit.connection.CachingConnectionFactory;
import org.springframework.amqp.rabbit.core.RabbitAdmin;
import org.springframework.amqp.rabbit.core.RabbitTemplate;

public class Spring2 {
    public static void main(String[] args) {
        URI uri = URI.create(args[0]);
        CachingConnectionFactory connections = new CachingConnectionFactory(uri.getHost(), uri.getPort());
        RabbitAdmin admin = new RabbitAdmin(connections);
        RabbitTemplate template = new RabbitTemplate(connections);
        CustomExchange exchange = new CustomExchange("spring2", "x-delayed-message", true, false,
            Map.of("x-delayed-type", "direct"));
        Queue queue = new Queue("spring2");
        admin.declareExchange(exchange);
        admin.declareQueue(queue);
        admin.declareBinding(BindingBuilder.bind(queue).to(exchange).with("k").noargs());
        template.convertAndSend("spring2", "k", "job 1", message -> {
            message.getMessageProperties().setDelay(1000);
            return message;
        });
        Message message = template.receive("spring2", 120_000);
        System.out.println(new String(message.getBody()) + ", receivedDelay is "
            + message.getMessageProperties().getReceivedDelay() + ", x-delay is "
            + message.getMessageProperties().getHeaders().get("x-delay"));
        admin.deleteQueue("spring2");
        admin.deleteExchange("spring2");
        connections.destroy();
    }
}
