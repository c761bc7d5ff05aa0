// SPDX-License-Identifier: MPL-2.0
// What RabbitMQ JMS says of a wrong delay without a transaction: nothing, until a call comes after the channel was
// closed.

import com.rabbitmq.jms.admin.RMQConnectionFactory;
import jakarta.jms.JMSContext;
import jakarta.jms.Queue;

public class WrongDelayJms {
    public static void main(String[] args) throws Exception {
        RMQConnectionFactory factory = new RMQConnectionFactory();
        factory.setUri(args[0]);
        try (JMSContext context = factory.createContext()) {
            context.setExceptionListener(failure -> System.out.println("exception listener: " + failure));
            Queue queue = context.createQueue("example.jms.wrong");
            context.createProducer().setDeliveryDelay(Long.MAX_VALUE).send(queue, "never");
            try {
                while (true) {
                    context.createProducer().setDeliveryDelay(1).send(queue, "after it");
                    Thread.onSpinWait();
                }
            } catch (RuntimeException failure) {
                System.out.println(failure.getClass().getSimpleName() + ": " + failure.getMessage());
            }
        }
    }
}
