//! Recorded JSON as messages, for tests: IP addresses are text there and bytes on the wire.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mesh::change::Payload;
use mesh::{Mesh, Snapshot, Update};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;
use std::sync::{Arc, LazyLock};

/// A snapshot of recorded addresses (`name` → `Address`); all of them must be acceptable.
pub(crate) fn snapshot(resources: &Value) -> Arc<Snapshot> {
    let (mesh, mut writer) = Mesh::new();
    let mut update = Update::default();
    for (name, resource) in resources.as_object().unwrap() {
        let address = message("istio.workload.Address", resource.clone());
        update
            .addresses
            .set
            .push((name.as_str().into(), Payload::Message(address)));
    }
    assert_eq!(writer.apply(update), []);
    mesh.load().clone()
}

fn message<M: Message + Default>(full_name: &str, mut json: Value) -> M {
    to_bytes(&mut json);
    let descriptor = POOL.get_message_by_name(full_name).unwrap();
    let message = DynamicMessage::deserialize(descriptor, &json)
        .unwrap_or_else(|error| panic!("{error}: {json}"));
    M::decode(&*message.encode_to_vec()).unwrap()
}

/// Read once: that takes a second.
static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(api::DESCRIPTORS).unwrap());

/// Every text that is an IP address becomes its bytes, as protobuf's JSON writes them.
fn to_bytes(json: &mut Value) {
    match json {
        Value::String(text) => match text.parse() {
            Ok(IpAddr::V4(ip)) => *text = STANDARD.encode(ip.octets()),
            Ok(IpAddr::V6(ip)) => *text = STANDARD.encode(ip.octets()),
            Err(_) => {}
        },
        Value::Array(items) => items.iter_mut().for_each(to_bytes),
        Value::Object(members) => members.values_mut().for_each(to_bytes),
        _ => {}
    }
}
