<?php
// SPDX-License-Identifier: MPL-2.0
// A message that arrives two seconds after it is published.
//
//     composer require php-amqplib/php-amqplib
//     php delayed.php [amqp://guest:guest@localhost:5672]

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

$published = microtime(true);
$channel->basic_publish(new AMQPMessage('hello', [
    'delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT,
    'application_headers' => new AMQPTable(['x-delay' => 2000]),
]), 'later', 'job');
$channel->wait_for_pending_acks();

$channel->basic_consume('work', callback: function (AMQPMessage $message) use ($published) {
    printf("%s, %.1f s later\n", $message->getBody(), microtime(true) - $published);
    printf("x-delay: %d\n", $message->get('application_headers')->getNativeData()['x-delay']);
    $message->ack();
    $message->getChannel()->basic_cancel($message->getConsumerTag());
});
while ($channel->is_consuming()) {
    $channel->wait();
}
$connection->close();
