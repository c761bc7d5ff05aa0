<?php
// SPDX-License-Identifier: MPL-2.0
// A wrong delay closes the channel. php-amqplib reads what the broker says at the next call only: wait for
// the confirm after each message, or batch, whose delay may be wrong, and catch what that throws.
//
//     composer require php-amqplib/php-amqplib
//     php wrong.php [amqp://guest:guest@localhost:5672]

require 'vendor/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Exception\AMQPProtocolChannelException;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPTable;

$url = parse_url($argv[1] ?? 'amqp://guest:guest@localhost:5672');
$connection = new AMQPStreamConnection($url['host'], $url['port'], $url['user'], $url['pass']);

foreach (['5m', 1000] as $delay) {
    $channel = $connection->channel();
    $channel->confirm_select();
    $channel->exchange_declare('later', 'x-delayed-message', durable: true, auto_delete: false,
        arguments: new AMQPTable(['x-delayed-type' => 'direct']));
    $channel->basic_publish(new AMQPMessage('hello', [
        'application_headers' => new AMQPTable(['x-delay' => $delay]),
    ]), 'later', 'job');
    try {
        $channel->wait_for_pending_acks();
        echo "$delay: taken\n";
    } catch (AMQPProtocolChannelException $error) {
        echo "$delay: {$error->amqp_reply_code}, {$error->amqp_reply_text}\n";
    }
}
$connection->close();
