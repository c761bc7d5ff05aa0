// SPDX-License-Identifier: MPL-2.0
// What lapin says of a broker that is lost while a confirm is out (../lost.py).

use lapin::{options::*, types::FieldTable, BasicProperties, Connection, ConnectionProperties};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("no URL")?;
    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    channel
        .queue_declare(
            "lost".into(),
            QueueDeclareOptions::durable(),
            FieldTable::default(),
        )
        .await?;
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    let confirm = channel
        .basic_publish(
            "".into(),
            "lost".into(),
            BasicPublishOptions::default(),
            b"x",
            BasicProperties::default().with_delivery_mode(2),
        )
        .await?;
    println!("sent");
    match confirm.await {
        Ok(confirmation) => println!("{confirmation:?}"),
        Err(error) => println!("failed: {error}"),
    }
    Ok(())
}
