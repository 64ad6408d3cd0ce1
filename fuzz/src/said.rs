//! What is done with bytes that a fuzzer chose, where users say what is reported. Each function takes any bytes and
//! panics only when something is wrong with us. `expression/tests/expression/fuzz.rs` includes this file too.

use std::borrow::Cow;

use expression::cel::Expression;
use expression::format::{Format, Now};
use expression::{Attribute, Fields, Moment, Subject, Value};

/// A request whose texts are what the fuzzer says.
struct Asked<'a>(&'a str);

impl Subject for Asked<'_> {
    fn attribute(&self, attribute: Attribute) -> Value<'_> {
        match attribute {
            Attribute::Code => Value::Int(i64::MIN),
            Attribute::Duration => Value::Duration(i64::MAX),
            Attribute::Time => Value::Time(i64::MIN),
            Attribute::Mtls => Value::Bool(true),
            Attribute::Referer => Value::Null,
            _ => Value::text(self.0),
        }
    }

    fn field(&self, _: Fields, name: &str) -> Option<Cow<'_, str>> {
        (name != "none").then_some(Cow::Borrowed(self.0))
    }
}

/// The text of an expression, and what the request says.
fn halves(data: &[u8]) -> Option<(&str, &str)> {
    let text = std::str::from_utf8(data).ok()?;
    Some(text.split_once('\0').unwrap_or((text, "")))
}

/// Is refused, or yields something of a bounded size, or nothing.
pub fn expression(data: &[u8]) {
    let Some((text, said)) = halves(data) else {
        return;
    };
    if let Ok(read) = Expression::read(text) {
        assert_eq!(read.text(), text);
        let _ = read.headers();
        if let Ok(value) = read.value(&Asked(said)) {
            assert!(value.to_string().len() < 64 << 20);
        }
    }
}

/// Is refused, or becomes a line of a bounded length.
pub fn format(data: &[u8]) {
    let Some((text, said)) = halves(data) else {
        return;
    };
    if let Ok(read) = Format::read(text) {
        let now = Now {
            time: Moment(i64::MAX),
            hostname: "h",
        };
        assert!(read.text(&Asked(said), now).len() <= 32 << 10);
        let _ = read.json(&Asked(said), now);
    }
}
