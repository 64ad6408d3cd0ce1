//! Reads recorded JSON as messages: IPs are text there and bytes on the wire.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;
use std::net::IpAddr;

/// A message from recorded JSON.
pub(crate) fn message<M: Message + Default>(full_name: &str, mut json: Value) -> M {
    addresses_to_bytes(&mut json);
    let pool = DescriptorPool::decode(api::DESCRIPTORS).unwrap();
    let descriptor = pool.get_message_by_name(full_name).unwrap();
    let message = DynamicMessage::deserialize(descriptor, &json)
        .unwrap_or_else(|error| panic!("{full_name}: {error}: {json}"));
    M::decode(&*message.encode_to_vec()).unwrap()
}

fn addresses_to_bytes(json: &mut Value) {
    match json {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "address" => *text = in_base64(text),
                    Value::Array(list) if name == "addresses" => {
                        list.iter_mut().for_each(|item| match item {
                            Value::String(text) => *text = in_base64(text),
                            other => addresses_to_bytes(other),
                        })
                    }
                    other => addresses_to_bytes(other),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(addresses_to_bytes),
        _ => {}
    }
}

fn in_base64(text: &str) -> String {
    match text
        .parse::<IpAddr>()
        .unwrap_or_else(|_| panic!("{text} is not an IP"))
    {
        IpAddr::V4(ip) => BASE64_STANDARD.encode(ip.octets()),
        IpAddr::V6(ip) => BASE64_STANDARD.encode(ip.octets()),
    }
}

/// The text of a recorded file.
pub(crate) fn recorded(path: &str) -> String {
    let path = format!("{}/testdata/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}
