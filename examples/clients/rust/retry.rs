// SPDX-License-Identifier: MPL-2.0
// Retry: the consumer rejects, the exchange gives the message back after a pause, three times at most,
// and parks it then.
//
//     cargo add lapin futures-lite && cargo add tokio --features macros,rt-multi-thread
//     cargo run [amqp://guest:guest@localhost:5672]

use futures_lite::StreamExt;
use lapin::{
    message::Delivery, options::*, types::*, BasicProperties, Connection, ConnectionProperties,
    ExchangeKind,
};

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn header<'a>(message: &'a Delivery, name: &str) -> Option<&'a AMQPValue> {
    message.properties.headers().as_ref()?.inner().get(name)
}

// One more than it was rejected.
fn attempt_of(message: &Delivery) -> i64 {
    let Some(AMQPValue::FieldArray(deaths)) = header(message, "x-death") else {
        return 1;
    };
    1 + deaths
        .as_slice()
        .iter()
        .map(|death| match death {
            AMQPValue::FieldTable(death) if death.inner().get("queue") == Some(&text("orders")) => {
                match death.inner().get("count") {
                    Some(AMQPValue::LongLongInt(count)) => *count,
                    _ => 0,
                }
            }
            _ => 0,
        })
        .sum::<i64>()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args()
        .nth(1)
        .unwrap_or("amqp://guest:guest@localhost:5672".into());
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut arguments = FieldTable::default();
    for (name, value) in [
        ("x-delayed-type", "direct"),
        ("x-delay-retry", "100ms,200ms,400ms"),
        ("x-delay-retry-parking-exchange", ""),
        ("x-delay-retry-parking-routing-key", "parked"),
    ] {
        arguments.insert(name.into(), text(value));
    }
    channel
        .exchange_declare(
            "retry".into(),
            ExchangeKind::Custom("x-delayed-message".into()),
            ExchangeDeclareOptions {
                durable: true,
                ..Default::default()
            },
            arguments,
        )
        .await?;
    channel
        .queue_declare(
            "parked".into(),
            QueueDeclareOptions::durable(),
            FieldTable::default(),
        )
        .await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-dead-letter-exchange".into(), text("retry"));
    channel
        .queue_declare("orders".into(), QueueDeclareOptions::durable(), arguments)
        .await?;

    channel
        .basic_publish(
            "".into(),
            "orders".into(),
            BasicPublishOptions::default(),
            b"order 1",
            BasicProperties::default().with_delivery_mode(2),
        )
        .await?;
    let orders = channel
        .basic_consume(
            "orders".into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let parked = channel
        .basic_consume(
            "parked".into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let mut messages = orders.or(parked);
    while let Some(message) = messages.next().await {
        let message = message?;
        let body = String::from_utf8_lossy(&message.data);
        if let Some(AMQPValue::LongString(reason)) = header(&message, "x-delay-death-reason") {
            println!("{body} is parked: {reason}");
            message.ack(BasicAckOptions::default()).await?;
            break;
        }
        println!("{body}, attempt {}", attempt_of(&message));
        message
            .reject(BasicRejectOptions { requeue: false })
            .await?;
    }
    connection.close(200, "".into()).await?;
    Ok(())
}
