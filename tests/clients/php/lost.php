<?php
// SPDX-License-Identifier: MPL-2.0
// What php-amqplib says of a broker that is lost while a confirm is out (../lost.py).

require 'vendor/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;

$url = parse_url($argv[1]);
$connection = new AMQPStreamConnection($url['host'], $url['port'], $url['user'], $url['pass'],
    read_write_timeout: 600);
$channel = $connection->channel();
$channel->confirm_select();
$channel->queue_declare('lost', durable: true, auto_delete: false);
echo "ready\n";
fgets(STDIN);
$channel->basic_publish(new AMQPMessage('x', ['delivery_mode' => 2]), '', 'lost');
echo "sent\n";
try {
    $channel->wait_for_pending_acks();
    echo "confirmed\n";
} catch (Exception $error) {
    echo get_class($error), "\n";
}
