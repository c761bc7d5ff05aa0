// SPDX-License-Identifier: MPL-2.0
// Cancel: a message with the header x-delay-cancel cancels what is pending under that key.
//
//     cargo add lapin futures-lite && cargo add tokio --features macros,rt-multi-thread
//     cargo run [amqp://guest:guest@localhost:5672]

use futures_lite::StreamExt;
use lapin::{
    options::*, types::*, BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    ExchangeKind,
};

async fn publish(
    channel: &Channel,
    text: &str,
    headers: &[(&str, AMQPValue)],
) -> lapin::Result<()> {
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert((*name).into(), value.clone());
    }
    let confirm = channel
        .basic_publish(
            "later".into(),
            "job".into(),
            BasicPublishOptions::default(),
            text.as_bytes(),
            BasicProperties::default()
                .with_delivery_mode(2)
                .with_headers(table),
        )
        .await?
        .await?;
    assert!(
        matches!(confirm, Confirmation::Ack(_)),
        "the broker did not take it"
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args()
        .nth(1)
        .unwrap_or("amqp://guest:guest@localhost:5672".into());
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let mut arguments = FieldTable::default();
    arguments.insert(
        "x-delayed-type".into(),
        AMQPValue::LongString("direct".into()),
    );
    channel
        .exchange_declare(
            "later".into(),
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
            "work".into(),
            QueueDeclareOptions::durable(),
            FieldTable::default(),
        )
        .await?;
    channel
        .queue_bind(
            "work".into(),
            "later".into(),
            "job".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await?;

    for order in ["order 1", "order 2", "order 3"] {
        publish(
            &channel,
            order,
            &[
                ("x-delay", AMQPValue::LongLongInt(5000)),
                ("x-delay-key", AMQPValue::LongString(order.into())),
            ],
        )
        .await?;
    }
    publish(
        &channel,
        "",
        &[("x-delay-cancel", AMQPValue::LongString("order 2".into()))],
    )
    .await?;

    let mut messages = channel
        .basic_consume(
            "work".into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    for _ in 0..2 {
        let message = messages.next().await.ok_or("no longer consuming")??;
        println!("expired: {}", String::from_utf8_lossy(&message.data));
        message.ack(BasicAckOptions::default()).await?;
    }
    connection.close(200, "".into()).await?;
    Ok(())
}
