<?php
// SPDX-License-Identifier: MPL-2.0
// Cancel: a message with the header x-delay-cancel cancels what is pending under that key.
//
//     composer require php-amqplib/php-amqplib
//     php cancel.php [amqp://guest:guest@localhost:5672]

require 'vendor/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPTable;

$url = parse_url($argv[1] ?? 'amqp://guest:guest@localhost:5672');
$connection = new AMQPStreamConnection($url['host'], $url['port'], $url['user'], $url['pass']);
$channel = $connection->channel();
$channel->confirm_select();
$channel->exchange_declare('later', 'x-delayed-message', durable: true, auto_delete: false,
    arguments: new AMQPTable(['x-delayed-type' => 'direct']));
$channel->queue_declare('work', durable: true, auto_delete: false);
$channel->queue_bind('work', 'later', 'job');

$publish = function (string $text, array $headers) use ($channel) {
    $channel->basic_publish(new AMQPMessage($text, [
        'delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT,
        'application_headers' => new AMQPTable($headers),
    ]), 'later', 'job');
    $channel->wait_for_pending_acks();
};

foreach (['order 1', 'order 2', 'order 3'] as $order) {
    $publish($order, ['x-delay' => 5000, 'x-delay-key' => $order]);
}
$publish('', ['x-delay-cancel' => 'order 2']);

$left = 2;
$channel->basic_consume('work', callback: function (AMQPMessage $message) use (&$left) {
    echo 'expired: ', $message->getBody(), "\n";
    $message->ack();
    $left--;
});
while ($left > 0) {
    $channel->wait();
}
$connection->close();
