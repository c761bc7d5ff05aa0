<?php
// SPDX-License-Identifier: MPL-2.0
// What Symfony Messenger says of a broker that is lost while a confirm is out (../lost.py).

require 'vendor/autoload.php';

use Symfony\Component\Messenger\Bridge\Amqp\Transport\AmqpTransportFactory;
use Symfony\Component\Messenger\Envelope;
use Symfony\Component\Messenger\Transport\Serialization\PhpSerializer;

$options = [
    'exchange' => ['name' => 'lost', 'type' => 'fanout'],
    'queues' => ['lost' => []],
    'confirm_timeout' => 600,
];
$transport = (new AmqpTransportFactory())->createTransport($argv[1], $options, new PhpSerializer());
// It declares with the first message.
$transport->send(new Envelope(new stdClass()));
echo "ready\n";
fgets(STDIN);
try {
    $transport->send(new Envelope(new stdClass()));
    echo "confirmed\n";
} catch (Exception $error) {
    echo get_class($error), ': ', $error->getMessage(), "\n";
}
