<?php
// SPDX-License-Identifier: MPL-2.0
// header_values.php URL EXCHANGE CASES: sends the cases of ../header_values.py with php-amqplib.

require 'vendor/autoload.php';

use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Exception\AMQPProtocolChannelException;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPAbstractCollection as Type;
use PhpAmqpLib\Wire\AMQPArray;
use PhpAmqpLib\Wire\AMQPDecimal;
use PhpAmqpLib\Wire\AMQPTable;

const TYPES = [
    'b' => Type::T_INT_SHORTSHORT, 'B' => Type::T_INT_SHORTSHORT_U, 's' => Type::T_INT_SHORT,
    'u' => Type::T_INT_SHORT_U, 'I' => Type::T_INT_LONG, 'i' => Type::T_INT_LONG_U,
    'l' => Type::T_INT_LONGLONG, 'f' => Type::T_FLOAT, 'd' => Type::T_DOUBLE, 'D' => Type::T_DECIMAL,
    'T' => Type::T_TIMESTAMP, 'V' => Type::T_VOID, 't' => Type::T_BOOL, 'S' => Type::T_STRING_LONG,
    'A' => Type::T_ARRAY, 'F' => Type::T_TABLE, 'x' => Type::T_BYTES,
];

function native(string $type, mixed $value): mixed
{
    return match (true) {
        $type === 'D' => new AMQPDecimal($value[0], $value[1]),
        $type === 'A' => new AMQPArray($value),
        $type === 'F' => new AMQPTable($value),
        is_array($value) => pack('C*', ...$value),
        in_array($type, ['f', 'd']) => (float) $value,
        default => $value,
    };
}

[, $url, $exchange, $path] = $argv;
$url = parse_url($url);
$connection = new AMQPStreamConnection($url['host'], $url['port'], $url['user'], $url['pass']);
$told = [];
foreach (json_decode(file_get_contents($path), true, flags: JSON_THROW_ON_ERROR) as $case) {
    $channel = $connection->channel();
    $channel->confirm_select();
    $headers = new AMQPTable();
    foreach ($case['copy'] ? ['x-delay', 'copy'] : ['x-delay'] as $name) {
        $headers->set($name, native($case['type'], $case['value']), TYPES[$case['type']]);
    }
    $channel->basic_publish(new AMQPMessage($case['name'], ['application_headers' => $headers]),
        $exchange, 'k');
    try {
        $channel->wait_for_pending_acks();
        $channel->close();
        $told[$case['name']] = null;
    } catch (AMQPProtocolChannelException $error) {
        $told[$case['name']] = $error->amqp_reply_text;
    }
}
$connection->close();
echo json_encode($told, JSON_THROW_ON_ERROR), "\n";
