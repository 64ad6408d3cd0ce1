//! Messages of the control plane as JSON, with the names that `waypoint.proto` gives, and without key material.
//!
//! Read from the description of the messages that is compiled in, so that a new field is shown without a line here.
//! What has its default is left out, as protobuf does.

use std::collections::HashMap;
use std::sync::LazyLock;

use api::waypoint as wire;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use serde_json::{Map, Value, json};

/// A resource, for people.
pub(super) fn resource(found: &wire::Resource) -> Value {
    message(
        ".ambit.waypoint.v1.Resource",
        found.encode_to_vec().into(),
        0,
    )
}

#[derive(Default)]
struct Known {
    messages: HashMap<String, DescriptorProto>,
    enums: HashMap<String, EnumDescriptorProto>,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let mut known = Known::default();
    // Our own description of ourselves; without it there are no words for anything.
    let files = FileDescriptorSet::decode(api::DESCRIPTORS).unwrap_or_default();
    for file in &files.file {
        let within = format!(".{}", file.package());
        file.message_type
            .iter()
            .for_each(|found| known.add(&within, found));
        file.enum_type
            .iter()
            .for_each(|found| known.add_enum(&within, found));
    }
    known
});

impl Known {
    fn add(&mut self, within: &str, found: &DescriptorProto) {
        let name = format!("{within}.{}", found.name());
        found
            .nested_type
            .iter()
            .for_each(|nested| self.add(&name, nested));
        found
            .enum_type
            .iter()
            .for_each(|nested| self.add_enum(&name, nested));
        self.messages.insert(name, found.clone());
    }

    fn add_enum(&mut self, within: &str, found: &EnumDescriptorProto) {
        self.enums
            .insert(format!("{within}.{}", found.name()), found.clone());
    }
}

fn message(name: &str, mut encoded: Bytes, depth: usize) -> Value {
    let Some(known) = KNOWN.messages.get(name).filter(|_| depth < DEEPEST) else {
        return json!(format!("{} bytes", encoded.len()));
    };
    let mut shown = Map::new();
    while encoded.has_remaining() {
        let Ok((number, wire_type)) = decode_key(&mut encoded) else {
            break;
        };
        let mut fields = known.field.iter();
        let field = fields.find(|field| field.number().unsigned_abs() == number);
        let taken = match field {
            Some(field) => take(name, field, wire_type, &mut encoded, depth, &mut shown),
            None => skip_field(wire_type, number, &mut encoded, DecodeContext::default()).ok(),
        };
        if taken.is_none() {
            break;
        }
    }
    Value::Object(shown)
}

/// One field, into what is shown. None if it cannot be read.
fn take(
    within: &str,
    field: &FieldDescriptorProto,
    wire_type: WireType,
    encoded: &mut Bytes,
    depth: usize,
    shown: &mut Map<String, Value>,
) -> Option<()> {
    let name = field.name();
    let many = field.label() == Label::Repeated;
    let mut values = Vec::new();
    if wire_type == WireType::LengthDelimited {
        let length = usize::try_from(decode_varint(encoded).ok()?).ok()?;
        let mut content = (length <= encoded.len()).then(|| encoded.split_to(length))?;
        match field.r#type() {
            Type::Message => values.push(message(field.type_name(), content, depth + 1)),
            Type::String => values.push(json!(String::from_utf8_lossy(&content))),
            Type::Bytes if within.ends_with(".Secret") => values.push(hidden(name, &content)),
            Type::Bytes => values.push(match std::str::from_utf8(&content) {
                Ok(text) => json!(text),
                Err(_) => json!(STANDARD.encode(&content)),
            }),
            // Packed numbers.
            _ => {
                while content.has_remaining() {
                    values.push(number(field, packed(field), &mut content)?);
                }
            }
        }
    } else {
        values.push(number(field, wire_type, encoded)?);
    }
    for value in values {
        put(field, many, value, shown);
    }
    Some(())
}

/// Maps are messages of key and value.
fn put(field: &FieldDescriptorProto, many: bool, value: Value, shown: &mut Map<String, Value>) {
    let name = field.name().to_owned();
    let entry = KNOWN.messages.get(field.type_name());
    let is_map = entry
        .and_then(|entry| entry.options.as_ref())
        .is_some_and(|options| options.map_entry());
    if is_map {
        let key = value
            .get("key")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let value = value.get("value").cloned().unwrap_or(json!(""));
        if let Value::Object(map) = shown.entry(name).or_insert_with(|| json!({})) {
            map.insert(key, value);
        }
    } else if many {
        if let Value::Array(list) = shown.entry(name).or_insert_with(|| json!([])) {
            list.push(value);
        }
    } else {
        shown.insert(name, value);
    }
}

