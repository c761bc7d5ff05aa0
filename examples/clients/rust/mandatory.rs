// SPDX-License-Identifier: MPL-2.0
// Mandatory: what is delayed is taken, and never returned; what is not delayed is returned if no queue
// is bound now. lapin hands a return over with the confirm.
//
//     cargo add lapin futures-lite && cargo add tokio --features macros,rt-multi-thread
//     cargo run [amqp://guest:guest@localhost:5672]

use lapin::{
    options::*, types::*, BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    ExchangeKind,
};

async fn publish(channel: &Channel, text: &str, headers: FieldTable) -> lapin::Result<()> {
    let confirm = channel
        .basic_publish(
            "later".into(),
            "nobody".into(),
            BasicPublishOptions {
                mandatory: true,
                ..Default::default()
            },
            text.as_bytes(),
            BasicProperties::default().with_headers(headers),
        )
        .await?
        .await?;
    match confirm {
        Confirmation::Ack(Some(returned)) => println!("{text}: returned, {}", returned.reply_text),
        Confirmation::Ack(None) => println!("{text}: taken"),
        _ => println!("{text}: refused"),
    }
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

    let mut headers = FieldTable::default();
    headers.insert("x-delay".into(), AMQPValue::LongLongInt(1000));
    publish(&channel, "in a second", headers).await?;
    publish(&channel, "at once", FieldTable::default()).await?;
    connection.close(200, "".into()).await?;
    Ok(())
}
