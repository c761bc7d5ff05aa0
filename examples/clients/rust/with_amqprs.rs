// SPDX-License-Identifier: MPL-2.0
// amqprs: confirms, returns and the reason for which a channel is closed come to a callback.
//
//     cargo add amqprs async-trait && cargo add tokio --features macros,rt-multi-thread,sync
//     cargo run [amqp://guest:guest@localhost:5672]

use std::time::Instant;

use amqprs::{
    callbacks::ChannelCallback,
    channel::*,
    connection::{Connection, OpenConnectionArguments},
    consumer::AsyncConsumer,
    error::Error,
    Ack, BasicProperties, Cancel, CloseChannel, Deliver, FieldTable, FieldValue, Nack, Return,
};
use async_trait::async_trait;
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver, UnboundedSender};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

enum Answer {
    Taken,
    Refused,
    Returned,
    Closed(String),
}

struct Answers(UnboundedSender<Answer>);

#[async_trait]
impl ChannelCallback for Answers {
    async fn close(&mut self, _: &Channel, close: CloseChannel) -> std::result::Result<(), Error> {
        let _ = self.0.send(Answer::Closed(close.to_string()));
        Ok(())
    }
    async fn publish_ack(&mut self, _: &Channel, _: Ack) {
        let _ = self.0.send(Answer::Taken);
    }
    async fn publish_nack(&mut self, _: &Channel, _: Nack) {
        let _ = self.0.send(Answer::Refused);
    }
    async fn publish_return(&mut self, _: &Channel, _: Return, _: BasicProperties, _: Vec<u8>) {
        let _ = self.0.send(Answer::Returned);
    }
    async fn cancel(&mut self, _: &Channel, _: Cancel) -> std::result::Result<(), Error> {
        Ok(())
    }
    async fn flow(&mut self, _: &Channel, active: bool) -> std::result::Result<bool, Error> {
        Ok(active)
    }
}

struct Received(UnboundedSender<(BasicProperties, Vec<u8>)>);

#[async_trait]
impl AsyncConsumer for Received {
    async fn consume(
        &mut self,
        channel: &Channel,
        deliver: Deliver,
        properties: BasicProperties,
        content: Vec<u8>,
    ) {
        let _ = self.0.send((properties, content));
        let _ = channel
            .basic_ack(BasicAckArguments::new(deliver.delivery_tag(), false))
            .await;
    }
}

struct Rejected(u32);

#[async_trait]
impl AsyncConsumer for Rejected {
    async fn consume(
        &mut self,
        channel: &Channel,
        deliver: Deliver,
        _: BasicProperties,
        content: Vec<u8>,
    ) {
        self.0 += 1;
        println!("{}, attempt {}", String::from_utf8_lossy(&content), self.0);
        let _ = channel
            .basic_reject(BasicRejectArguments::new(deliver.delivery_tag(), false))
            .await;
    }
}

/// What is rejected comes again after a pause, three times at most, and is parked then.
async fn retry(channel: &Channel) -> Result<()> {
    let mut arguments = FieldTable::new();
    for (name, value) in [
        ("x-delayed-type", "direct"),
        ("x-delay-retry", "100ms,200ms,400ms"),
        ("x-delay-retry-parking-exchange", ""),
        ("x-delay-retry-parking-routing-key", "parked"),
    ] {
        arguments.insert(name.try_into()?, text(value)?);
    }
    let mut exchange = ExchangeDeclareArguments::new("retry", "x-delayed-message");
    exchange.durable(true).arguments(arguments);
    channel.exchange_declare(exchange).await?;
    channel
        .queue_declare(QueueDeclareArguments::durable_client_named("parked"))
        .await?;
    let mut arguments = FieldTable::new();
    arguments.insert("x-dead-letter-exchange".try_into()?, text("retry")?);
    let mut orders = QueueDeclareArguments::durable_client_named("orders");
    orders.arguments(arguments);
    channel.queue_declare(orders).await?;

    let (sender, mut parked) = unbounded_channel();
    channel
        .basic_consume(Received(sender), BasicConsumeArguments::new("parked", ""))
        .await?;
    channel
        .basic_consume(Rejected(0), BasicConsumeArguments::new("orders", ""))
        .await?;
    channel
        .basic_publish(
            BasicProperties::default().with_delivery_mode(2).finish(),
            b"order 1".to_vec(),
            BasicPublishArguments::new("", "orders"),
        )
        .await?;
    let (properties, content) = parked.recv().await.ok_or("the connection is closed")?;
    let headers = properties.headers().ok_or("no headers")?;
    if let Some(FieldValue::S(reason)) = headers.get(&"x-delay-death-reason".try_into()?) {
        println!("{} is parked: {reason}", String::from_utf8_lossy(&content));
    }
    Ok(())
}

