// SPDX-License-Identifier: MPL-2.0
// header_values CLIENT URL EXCHANGE CASES: sends the cases of ../header_values.py with lapin, amqprs or fe2o3-amqp.

use std::fs::File;

use serde_json::{json, Map, Value};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

struct Case<'a> {
    name: &'a str,
    kind: &'a str,
    value: &'a Value,
    copy: bool,
}

impl<'a> Case<'a> {
    fn new(json: &'a Value) -> Option<Self> {
        Some(Case {
            name: json["name"].as_str()?,
            kind: json["type"].as_str()?,
            value: &json["value"],
            copy: json["copy"].as_bool()?,
        })
    }

    /// The headers that have the value.
    fn names(&self) -> &'static [&'static str] {
        match self.copy {
            true => &["x-delay", "copy"],
            false => &["x-delay"],
        }
    }
}

fn integer(value: &Value) -> i64 {
    value.as_i64().expect("an integer")
}

fn float(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

/// A string that is not UTF-8 comes as a list of its bytes.
fn octets(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        Value::Array(list) => list.iter().map(|octet| integer(octet) as u8).collect(),
        _ => panic!("no string"),
    }
}

mod with_lapin {
    use super::*;
    use lapin::{options::*, types::*, BasicProperties, Connection, ConnectionProperties};

    fn native(kind: &str, value: &Value) -> AMQPValue {
        match kind {
            "b" => AMQPValue::ShortShortInt(integer(value) as i8),
            "B" => AMQPValue::ShortShortUInt(integer(value) as u8),
            "s" => AMQPValue::ShortInt(integer(value) as i16),
            "u" => AMQPValue::ShortUInt(integer(value) as u16),
            "I" => AMQPValue::LongInt(integer(value) as i32),
            "i" => AMQPValue::LongUInt(integer(value) as u32),
            "l" => AMQPValue::LongLongInt(integer(value)),
            "f" => AMQPValue::Float(float(value) as f32),
            "d" => AMQPValue::Double(float(value)),
            "D" => AMQPValue::DecimalValue(DecimalValue {
                scale: integer(&value[1]) as u8,
                value: integer(&value[0]) as u32,
            }),
            "T" => AMQPValue::Timestamp(integer(value) as u64),
            "t" => AMQPValue::Boolean(value.as_bool().expect("true or false")),
            "S" => AMQPValue::LongString(octets(value).into()),
            "x" => AMQPValue::ByteArray(octets(value).into()),
            "V" => AMQPValue::Void,
            "A" => AMQPValue::FieldArray(
                value
                    .as_array()
                    .expect("an array")
                    .iter()
                    .map(|inner| native("I", inner))
                    .collect::<Vec<_>>()
                    .into(),
            ),
            "F" => {
                let mut table = FieldTable::default();
                for (name, inner) in value.as_object().expect("a table") {
                    table.insert(name.as_str().into(), native("I", inner));
                }
                AMQPValue::FieldTable(table)
            }
            _ => panic!("no type {kind}"),
        }
    }

    async fn send(connection: &Connection, exchange: &str, case: &Case<'_>) -> lapin::Result<()> {
        let channel = connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        let mut headers = FieldTable::default();
        for name in case.names() {
            headers.insert((*name).into(), native(case.kind, case.value));
        }
        channel
            .basic_publish(
                exchange.into(),
                "k".into(),
                BasicPublishOptions::default(),
                case.name.as_bytes(),
                BasicProperties::default().with_headers(headers),
            )
            .await?
            .await?;
        channel.close(200, "".into()).await
    }

    pub async fn sent(url: &str, exchange: &str, cases: &[Case<'_>]) -> Result<Map<String, Value>> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let mut told = Map::new();
        for case in cases {
            let reason = send(&connection, exchange, case).await.err();
            told.insert(
                case.name.into(),
                json!(reason.map(|error| error.to_string())),
            );
        }
        connection.close(200, "".into()).await?;
        Ok(told)
    }
}

mod with_amqprs {
    use super::*;
    use amqprs::{
        callbacks::ChannelCallback,
        channel::*,
        connection::{Connection, OpenConnectionArguments},
        error::Error,
        Ack, BasicProperties, ByteArray, Cancel, CloseChannel, DecimalValue, FieldArray,
        FieldTable, FieldValue, Nack, Return,
    };
    use async_trait::async_trait;
    use tokio::sync::mpsc::{unbounded_channel, UnboundedSender};

