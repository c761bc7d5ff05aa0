// SPDX-License-Identifier: MPL-2.0
// lost CLIENT URL: what lapin, amqprs and fe2o3-amqp say of a broker that is lost while a confirm is out (../lost.py).

use std::error::Error;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn wait_for_a_line() -> Result<()> {
    println!("ready");
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

async fn lapin(url: &str) -> Result<()> {
    use lapin::{options::*, types::FieldTable, BasicProperties, Connection, ConnectionProperties};
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
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
    wait_for_a_line()?;
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

mod callback {
    use amqprs::{
        callbacks::ChannelCallback, channel::Channel, error::Error, Ack, BasicProperties, Cancel,
        CloseChannel, Nack, Return,
    };
    use tokio::sync::mpsc::UnboundedSender;

    /// Of a channel's events, in words.
    pub struct Events(pub UnboundedSender<String>);

    impl Events {
        fn tell(&self, event: &str) {
            let _ = self.0.send(event.to_string());
        }
    }

    #[async_trait::async_trait]
    impl ChannelCallback for Events {
        async fn close(&mut self, _: &Channel, close: CloseChannel) -> Result<(), Error> {
            self.tell(&format!("channel closed: {close}"));
            Ok(())
        }
        async fn publish_ack(&mut self, _: &Channel, _: Ack) {
            self.tell("confirmed");
        }
        async fn publish_nack(&mut self, _: &Channel, _: Nack) {
            self.tell("refused");
        }
        async fn publish_return(&mut self, _: &Channel, _: Return, _: BasicProperties, _: Vec<u8>) {
            self.tell("returned");
        }
        async fn cancel(&mut self, _: &Channel, _: Cancel) -> Result<(), Error> {
            Ok(())
        }
        async fn flow(&mut self, _: &Channel, active: bool) -> Result<bool, Error> {
            Ok(active)
        }
    }
}

async fn amqprs(url: &str) -> Result<()> {
    use amqprs::{
        channel::*,
        connection::{Connection, OpenConnectionArguments},
        BasicProperties,
    };
    let connection = Connection::open(&OpenConnectionArguments::try_from(url)?).await?;
    let channel = connection.open_channel(None).await?;
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    channel.register_callback(callback::Events(sender)).await?;
    channel
        .confirm_select(ConfirmSelectArguments::default())
        .await?;
    channel
        .queue_declare(QueueDeclareArguments::durable_client_named("lost"))
        .await?;
    wait_for_a_line()?;
    channel
        .basic_publish(
            BasicProperties::default().with_delivery_mode(2).finish(),
            b"x".to_vec(),
            BasicPublishArguments::new("", "lost"),
        )
        .await?;
    println!("sent");
    println!(
        "connection lost: {}",
        connection.listen_network_io_failure().await
    );
    println!("the callback heard of it: {}", events.try_recv().is_ok());
    Ok(())
}

async fn declare(url: &str) -> Result<()> {
    use lapin::{options::*, types::FieldTable, Connection, ConnectionProperties};
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions::durable();
    channel
        .queue_declare("lost".into(), options, FieldTable::default())
        .await?;
    Ok(connection.close(200, "".into()).await?)
}

/// fe2o3-amqp declares nothing.
async fn fe2o3(url: &str) -> Result<()> {
    use fe2o3_amqp::{types::messaging::Message, Connection, Sender, Session};
    declare(url).await?;
    let mut connection = Connection::open("lost", url).await?;
    let mut session = Session::begin(&mut connection).await?;
    let mut sender = Sender::attach(&mut session, "lost", "/queues/lost").await?;
    wait_for_a_line()?;
    let message = Message::builder().data(b"x".to_vec()).build();
    let outcome = sender.send_batchable(message).await?;
    println!("sent");
    tokio::select! {
        outcome = outcome => println!("send: {}", outcome.is_ok()),
        ended = session.on_end() => println!("the session ended: {ended:?}"),
    }
    println!(
        "the connection failed: {}",
        connection.on_close().await.is_err()
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let client = arguments.next().ok_or("no client")?;
    let url = arguments.next().ok_or("no URL")?;
    match client.as_str() {
        "lapin" => lapin(&url).await,
        "fe2o3-amqp" => fe2o3(&url).await,
        _ => amqprs(&url).await,
    }
}
