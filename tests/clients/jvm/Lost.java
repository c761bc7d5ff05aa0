// SPDX-License-Identifier: MPL-2.0
// What amqp-client says of a broker that is lost while a confirm is out (../lost.py).

import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.MessageProperties;
import com.rabbitmq.client.ShutdownSignalException;
import java.util.Map;

public class Lost {
    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args[0]);
        Connection connection = factory.newConnection();
        Channel channel = connection.createChannel();
        channel.confirmSelect();
        channel.queueDeclare("lost", true, false, false, Map.of());
        System.out.println("ready");
        System.in.read();
        channel.basicPublish("", "lost", MessageProperties.PERSISTENT_BASIC, "x".getBytes());
        System.out.println("sent");
        try {
            System.out.println("confirmed: " + channel.waitForConfirms());
        } catch (ShutdownSignalException lost) {
            System.out.println(lost.getMessage());
        }
        connection.abort();
    }
}