    /// None for an ack, else why there is none.
    struct Answers(UnboundedSender<Option<String>>);

    impl Answers {
        fn say(&self, answer: Option<String>) {
            let _ = self.0.send(answer);
        }
    }

    #[async_trait]
    impl ChannelCallback for Answers {
        async fn close(
            &mut self,
            _: &Channel,
            close: CloseChannel,
        ) -> std::result::Result<(), Error> {
            self.say(Some(close.to_string()));
            Ok(())
        }
        async fn publish_ack(&mut self, _: &Channel, _: Ack) {
            self.say(None);
        }
        async fn publish_nack(&mut self, _: &Channel, _: Nack) {
            self.say(Some("nack".into()));
        }
        async fn publish_return(&mut self, _: &Channel, _: Return, _: BasicProperties, _: Vec<u8>) {
            self.say(Some("returned".into()));
        }
        async fn cancel(&mut self, _: &Channel, _: Cancel) -> std::result::Result<(), Error> {
            Ok(())
        }
        async fn flow(&mut self, _: &Channel, active: bool) -> std::result::Result<bool, Error> {
            Ok(active)
        }
    }

    fn native(kind: &str, value: &Value) -> Result<FieldValue> {
        Ok(match kind {
            "b" => FieldValue::b(integer(value) as i8),
            "B" => FieldValue::B(integer(value) as u8),
            "s" => FieldValue::s(integer(value) as i16),
            "u" => FieldValue::u(integer(value) as u16),
            "I" => FieldValue::I(integer(value) as i32),
            "i" => FieldValue::i(integer(value) as u32),
            "l" => FieldValue::l(integer(value)),
            "f" => FieldValue::f(float(value) as f32),
            "d" => FieldValue::d(float(value)),
            "D" => FieldValue::D(DecimalValue::new(
                integer(&value[1]) as u8,
                integer(&value[0]) as i32,
            )),
            "T" => FieldValue::T(integer(value) as u64),
            "t" => FieldValue::t(value.as_bool().expect("true or false")),
            "S" => FieldValue::S(String::from_utf8(octets(value))?.try_into()?),
            "x" => FieldValue::x(ByteArray::try_from(octets(value))?),
            "V" => FieldValue::V,
            "A" => FieldValue::A(FieldArray::try_from(
                value
                    .as_array()
                    .expect("an array")
                    .iter()
                    .map(|inner| native("I", inner))
                    .collect::<Result<Vec<_>>>()?,
            )?),
            "F" => {
                let mut table = FieldTable::new();
                for (name, inner) in value.as_object().expect("a table") {
                    table.insert(name.as_str().try_into()?, native("I", inner)?);
                }
                FieldValue::F(table)
            }
            _ => panic!("no type {kind}"),
        })
    }

    async fn send(
        connection: &Connection,
        exchange: &str,
        case: &Case<'_>,
    ) -> Result<Option<String>> {
        let (sender, mut answers) = unbounded_channel();
        let channel = connection.open_channel(None).await?;
        channel.register_callback(Answers(sender)).await?;
        channel
            .confirm_select(ConfirmSelectArguments::default())
            .await?;
        let mut headers = FieldTable::new();
        for name in case.names() {
            headers.insert((*name).try_into()?, native(case.kind, case.value)?);
        }
        channel
            .basic_publish(
                BasicProperties::default().with_headers(headers).finish(),
                case.name.into(),
                BasicPublishArguments::new(exchange, "k"),
            )
            .await?;
        let answer = answers.recv().await.ok_or("the connection is closed")?;
        if answer.is_none() {
            channel.close().await?;
        }
        Ok(answer)
    }