async fn open(connection: &Connection) -> Result<(Channel, UnboundedReceiver<Answer>)> {
    let (sender, answers) = unbounded_channel();
    let channel = connection.open_channel(None).await?;
    channel.register_callback(Answers(sender)).await?;
    channel
        .confirm_select(ConfirmSelectArguments::default())
        .await?;
    Ok((channel, answers))
}

async fn publish(
    (channel, answers): &mut (Channel, UnboundedReceiver<Answer>),
    key: &str,
    text: &str,
    headers: &[(&str, FieldValue)],
) -> Result<String> {
    let mut table = FieldTable::new();
    for (name, value) in headers {
        table.insert((*name).try_into()?, value.clone());
    }
    let properties = BasicProperties::default()
        .with_delivery_mode(2)
        .with_headers(table)
        .finish();
    let mut arguments = BasicPublishArguments::new("later", key);
    arguments.mandatory(true);
    channel
        .basic_publish(properties, text.into(), arguments)
        .await?;
    let mut outcome = "taken".to_string();
    loop {
        match answers.recv().await.ok_or("the connection is closed")? {
            Answer::Taken => return Ok(outcome),
            Answer::Returned => outcome = "returned".to_string(),
            Answer::Refused => return Ok("refused".to_string()),
            Answer::Closed(reason) => return Ok(reason),
        }
    }
}

fn text(value: &str) -> Result<FieldValue> {
    Ok(FieldValue::S(value.try_into()?))
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args()
        .nth(1)
        .unwrap_or("amqp://guest:guest@localhost:5672".into());
    let connection = Connection::open(&OpenConnectionArguments::try_from(url.as_str())?).await?;
    let mut session = open(&connection).await?;
    let mut arguments = FieldTable::new();
    arguments.insert("x-delayed-type".try_into()?, text("direct")?);
    let mut exchange = ExchangeDeclareArguments::new("later", "x-delayed-message");
    exchange.durable(true).arguments(arguments);
    session.0.exchange_declare(exchange).await?;
    session
        .0
        .queue_declare(QueueDeclareArguments::durable_client_named("work"))
        .await?;
    session
        .0
        .queue_bind(QueueBindArguments::new("work", "later", "job"))
        .await?;

    let delay = |ms| ("x-delay", FieldValue::l(ms));
    println!(
        "delayed: {}",
        publish(&mut session, "nobody", "hello", &[delay(1000)]).await?
    );
    println!(
        "at once: {}",
        publish(&mut session, "nobody", "hello", &[]).await?
    );
    println!(
        "5m: {}",
        publish(&mut session, "job", "hello", &[("x-delay", text("5m")?)]).await?
    );

    let mut session = open(&connection).await?;
    let published = Instant::now();
    let key = ("x-delay-key", text("order 1")?);
    publish(&mut session, "job", "order 1", &[delay(5000), key]).await?;
    publish(&mut session, "job", "hello", &[delay(6000)]).await?;
    publish(
        &mut session,
        "job",
        "",
        &[("x-delay-cancel", text("order 1")?)],
    )
    .await?;

    let (sender, mut received) = unbounded_channel();
    session
        .0
        .basic_consume(Received(sender), BasicConsumeArguments::new("work", ""))
        .await?;
    let (properties, content) = received.recv().await.ok_or("the connection is closed")?;
    let seconds = published.elapsed().as_secs_f64();
    println!(
        "{}, {seconds:.1} s later",
        String::from_utf8_lossy(&content)
    );
    if let Some(FieldValue::l(delay)) = properties
        .headers()
        .and_then(|headers| headers.get(&"x-delay".try_into().unwrap()))
    {
        println!("x-delay: {delay}");
    }
    retry(&session.0).await?;
    session.0.close().await?;
    connection.close().await?;
    Ok(())
}
