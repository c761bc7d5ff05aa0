<?php
// SPDX-License-Identifier: MPL-2.0
// Symfony Messenger: its AMQP transport on a delayed exchange. The delay is a header of the AmqpStamp.
//
//     composer require symfony/messenger symfony/amqp-messenger
//     php symfony.php [amqp://guest:guest@localhost:5672]

require 'vendor/autoload.php';

use Symfony\Component\Messenger\Bridge\Amqp\Transport\AmqpReceivedStamp;
use Symfony\Component\Messenger\Bridge\Amqp\Transport\AmqpStamp;
use Symfony\Component\Messenger\Bridge\Amqp\Transport\AmqpTransportFactory;
use Symfony\Component\Messenger\Envelope;
use Symfony\Component\Messenger\Exception\TransportException;
use Symfony\Component\Messenger\Transport\Serialization\PhpSerializer;

class Greeting
{
    public function __construct(public string $text)
    {
    }
}

$url = $argv[1] ?? 'amqp://guest:guest@localhost:5672';
// As `options` of a transport in messenger.yaml.
$options = [
    'exchange' => [
        'name' => 'later',
        'type' => 'x-delayed-message',
        'arguments' => ['x-delayed-type' => 'direct'],
    ],
    'queues' => ['work' => ['binding_keys' => ['job']]],
    'confirm_timeout' => 60,
];
$transport = (new AmqpTransportFactory())->createTransport($url, $options, new PhpSerializer());

$send = fn (string $text, array $headers) => $transport->send(new Envelope(new Greeting($text),
    [new AmqpStamp('job', AMQP_NOPARAM, ['headers' => $headers])]));

$published = microtime(true);
$send('order 1', ['x-delay' => 5000, 'x-delay-key' => 'order 1']);
$send('hello', ['x-delay' => 6000]);
$send('', ['x-delay-cancel' => 'order 1']);

try {
    $send('wrong', ['x-delay' => '5m']);
} catch (TransportException $error) {
    echo '5m: ', $error->getMessage(), "\n";
}

$transport = (new AmqpTransportFactory())->createTransport($url, $options, new PhpSerializer());
do {
    $envelopes = iterator_to_array($transport->get());
    usleep($envelopes ? 0 : 100_000);
} while (!$envelopes);
[$envelope] = $envelopes;
printf("%s, %.1f s later\n", $envelope->getMessage()->text, microtime(true) - $published);
printf("x-delay: %d\n", $envelope->last(AmqpReceivedStamp::class)->getAmqpEnvelope()->getHeader('x-delay'));
$transport->ack($envelope);