    pub async fn sent(url: &str, exchange: &str, cases: &[Case<'_>]) -> Result<Map<String, Value>> {
        let connection = Connection::open(&OpenConnectionArguments::try_from(url)?).await?;
        let mut told = Map::new();
        for case in cases {
            told.insert(
                case.name.into(),
                json!(send(&connection, exchange, case).await?),
            );
        }
        connection.close().await?;
        Ok(told)
    }
}

mod with_fe2o3 {
    use super::*;
    use fe2o3_amqp::{
        session::Error,
        types::{
            messaging::{ApplicationProperties, Message, MessageAnnotations, Outcome},
            primitives::{OrderedMap, SimpleValue, Timestamp, Value as Amqp},
        },
        Connection, Sender, Session,
    };

    fn native(kind: &str, value: &Value) -> Amqp {
        match kind {
            "b" => Amqp::from(integer(value) as i8),
            "B" => Amqp::from(integer(value) as u8),
            "s" => Amqp::from(integer(value) as i16),
            "u" => Amqp::from(integer(value) as u16),
            "I" => Amqp::from(integer(value) as i32),
            "i" => Amqp::from(integer(value) as u32),
            "l" => Amqp::from(integer(value)),
            "f" => Amqp::from(float(value) as f32),
            "d" => Amqp::from(float(value)),
            "T" => Amqp::Timestamp(Timestamp::from_milliseconds(integer(value) * 1000)),
            "t" => Amqp::from(value.as_bool().expect("true or false")),
            "S" => Amqp::from(value.as_str().expect("a string")),
            "x" => Amqp::Binary(octets(value).into()),
            "A" => Amqp::List(
                value
                    .as_array()
                    .expect("an array")
                    .iter()
                    .map(|inner| native("I", inner))
                    .collect(),
            ),
            "F" => {
                let mut map = OrderedMap::new();
                for (name, inner) in value.as_object().expect("a table") {
                    map.insert(Amqp::from(name.as_str()), native("I", inner));
                }
                Amqp::Map(map)
            }
            _ => panic!("no type {kind}"),
        }
    }

    /// In a session of its own, which ends if the broker does not take the message.
    async fn send(url: &str, exchange: &str, case: &Case<'_>) -> Result<Option<String>> {
        let mut connection = Connection::open("header_values", url).await?;
        let mut session = Session::begin(&mut connection).await?;
        let address = format!("/exchanges/{exchange}/k");
        let mut sender = Sender::attach(&mut session, case.name, address).await?;
        let value = native(case.kind, case.value);
        let mut builder = Message::builder().message_annotations(
            MessageAnnotations::builder()
                .insert("x-delay", value.clone())
                .build(),
        );
        // Of tables and lists there are no application properties.
        if let (true, Ok(simple)) = (case.copy, SimpleValue::try_from(value)) {
            builder = builder.application_properties(
                ApplicationProperties::builder()
                    .insert("copy", simple)
                    .build(),
            );
        }
        let message = builder.data(case.name.as_bytes().to_vec()).build();
        let told = tokio::select! {
            outcome = sender.send(message) => match outcome? {
                Outcome::Accepted(_) => None,
                other => Some(format!("{other:?}")),
            },
            ended = session.on_end() => match ended {
                Err(Error::RemoteEndedWithError(reason)) => reason.description,
                _ => return Err("the session has ended".into()),
            }
        };
        connection.close().await?;
        Ok(told)
    }

    pub async fn sent(url: &str, exchange: &str, cases: &[Case<'_>]) -> Result<Map<String, Value>> {
        let mut told = Map::new();
        for case in cases {
            told.insert(case.name.into(), json!(send(url, exchange, case).await?));
        }
        Ok(told)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, client, url, exchange, path] = arguments.as_slice() else {
        return Err("header_values CLIENT URL EXCHANGE CASES".into());
    };
    let all: Vec<Value> = serde_json::from_reader(File::open(path)?)?;
    let cases: Option<Vec<Case>> = all.iter().map(Case::new).collect();
    let cases = cases.ok_or("no cases")?;
    let told = match client.as_str() {
        "lapin" => with_lapin::sent(url, exchange, &cases).await?,
        "amqprs" => with_amqprs::sent(url, exchange, &cases).await?,
        "fe2o3-amqp" => with_fe2o3::sent(url, exchange, &cases).await?,
        _ => return Err(format!("no client {client}").into()),
    };
    println!("{}", json!(told));
    Ok(())
}
