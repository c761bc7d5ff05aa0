// SPDX-License-Identifier: MPL-2.0
package stream;

import org.springframework.amqp.rabbit.listener.AbstractMessageListenerContainer;
import org.springframework.amqp.rabbit.listener.ConditionalRejectingErrorHandler;
import org.springframework.amqp.rabbit.listener.MessageListenerContainer;
import org.springframework.cloud.stream.config.ListenerContainerCustomizer;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;

/** Whose names are others in Boot 4. */
@Configuration
class Containers {
    /** Without this Spring acknowledges what cannot be converted when it comes back: it would be lost. */
    @Bean
    ListenerContainerCustomizer<MessageListenerContainer> keepWhatCannotBeConverted() {
        ConditionalRejectingErrorHandler handler = new ConditionalRejectingErrorHandler();
        handler.setDiscardFatalsWithXDeath(false);
        return (container, destination, group) ->
            ((AbstractMessageListenerContainer) container).setErrorHandler(handler);
    }
}
