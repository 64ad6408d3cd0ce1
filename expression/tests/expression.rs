//! Expressions and formats, asked about one request.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

#[path = "expression/format.rs"]
mod format;
#[path = "expression/fuzz.rs"]
mod fuzz;
#[path = "expression/judged.rs"]
mod judged;
#[path = "expression/refused.rs"]
mod refused;

use std::borrow::Cow;

use expression::{Attribute, Fields, Subject, Value};

fn struct_of<const N: usize>(fields: [(&'static str, Value<'static>); N]) -> Value<'static> {
    Value::Map(
        fields
            .map(|(name, value)| (Value::text(name), value))
            .into(),
    )
}

/// `GET /cart?item=7` of `shop/client`, answered 404 after 12 ms; there was no body.
pub(crate) struct Asked;

impl Subject for Asked {
    fn attribute(&self, attribute: Attribute) -> Value<'_> {
        match attribute {
            Attribute::Path => Value::text("/cart?item=7"),
            Attribute::UrlPath => Value::text("/cart"),
            Attribute::Query => Value::text("item=7"),
            Attribute::Host => Value::text("web.shop"),
            Attribute::Method => Value::text("GET"),
            Attribute::Protocol => Value::text("HTTP/1.1"),
            Attribute::Code => Value::Int(404),
            Attribute::Duration => Value::Duration(12_345_678),
            Attribute::Time => Value::Time(1_795_294_800_250_000_000),
            Attribute::RequestSize => Value::Int(0),
            Attribute::SourceAddress => Value::text("10.0.0.7"),
            Attribute::SourcePort => Value::Int(4711),
            Attribute::UpstreamAddress => Value::text("fd00::1"),
            Attribute::UpstreamPort => Value::Int(8080),
            Attribute::SourceNamespace => Value::text("shop"),
            Attribute::Mtls => Value::Bool(true),
            Attribute::GrpcStatus => Value::Int(5),
            Attribute::FlagLetters => Value::text("-"),
            Attribute::Metadata => struct_of([(
                "com.example.scan",
                struct_of([
                    ("verdict", Value::text("clean")),
                    ("tries", Value::Double(3.0)),
                    ("score", Value::Double(0.5)),
                    ("from", struct_of([("ip", Value::text("10.0.0.9"))])),
                    ("marks", Value::List([Value::Bool(true)].into())),
                ]),
            )]),
            _ => Value::Null,
        }
    }

    fn field(&self, of: Fields, name: &str) -> Option<Cow<'_, str>> {
        match (of, name) {
            (Fields::RequestHeaders, "x-user") => Some("anna".into()),
            (Fields::RequestHeaders, "x-path") => Some("/a?b".into()),
            (Fields::ResponseHeaders, "server") => Some("app".into()),
            _ => None,
        }
    }
}
