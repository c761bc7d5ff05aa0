<?php
// SPDX-License-Identifier: MPL-2.0
// Laravel, with vladimir-yuldashev/laravel-queue-rabbitmq: jobs for later go through the exchange `later`
// instead of a queue for each delay. In config/queue.php, the connection's 'worker' is this class.

namespace App\Queue;

use VladimirYuldashev\LaravelQueueRabbitMQ\Queue\RabbitMQQueue;

class DelayedRabbitMQQueue extends RabbitMQQueue
{
    public function laterRaw($delay, string $payload, $queue = null, int $attempts = 0): int|string|null
    {
        [$message, $id] = $this->createMessage($payload, $attempts);
        $message->get('application_headers')->set('x-delay', $this->secondsUntil($delay) * 1000);
        $this->publishBasic($message, 'later', $this->getQueue($queue));

        return $id;
    }
}
