// SPDX-License-Identifier: MPL-2.0
// dead_letter URL: what fe2o3-amqp says of the message in the queue `dead`, which has died in another one.

use fe2o3_amqp::{
    link::RecvError,
    types::{messaging::Body, primitives::Value},
    Connection, Receiver, Session,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1).ok_or("no URL")?;
    let mut connection = Connection::open("dead_letter", url.as_str()).await?;
    let mut session = Session::begin(&mut connection).await?;
    let mut receiver = Receiver::attach(&mut session, "dead", "/queues/dead").await?;
    match receiver.recv::<Body<Value>>().await {
        Ok(_) => println!("read"),
        Err(RecvError::MessageDecode(_)) => println!("it cannot be decoded"),
        Err(error) => println!("{error}"),
    }
    connection.close().await?;
    Ok(())
}
