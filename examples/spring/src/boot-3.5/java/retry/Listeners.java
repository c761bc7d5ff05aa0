// SPDX-License-Identifier: MPL-2.0
package retry;

import org.springframework.amqp.rabbit.config.ContainerCustomizer;
import org.springframework.amqp.rabbit.listener.ConditionalRejectingErrorHandler;
import org.springframework.amqp.rabbit.listener.SimpleMessageListenerContainer;
import org.springframework.amqp.support.converter.Jackson2JsonMessageConverter;
import org.springframework.amqp.support.converter.MessageConverter;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;

/** Whose names are others in Boot 4. */
@Configuration
class Listeners {
    @Bean
    MessageConverter jsonConverter() {
        return new Jackson2JsonMessageConverter();
    }

    /** Without this Spring acknowledges what cannot be converted when it comes back: it would be lost. */
    @Bean
    ContainerCustomizer<SimpleMessageListenerContainer> keepWhatCannotBeConverted() {
        ConditionalRejectingErrorHandler handler = new ConditionalRejectingErrorHandler();
        handler.setDiscardFatalsWithXDeath(false);
        return container -> container.setErrorHandler(handler);
    }
}
