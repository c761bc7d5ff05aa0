<?php
// SPDX-License-Identifier: MPL-2.0
// Retry: the consumer rejects, the exchange gives the message back after a pause, three times at most,
// and parks it then.
//
//     composer require php-amqplib/php-amqplib
//     php retry.php [amqp://guest:guest@localhost:5672]

require 'vendor/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPTable;

$url = parse_url($argv[1] ?? 'amqp://guest:guest@localhost:5672');
$connection = new AMQPStreamConnection($url['host'], $url['port'], $url['user'], $url['pass']);
$channel = $connection->channel();
$channel->exchange_declare('retry', 'x-delayed-message', durable: true, auto_delete: false,
    arguments: new AMQPTable([
        'x-delayed-type' => 'direct',
        'x-delay-retry' => '100ms,200ms,400ms',
        'x-delay-retry-parking-exchange' => '',
        'x-delay-retry-parking-routing-key' => 'parked',
    ]));
$channel->queue_declare('parked', durable: true, auto_delete: false);
$channel->queue_declare('orders', durable: true, auto_delete: false,
    arguments: new AMQPTable(['x-dead-letter-exchange' => 'retry']));

function headers(AMQPMessage $message): array
{
    return $message->has('application_headers')
        ? $message->get('application_headers')->getNativeData() : [];
}

// One more than it was rejected.
function attempt(AMQPMessage $message): int
{
    $deaths = array_filter(headers($message)['x-death'] ?? [], fn ($death) => $death['queue'] === 'orders');
    return 1 + array_sum(array_column($deaths, 'count'));
}

$channel->basic_consume('orders', callback: function (AMQPMessage $message) {
    echo $message->getBody(), ', attempt ', attempt($message), "\n";
    $message->reject(requeue: false);
});
$parked = false;
$channel->basic_consume('parked', callback: function (AMQPMessage $message) use (&$parked) {
    echo $message->getBody(), ' is parked: ', headers($message)['x-delay-death-reason'], "\n";
    $message->ack();
    $parked = true;
});
$channel->basic_publish(new AMQPMessage('order 1',
    ['delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT]), '', 'orders');
while (!$parked) {
    $channel->wait();
}
$connection->close();
