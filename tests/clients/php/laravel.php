<?php
// SPDX-License-Identifier: MPL-2.0
// laravel.php URL EXAMPLE: the class of the example, on a stand-in for the one that it extends, which Debian
// does not have: the methods that it calls, as the package has them, and no more.

namespace VladimirYuldashev\LaravelQueueRabbitMQ\Queue {
    require 'vendor/autoload.php';

    use PhpAmqpLib\Channel\AMQPChannel;
    use PhpAmqpLib\Message\AMQPMessage;
    use PhpAmqpLib\Wire\AMQPTable;

    class RabbitMQQueue
    {
        public function __construct(private AMQPChannel $channel)
        {
        }

        protected function getQueue($queue = null)
        {
            return $queue ?: 'work';
        }

        protected function secondsUntil($delay)
        {
            return max(0, (int) $delay);
        }

        protected function createMessage($payload, int $attempts = 0): array
        {
            $message = new AMQPMessage($payload, ['content_type' => 'application/json',
                'delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT,
                'correlation_id' => json_decode($payload, true)['id']]);
            $message->set('application_headers', new AMQPTable(['laravel' => ['attempts' => $attempts]]));
            return [$message, json_decode($payload, true)['id']];
        }

        protected function publishBasic($msg, $exchange = '', $destination = '', $mandatory = false,
            $immediate = false, $ticket = null): void
        {
            $this->channel->basic_publish($msg, $exchange, $destination, $mandatory, $immediate, $ticket);
        }
    }
}

namespace {
    use PhpAmqpLib\Connection\AMQPStreamConnection;

    [, $url, $example] = $argv;
    require $example;
    $url = parse_url($url);
    $connection = new AMQPStreamConnection($url['host'], $url['port'], $url['user'], $url['pass']);
    $queue = new App\Queue\DelayedRabbitMQQueue($connection->channel());
    echo $queue->laterRaw(2, '{"id":"later"}', null, 3), ' ', $queue->laterRaw(0, '{"id":"now"}'), "\n";
    $connection->close();
}
