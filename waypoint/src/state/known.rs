//! Pure: which field of a resource this version does not know.
//!
//! Decoding drops what it does not know, which for most messages is what one wants. Of a policy or a route that would
//! leave a condition out: "from here, and only with that" would be read as "from here".

use std::collections::HashMap;
use std::sync::LazyLock;

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// Fields of the messages there are; of those that are messages themselves, which.
type Shapes = HashMap<String, HashMap<u32, Option<String>>>;

static SHAPES: LazyLock<Shapes> = LazyLock::new(|| {
    let mut shapes = Shapes::new();
    // Our own description of ourselves: without it every resource would be refused, which is seen at once.
    let files = FileDescriptorSet::decode(api::DESCRIPTORS).unwrap_or_default();
    for file in &files.file {
        for message in &file.message_type {
            note(&format!(".{}", file.package()), message, &mut shapes);
        }
    }
    shapes
});

fn note(within: &str, message: &DescriptorProto, shapes: &mut Shapes) {
    let name = format!("{within}.{}", message.name());
    for nested in &message.nested_type {
        note(&name, nested, shapes);
    }
    let fields = message.field.iter().map(|field| {
        let nested = (field.r#type() == Type::Message).then(|| field.type_name().to_owned());
        (field.number().unsigned_abs(), nested)
    });
    shapes.insert(name, fields.collect());
}

/// The first unknown field of an encoded resource: `field 13 of AuthorizationRule`. Nothing of what cannot be decoded.
pub(super) fn unknown_field(encoded: &Bytes) -> Option<String> {
    first_unknown(".ambit.waypoint.v1.Resource", encoded.clone(), 0)
}

fn first_unknown(message: &str, mut encoded: Bytes, depth: usize) -> Option<String> {
    let fields = SHAPES.get(message);
    while encoded.has_remaining() {
        let (number, wire_type) = decode_key(&mut encoded).ok()?;
        let Some(nested) = fields.and_then(|fields| fields.get(&number)) else {
            let message = message.rsplit('.').next().unwrap_or(message);
            return Some(format!("field {number} of {message}"));
        };
        match nested {
            Some(nested) if wire_type == WireType::LengthDelimited && depth < DEEPEST => {
                let length = usize::try_from(decode_varint(&mut encoded).ok()?).ok()?;
                if length > encoded.len() {
                    return None;
                }
                let content = encoded.split_to(length);
                if let Some(unknown) = first_unknown(nested, content, depth + 1) {
                    return Some(unknown);
                }
            }
            _ => skip_field(wire_type, number, &mut encoded, DecodeContext::default()).ok()?,
        }
    }
    None
}

/// As deep as decoding goes.
const DEEPEST: usize = 100;

#[cfg(test)]
mod tests {
    use api::waypoint::{
        Authorization, AuthorizationRule, Condition, Match, Resource, Route, resource::Kind,
    };

    use super::*;

    fn policy(rule: AuthorizationRule) -> Resource {
        Resource {
            key: "authorizationpolicy/ns/name".to_owned(),
            kind: Some(Kind::Authorization(Authorization {
                rules: vec![rule],
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    #[test]
    fn what_this_version_writes_it_knows() {
        let rule = AuthorizationRule {
            when: vec![Condition {
                key: "request.headers[x]".to_owned(),
                values: vec!["1".to_owned()],
                ..Default::default()
            }],
            ..Default::default()
        };
        let labels = [("app".to_owned(), "web".to_owned())];
        let route = Route {
            matches: vec![Match {
                source_labels: labels.into_iter().collect(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let route = Resource {
            kind: Some(Kind::Route(route)),
            ..Default::default()
        };
        for resource in [policy(rule), route] {
            assert_eq!(unknown_field(&resource.encode_to_vec().into()), None);
        }
    }

    #[test]
    fn a_field_of_a_later_version_is_found_however_deep_it_is() {
        // Rule: from = 1, to = 2, when = 3, and 9, which nobody has heard of.
        let policy = policy(AuthorizationRule::default()).encode_to_vec();
        let mut whole = policy.clone();
        whole.extend_from_slice(&[0x98, 0x06, 0x01]); // field 99
        assert_eq!(
            unknown_field(&whole.into()).as_deref(),
            Some("field 99 of Resource")
        );
        let nested = |number: u8, content: &[u8]| {
            let mut field = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
            field.extend_from_slice(content);
            field
        };
        let deep = nested(9, &nested(3, &[9 << 3, 1]));
        assert_eq!(
            unknown_field(&deep.into()).as_deref(),
            Some("field 9 of AuthorizationRule")
        );
        assert_eq!(unknown_field(&vec![10, 200].into()), None, "not decodable");
    }
}