fn packed(field: &FieldDescriptorProto) -> WireType {
    match field.r#type() {
        Type::Double | Type::Fixed64 | Type::Sfixed64 => WireType::SixtyFourBit,
        Type::Float | Type::Fixed32 | Type::Sfixed32 => WireType::ThirtyTwoBit,
        _ => WireType::Varint,
    }
}

fn number(field: &FieldDescriptorProto, wire_type: WireType, encoded: &mut Bytes) -> Option<Value> {
    Some(match wire_type {
        WireType::Varint => {
            let value = decode_varint(encoded).ok()?;
            match field.r#type() {
                Type::Bool => json!(value != 0),
                Type::Enum => word(field.type_name(), value),
                Type::Int32 | Type::Int64 => json!(value.cast_signed()),
                _ => json!(value),
            }
        }
        WireType::SixtyFourBit => {
            let value = (encoded.remaining() >= 8).then(|| encoded.get_u64_le())?;
            match field.r#type() {
                Type::Double => json!(f64::from_bits(value)),
                _ => json!(value),
            }
        }
        WireType::ThirtyTwoBit => {
            let value = (encoded.remaining() >= 4).then(|| encoded.get_u32_le())?;
            match field.r#type() {
                Type::Float => json!(f32::from_bits(value)),
                _ => json!(value),
            }
        }
        _ => return None,
    })
}

fn word(name: &str, value: u64) -> Value {
    let known = KNOWN.enums.get(name);
    let mut values = known.into_iter().flat_map(|known| &known.value);
    let found = values.find(|found| u64::from(found.number().unsigned_abs()) == value);
    found.map_or(json!(value), |found| json!(found.name()))
}

/// That there is some, and no more. Certificates are public.
fn hidden(field: &str, content: &Bytes) -> Value {
    match std::str::from_utf8(content) {
        Ok(text) if field != "key" && !text.contains("PRIVATE KEY") => json!(text),
        _ => json!(format!("({} bytes, not shown)", content.len())),
    }
}

/// Deeper than any message there is.
const DEEPEST: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_shown_in_its_own_words() {
        let found = wire::Resource {
            key: "httproute/shop/web/0".to_owned(),
            origin: Some(wire::Origin {
                kind: "HTTPRoute".to_owned(),
                created: -5,
                ..Default::default()
            }),
            kind: Some(wire::resource::Kind::Route(wire::Route {
                hostnames: vec!["a".to_owned(), "b".to_owned()],
                precedence: wire::route::Precedence::Listed.into(),
                retry: Some(wire::Retry {
                    codes: vec![500, 503],
                    connect_failure: true,
                    ..Default::default()
                }),
                matches: vec![wire::Match {
                    source_labels: [("app".to_owned(), "web".to_owned())].into(),
                    ..Default::default()
                }],
                ..Default::default()
            })),
        };
        let expected = json!({
            "key": "httproute/shop/web/0",
            "origin": { "kind": "HTTPRoute", "created": -5 },
            "route": {
                "hostnames": ["a", "b"],
                "precedence": "LISTED",
                "retry": { "codes": [500, 503], "connect_failure": true },
                "matches": [{ "source_labels": { "app": "web" } }],
            },
        });
        assert_eq!(resource(&found), expected);
    }

    #[test]
    fn numbers_with_a_point_keep_it() {
        let found = wire::Resource {
            kind: Some(wire::resource::Kind::Telemetry(wire::Telemetry {
                tracing: Some(wire::Tracing {
                    sampling: Some(12.5),
                    ..Default::default()
                }),
                ..Default::default()
            })),
            ..Default::default()
        };
        assert_eq!(
            resource(&found),
            json!({ "telemetry": { "tracing": { "sampling": 12.5 } } })
        );
    }

    #[test]
    fn keys_are_never_shown() {
        let pem = |kind: &str| format!("-----BEGIN {kind}-----\nc2VjcmV0\n-----END {kind}-----\n");
        let found = wire::Resource {
            kind: Some(wire::resource::Kind::Secret(wire::Secret {
                certificate: pem("CERTIFICATE").into_bytes(),
                key: pem("EC PRIVATE KEY").into_bytes(),
                ca: pem("PRIVATE KEY").into_bytes(), // in the wrong place
                ..Default::default()
            })),
            ..Default::default()
        };
        let shown = resource(&found).to_string();
        assert_eq!(
            shown.matches("c2VjcmV0").count(),
            1,
            "the certificate's: {shown}"
        );
        assert_eq!(shown.matches("not shown").count(), 2);
    }
}
