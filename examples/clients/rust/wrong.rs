// SPDX-License-Identifier: MPL-2.0
// A wrong delay closes the channel: what waits for a confirm gets the broker's reason as its error.
//
//     cargo add lapin futures-lite && cargo add tokio --features macros,rt-multi-thread
//     cargo run [amqp://guest:guest@localhost:5672]

use lapin::{
    options::*, types::*, BasicProperties, Connection, ConnectionProperties, ExchangeKind,
};

async fn publish(connection: &Connection, delay: AMQPValue) -> lapin::Result<()> {
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
    let mut headers = FieldTable::default();
    headers.insert("x-delay".into(), delay);
    channel
        .basic_publish(
            "later".into(),
            "job".into(),
            BasicPublishOptions::default(),
            b"hello",
            BasicProperties::default().with_headers(headers),
        )
        .await?
        .await?;
    channel.close(200, "".into()).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args()
        .nth(1)
        .unwrap_or("amqp://guest:guest@localhost:5672".into());
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    for (text, delay) in [
        ("5m", AMQPValue::LongString("5m".into())),
        ("1000", AMQPValue::LongLongInt(1000)),
    ] {
        match publish(&connection, delay).await {
            Ok(()) => println!("{text}: taken"),
            Err(error) => println!("{text}: {error}"),
        }
    }
    connection.close(200, "".into()).await?;
    Ok(())
}
