<?php
// SPDX-License-Identifier: MPL-2.0
// Mandatory: what is delayed is taken, and never returned; what is not delayed is returned if no queue
// is bound now.
//
//     composer require php-amqplib/php-amqplib
//     php mandatory.php [amqp://guest:guest@localhost:5672]

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

// A return comes before the message's confirm, but only this wait looks for returns.
$returned = null;
$channel->set_return_listener(function ($code, $text) use (&$returned) {
    $returned = $text;
});

foreach (['in a second' => ['x-delay' => 1000], 'at once' => []] as $text => $headers) {
    $returned = null;
    $channel->basic_publish(new AMQPMessage($text, [
        'application_headers' => new AMQPTable($headers),
    ]), 'later', 'nobody', mandatory: true);
    $channel->wait_for_pending_acks_returns();
    echo $text, ': ', $returned === null ? 'taken' : "returned, $returned", "\n";
}
$connection->close();
