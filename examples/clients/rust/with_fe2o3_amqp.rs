// SPDX-License-Identifier: MPL-2.0
// AMQP 1.0, for RabbitMQ 4: the delay is a message annotation. fe2o3-amqp declares nothing: the exchange `later`,
// the queue `work`, bound to it with the key "job", and the queue `parked` are there already.
//
//     cargo add fe2o3-amqp && cargo add tokio --features macros,rt-multi-thread
//     cargo run [amqp://guest:guest@localhost:5672]

use std::time::Instant;

use fe2o3_amqp::{
    connection::ConnectionHandle,
    session::{self, SessionHandle},
    types::{
        messaging::{
            annotations::AnnotationKey, Body, Header, Message, MessageAnnotations, Outcome,
        },
        primitives::Value,
    },
    Connection, Delivery, Receiver, Sender, Session,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const LATER: &str = "/exchanges/later/job";

/// What becomes of it. A link for each message is not needed, but shorter here.
async fn send(
    session: &mut SessionHandle<()>,
    address: &str,
    text: &str,
    annotations: &[(&str, Value)],
) -> Result<Outcome> {
    let mut builder = MessageAnnotations::builder();
    for (name, value) in annotations {
        builder = builder.insert(*name, value.clone());
    }
    let header = Header {
        durable: true,
        ..Header::default()
    };
    let message = Message::builder()
        .header(header)
        .message_annotations(builder.build())
        .data(text.as_bytes().to_vec())
        .build();
    let mut sender = Sender::attach(session, format!("{address} {text}"), address).await?;
    // send() does not hear that its session has ended, and waits for ever.
    let outcome = tokio::select! {
        outcome = sender.send(message) => outcome?,
        ended = session.on_end() => {
            ended?;
            return Err("the session has ended".into());
        }
    };
    sender.close().await?;
    Ok(outcome)
}

/// The session is ended, with the reason, and what was not settled in it has to be sent again.
async fn wrong_delay(connection: &mut ConnectionHandle<()>) -> Result<()> {
    let mut doomed = Session::begin(connection).await?;
    let annotations = [("x-delay", Value::from("5m"))];
    if let Err(error) = send(&mut doomed, LATER, "hello", &annotations).await {
        match error.downcast_ref() {
            Some(session::Error::RemoteEndedWithError(reason)) => {
                println!("5m: {}", reason.description.as_deref().unwrap_or_default())
            }
            _ => return Err(error),
        }
    }
    Ok(())
}

async fn receive(receiver: &mut Receiver) -> Result<(Delivery<Body<Value>>, String)> {
    let delivery = receiver.recv::<Body<Value>>().await?;
    let data = delivery.body().try_as_data().map_err(|_| "no data")?;
    let text = data.flat_map(|binary| binary.to_vec()).collect();
    Ok((delivery, String::from_utf8(text)?))
}

fn annotation<'a>(delivery: &'a Delivery<Body<Value>>, name: &str) -> Option<&'a Value> {
    let annotations = delivery.message().message_annotations.as_ref()?;
    annotations.0.get(&name as &dyn AnnotationKey)
}

/// fe2o3-amqp cannot read a dead letter, which has an array of maps among its annotations. So the consumer sends
/// again what it cannot do yet, with a pause, and accepts it then; the key is for one that dies between the two.
async fn retry(session: &mut SessionHandle<()>, work: &mut Receiver) -> Result<()> {
    send(session, LATER, "order 1", &[]).await?;
    loop {
        let (delivery, text) = receive(work).await?;
        let attempt = match annotation(&delivery, "x-opt-attempt") {
            Some(Value::Long(attempt)) => *attempt,
            _ => 1,
        };
        println!("{text}, attempt {attempt}");
        if attempt == 4 {
            send(session, "/queues/parked", &text, &[]).await?;
            work.accept(&delivery).await?;
            break;
        }
        let again = [
            ("x-delay", Value::from(50i64 << attempt)),
            ("x-delay-key", Value::from(text.as_str())),
            ("x-opt-attempt", Value::from(attempt + 1)),
        ];
        send(session, LATER, &text, &again).await?;
        work.accept(&delivery).await?;
    }
    let mut parked = Receiver::attach(session, "parked", "/queues/parked").await?;
    let (delivery, text) = receive(&mut parked).await?;
    println!("{text} is parked");
    parked.accept(&delivery).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::args()
        .nth(1)
        .unwrap_or("amqp://guest:guest@localhost:5672".into());
    let mut connection = Connection::open("with_fe2o3_amqp", url.as_str()).await?;
    let mut session = Session::begin(&mut connection).await?;

    // What is to be routed at once is released if no queue is bound. What is delayed is accepted.
    let delay = |ms: i64| ("x-delay", Value::from(ms));
    let nobody = "/exchanges/later/nobody";
    if let Outcome::Accepted(_) = send(&mut session, nobody, "hello", &[delay(1000)]).await? {
        println!("delayed: taken");
    }
    if let Outcome::Released(_) = send(&mut session, nobody, "hello", &[]).await? {
        println!("at once: returned");
    }
    wrong_delay(&mut connection).await?;

    let published = Instant::now();
    let key = ("x-delay-key", Value::from("order 1"));
    send(&mut session, LATER, "order 1", &[delay(5000), key]).await?;
    send(&mut session, LATER, "hello", &[delay(6000)]).await?;
    let cancel = ("x-delay-cancel", Value::from("order 1"));
    send(&mut session, LATER, "", &[cancel]).await?;
    let mut work = Receiver::attach(&mut session, "work", "/queues/work").await?;
    let (delivery, text) = receive(&mut work).await?;
    println!("{text}, {:.1} s later", published.elapsed().as_secs_f64());
    if let Some(Value::Long(delay)) = annotation(&delivery, "x-delay") {
        println!("x-delay: {delay}");
    }
    work.accept(&delivery).await?;

    retry(&mut session, &mut work).await?;
    session.end().await?;
    connection.close().await?;
    Ok(())
}
