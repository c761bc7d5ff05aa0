// SPDX-License-Identifier: MPL-2.0
// What RabbitMQ JMS says of a broker that is lost while a confirm is out (../lost.py).

import com.rabbitmq.jms.admin.RMQConnectionFactory;
import jakarta.jms.CompletionListener;
import jakarta.jms.Connection;
import jakarta.jms.Message;
import jakarta.jms.MessageProducer;
import jakarta.jms.Session;
import java.util.concurrent.CompletableFuture;

public class LostJms {
    private static CompletionListener listener(CompletableFuture<String> told) {
        return new CompletionListener() {
            @Override
            public void onCompletion(Message message) {
                told.complete("completed");
            }

            @Override
            public void onException(Message message, Exception failure) {
                told.complete("not completed");
            }
        };
    }

    public static void main(String[] args) throws Exception {
        CompletableFuture<String> told = new CompletableFuture<>();
        RMQConnectionFactory factory = new RMQConnectionFactory();
        factory.setUri(args[0]);
        Connection connection = factory.createConnection();
        connection.setExceptionListener(failure -> told.complete("exception listener: " + failure.getMessage()));
        Session session = connection.createSession();
        MessageProducer producer = session.createProducer(session.createQueue("lost"));
        // Confirms are enabled with the first message that has a listener.
        CompletableFuture<String> first = new CompletableFuture<>();
        producer.send(session.createTextMessage("x"), listener(first));
        first.get();
        System.out.println("ready");
        System.in.read();
        producer.send(session.createTextMessage("x"), listener(told));
        System.out.println("sent");
        System.out.println(told.get());
        try {
            producer.send(session.createTextMessage("x"));
            System.out.println("sent again");
        } catch (Exception failure) {
            System.out.println(failure.getClass().getSimpleName());
        }
        System.exit(0);
    }
}
