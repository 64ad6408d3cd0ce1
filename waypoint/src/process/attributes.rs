//! What a processor is told of a request, and of its answer, beside what it is shown of them.

use std::collections::{BTreeMap, HashMap};

use expression::cel::Expression;
use expression::{Subject, Value};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct};

/// By the name of Envoy's filter, under which processors look for them.
pub type Attributes = HashMap<String, Struct>;

pub(super) fn compile(texts: &[String]) -> Result<Box<[Expression]>, String> {
    let read = texts.iter().map(|text| {
        let read = Expression::read(text);
        read.map_err(|why| format!("attribute {text:?}: {why}"))
    });
    read.collect()
}

/// Both, under one name.
pub fn both(mut one: Attributes, other: Attributes) -> Attributes {
    for (name, more) in other {
        one.entry(name).or_default().fields.extend(more.fields);
    }
    one
}

/// Of one request, or one answer. What has no value is left out.
pub fn attributes(wanted: &[Expression], subject: &dyn Subject) -> Attributes {
    let told = wanted.iter().filter_map(|one| {
        let value = one.value(subject).ok()?;
        Some((one.text().to_owned(), told(&value, DEPTH)?))
    });
    let fields: BTreeMap<String, prost_types::Value> = told.collect();
    match fields.is_empty() {
        true => Attributes::new(),
        false => HashMap::from([(FILTER.to_owned(), Struct { fields })]),
    }
}

/// As JSON has it. None for nothing, and for what has no value of its own.
fn told(value: &Value<'_>, depth: usize) -> Option<prost_types::Value> {
    let depth = depth.checked_sub(1)?;
    let kind = match value {
        Value::Null | Value::Fields(_) => return None,
        Value::Bool(yes) => Kind::BoolValue(*yes),
        Value::Int(number) => Kind::NumberValue(*number as f64),
        Value::Uint(number) => Kind::NumberValue(*number as f64),
        Value::Double(number) => Kind::NumberValue(*number),
        Value::List(all) => Kind::ListValue(ListValue {
            values: all.iter().filter_map(|one| told(one, depth)).collect(),
        }),
        Value::Map(all) => {
            let fields = all.iter().filter_map(|(key, value)| match key {
                Value::Text(key) => Some((key.clone().into_owned(), told(value, depth)?)),
                _ => None,
            });
            Kind::StructValue(Struct {
                fields: fields.collect(),
            })
        }
        Value::Text(text) => Kind::StringValue(text.clone().into_owned()),
        other @ (Value::Bytes(_) | Value::Duration(_) | Value::Time(_)) => {
            Kind::StringValue(other.to_string())
        }
    };
    Some(prost_types::Value { kind: Some(kind) })
}

const FILTER: &str = "envoy.filters.http.ext_proc";
/// Of lists in lists.
const DEPTH: usize = 8;
