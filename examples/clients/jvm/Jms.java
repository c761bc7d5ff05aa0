// SPDX-License-Identifier: MPL-2.0
// JMS's own delivery delay: a delayed message, a wrong delay, a cancel. RabbitMQ JMS declares a delayed exchange
// for it.
//
// With com.rabbitmq.jms:rabbitmq-jms and what it needs on the class path:
//
//     java -cp 'jars/*' Jms.java [amqp://guest:guest@localhost:5672]

import com.rabbitmq.jms.admin.RMQConnectionFactory;
import jakarta.jms.JMSConsumer;
import jakarta.jms.JMSContext;
import jakarta.jms.JMSRuntimeException;
import jakarta.jms.Queue;
import java.time.Duration;

public class Jms {
    private static final String QUEUE = "example.jms";

    private static void delayed(JMSContext context) {
        Queue queue = context.createQueue(QUEUE);
        long began = System.currentTimeMillis();
        context.createProducer().setDeliveryDelay(1000).send(queue, "job 1");
        try (JMSConsumer consumer = context.createConsumer(queue)) {
            String body = consumer.receiveBody(String.class);
            System.out.printf("%s after %.1f s%n", body, (System.currentTimeMillis() - began) / 1000.0);
        }
    }

    /** A property is a header. The cancelling message needs a delay, too, to go to the delayed exchange. */
    private static void cancel(JMSContext context) {
        Queue queue = context.createQueue(QUEUE);
        context.createProducer().setDeliveryDelay(1000).setProperty("x-delay-key", "job 2").send(queue, "job 2");
        context.createProducer().setDeliveryDelay(1500).send(queue, "job 3");
        context.createProducer().setDeliveryDelay(1).setProperty("x-delay-cancel", "job 2").send(queue, "");
        try (JMSConsumer consumer = context.createConsumer(queue)) {
            System.out.println(consumer.receiveBody(String.class) + ", and job 2 is cancelled");
        }
    }

    /** The session is of no use after that. Without a transaction, the next call is the first to tell. */
    private static void wrongDelay(JMSContext context) {
        Queue queue = context.createQueue(QUEUE);
        context.createProducer().setDeliveryDelay(Duration.ofDays(100_000).toMillis()).send(queue, "job 4");
        try {
            context.commit();
            System.out.println("committed");
        } catch (JMSRuntimeException e) {
            Throwable reason = e;
            while (reason.getCause() != null) {
                reason = reason.getCause();
            }
            System.out.println("refused: " + reason.getMessage());
        }
    }

    public static void main(String[] args) throws Exception {
        RMQConnectionFactory factory = new RMQConnectionFactory();
        factory.setUri(args.length > 0 ? args[0] : "amqp://guest:guest@localhost:5672");
        try (JMSContext context = factory.createContext()) {
            delayed(context);
            cancel(context);
            try (JMSContext transacted = context.createContext(JMSContext.SESSION_TRANSACTED)) {
                wrongDelay(transacted);
            }
        }
    }
}
