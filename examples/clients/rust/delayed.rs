// SPDX-License-Identifier: MPL-2.0
// A message that arrives two seconds after it is published.
//
//     cargo add lapin futures-lite && cargo add tokio --features macros,rt-multi-thread
//     cargo run [amqp://guest:guest@localhost:5672]

use std::time::Instant;

use futures_lite::StreamExt;
use lapin::{
    options::*, types::*, BasicProperties, Confirmation, Connection, ConnectionProperties,
    ExchangeKind,
};

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

    let mut headers = FieldTable::default();
    headers.insert("x-delay".into(), AMQPValue::LongLongInt(2000));
    let published = Instant::now();
    let confirm = channel
        .basic_publish(
            "later".into(),
            "job".into(),
            BasicPublishOptions::default(),
            b"hello",
            BasicProperties::default()
                .with_delivery_mode(2)
                .with_headers(headers),
        )
        .await?
        .await?;
    assert!(
        matches!(confirm, Confirmation::Ack(_)),
        "the broker did not take it"
    );

    let mut messages = channel
        .basic_consume(
            "work".into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let message = messages.next().await.ok_or("no longer consuming")??;
    println!(
        "{}, {:.1} s later",
        String::from_utf8_lossy(&message.data),
        published.elapsed().as_secs_f64()
    );
    let headers = message.properties.headers().as_ref().ok_or("no headers")?;
    if let Some(AMQPValue::LongLongInt(delay)) = headers.inner().get("x-delay") {
        println!("x-delay: {delay}");
    }
    message.ack(BasicAckOptions::default()).await?;
    connection.close(200, "".into()).await?;
    Ok(())
}
