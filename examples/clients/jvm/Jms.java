// SPDX-License-Identifier: MPL-2.0
// JMS's own delivery delay. RabbitMQ JMS declares a delayed exchange for it.
//
// With com.rabbitmq.jms:rabbitmq-jms and what it needs on the class path:
//
//     java -cp 'jars/*' Jms.java [amqp://guest:guest@localhost:5672]

import com.rabbitmq.jms.admin.RMQConnectionFactory;
import jakarta.jms.JMSContext;
import jakarta.jms.Queue;

public class Jms {
    public static void main(String[] args) throws Exception {
        RMQConnectionFactory factory = new RMQConnectionFactory();
        factory.setUri(args.length > 0 ? args[0] : "amqp://guest:guest@localhost:5672");
        try (JMSContext context = factory.createContext()) {
            Queue queue = context.createQueue("example.jms");
            long began = System.currentTimeMillis();
            context.createProducer().setDeliveryDelay(1000).send(queue, "job 1");
            String body = context.createConsumer(queue).receiveBody(String.class);
            System.out.printf("%s after %.1f s%n", body,
                (System.currentTimeMillis() - began) / 1000.0);
        }
    }
}
