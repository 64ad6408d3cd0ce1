//! What types can say, said of all fields at once and with the path of each: reading an object
//! stops at its first mistake, and whoever has three wants to hear of three.
//!
//! Enters: an object as JSON, the shape of its kind ([`crate::k8s::crd`]). Leaves: fields that do
//! not exist, with the one that was probably meant; values of another type; words that are none of
//! the choices; lists that are empty, or longer than an API server takes.

use std::sync::LazyLock;

use serde_json::Value;

use super::{Path, Problems, words};
use crate::k8s::crd;
use crate::k8s::objects::Kind;

/// Of kinds that are not Istio's nothing is said: their own API server checked them.
pub(super) fn check(kind: Kind, object: &Value, problems: &mut Problems) {
    let Some(shape) = SHAPES.iter().find(|(of, _)| *of == kind) else {
        return;
    };
    let Value::Object(fields) = object else {
        return problems.add(Path::default(), "is not an object");
    };
    for (name, value) in fields {
        let path = Path::default().key(name);
        match name.as_str() {
            "apiVersion" | "kind" | "metadata" | "status" => {}
            "spec" => value_of(&shape.1, value, &path, problems),
            _ => problems.add(path, unknown(name, TOP.into_iter())),
        }
    }
}

static SHAPES: LazyLock<Vec<(Kind, Value)>> = LazyLock::new(|| {
    let shape = |kind| crd::closed(kind).ok().map(|shape| (kind, shape));
    crd::KINDS.into_iter().filter_map(shape).collect()
});

const TOP: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

fn value_of(shape: &Value, value: &Value, path: &Path, problems: &mut Problems) {
    if problems.full() {
        return;
    }
    let expected = shape["type"].as_str().unwrap_or_default();
    match (expected, value) {
        ("object", Value::Object(fields)) => {
            bounded(shape, "maxProperties", fields.len(), path, problems);
            for (name, value) in fields {
                if problems.full() {
                    return;
                }
                let path = path.key(name);
                match shape["properties"].get(name) {
                    Some(shape) => value_of(shape, value, &path, problems),
                    None if shape["additionalProperties"].is_object() => {
                        value_of(&shape["additionalProperties"], value, &path, problems);
                    }
                    None => {
                        let known = shape["properties"].as_object().into_iter().flatten();
                        problems.add(path, unknown(name, known.map(|(name, _)| name.as_str())));
                    }
                }
            }
        }
        ("array", Value::Array(items)) => {
            if items.is_empty() && shape["minItems"].is_u64() && !said_by_check(path) {
                problems.add(path.clone(), words::EMPTY_LIST);
            }
            bounded(shape, "maxItems", items.len(), path, problems);
            for (index, item) in items.iter().enumerate() {
                value_of(&shape["items"], item, &path.index(index), problems);
            }
        }
        ("string", Value::String(text)) => {
            bounded(shape, "maxLength", text.chars().count(), path, problems);
            let choices = shape["enum"].as_array();
            if choices.is_some_and(|choices| !choices.contains(value)) {
                let choices = choices.into_iter().flatten().filter_map(Value::as_str);
                let choices: Vec<_> = choices.collect();
                problems.add(
                    path.clone(),
                    format!("{text:?} is not one of {}", choices.join(", ")),
                );
            }
        }
        // Whether it is a port is told later, together with what a port is.
        ("integer", Value::Number(number))
            if number.as_u64().is_some_and(|it| u32::try_from(it).is_ok()) => {}
        ("integer", Value::Number(number)) => {
            problems.add(
                path.clone(),
                format!("{number} is not a whole number from 0 to 4294967295"),
            );
        }
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => {}
        _ => problems.add(
            path.clone(),
            format!("{}; it is to be {}", found(value), named(expected)),
        ),
    }
}

/// `hosts` have words of their own for none.
fn said_by_check(path: &Path) -> bool {
    *path == super::spec().key("hosts")
}

fn bounded(shape: &Value, word: &str, length: usize, path: &Path, problems: &mut Problems) {
    let most = shape[word]
        .as_u64()
        .and_then(|most| usize::try_from(most).ok());
    if let Some(most) = most.filter(|most| length > *most) {
        let what = if word == "maxLength" {
            "characters"
        } else {
            "entries"
        };
        problems.add(
            path.clone(),
            format!("{length} {what} are more than {most}; split it"),
        );
    }
}

/// What a value is, with as much of it as is of use.
fn found(value: &Value) -> String {
    match value {
        Value::Null => "there is nothing".into(),
        Value::Bool(_) | Value::Number(_) => format!("{value} is a {}", plain(value)),
        Value::String(_) => "it is a text".into(),
        Value::Array(_) => "it is a list".into(),
        Value::Object(_) => "it is an object".into(),
    }
}

fn plain(value: &Value) -> &'static str {
    if value.is_boolean() {
        "yes or no"
    } else {
        "number"
    }
}

fn named(expected: &str) -> &str {
    match expected {
        "object" => "an object",
        "array" => "a list, also of one: [ … ]",
        "string" => "a text: put it in quotes",
        "integer" | "number" => "a number without quotes",
        "boolean" => "true or false, without quotes",
        other => other,
    }
}

/// The field that was probably meant, else all there are.
fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<_> = known.collect();
    let nearest = known.iter().map(|it| (distance(name, it), *it)).min();
    match nearest {
        Some((away, meant)) if away <= 1 + meant.len() / 4 => {
            format!("unknown field; did you mean {meant}?")
        }
        _ => format!("unknown field; there are {}", known.join(", ")),
    }
}

/// How many letters must be added, removed or changed; not counting their case. Names here are
/// short; whatever is longer is nobody's typing error.
fn distance(one: &str, other: &str) -> usize {
    if one.len() > 64 {
        return one.len();
    }
    let (one, other) = (one.to_ascii_lowercase(), other.to_ascii_lowercase());
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (position, letter) in one.bytes().enumerate() {
        let mut diagonal = position;
        let mut left = position + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, letter_of_other) in row.iter_mut().skip(1).zip(other.bytes()) {
            let changed = diagonal + usize::from(letter != letter_of_other);
            diagonal = *cell;
            left = changed.min(diagonal + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problems(kind: Kind, spec: Value) -> Vec<String> {
        let mut problems = Problems::default();
        check(kind, &json!({"spec": spec}), &mut problems);
        problems.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_mistake_is_named_with_its_place() {
        let spec = json!({
            "action": "FORBID",
            "rulez": [],
            "rules": [{
                "from": [{"source": {"principal": ["a"], "ipblocks": [], "namespaces": []}}],
                "to": [{"operation": {"ports": [80, "81"], "methods": "GET"}}],
            }],
        });
        assert_eq!(
            problems(Kind::AuthorizationPolicy, spec),
            [
                "spec.action: \"FORBID\" is not one of ALLOW, DENY, AUDIT, CUSTOM",
                "spec.rules[0].from[0].source.ipblocks: unknown field; did you mean ipBlocks?",
                "spec.rules[0].from[0].source.namespaces: an empty list would restrict nothing; leave the field out",
                "spec.rules[0].from[0].source.principal: unknown field; did you mean principals?",
                "spec.rules[0].to[0].operation.methods: it is a text; it is to be a list, also of one: [ … ]",
                "spec.rules[0].to[0].operation.ports[0]: 80 is a number; it is to be a text: put it in quotes",
                "spec.rulez: unknown field; did you mean rules?",
            ]
        );
    }

    #[test]
    fn a_field_beside_the_spec_is_unknown_too() {
        let mut found = Problems::default();
        let object =
            json!({"apiVersion": "", "kind": "", "metadata": {}, "status": {"any": 1}, "sepc": {}});
        check(Kind::PeerAuthentication, &object, &mut found);
        assert_eq!(found.0.len(), 1);
        assert_eq!(
            found.0[0].to_string(),
            "sepc: unknown field; did you mean spec?"
        );
        let mut found = Problems::default();
        check(Kind::PeerAuthentication, &json!([]), &mut found);
        assert_eq!(found.0.len(), 1);
    }

    #[test]
    fn nothing_is_said_of_what_is_right_or_is_said_elsewhere() {
        for (kind, spec) in [
            (Kind::AuthorizationPolicy, json!({})),
            (
                Kind::PeerAuthentication,
                json!({"portLevelMtls": {"8080": {"mode": "STRICT"}}}),
            ),
            (
                Kind::ServiceEntry,
                json!({"hosts": [], "ports": [{"number": 70000}], "endpoints": []}),
            ),
            (
                Kind::WorkloadEntry,
                json!({"labels": {"any": "thing"}, "ports": {"http": 1}, "weight": 7}),
            ),
            (Kind::Pod, json!("whatever")),
        ] {
            assert_eq!(problems(kind, spec.clone()), Vec::<String>::new(), "{spec}");
        }
    }

    #[test]
    fn numbers_that_do_not_fit_and_lists_that_are_too_long_are_refused() {
        for (kind, spec, word) in [
            (Kind::WorkloadEntry, json!({"weight": -1}), "weight: -1"),
            (Kind::WorkloadEntry, json!({"weight": 1.5}), "weight: 1.5"),
            (
                Kind::WorkloadEntry,
                json!({"weight": u64::MAX}),
                "whole number",
            ),
            (Kind::WorkloadEntry, json!({"address": null}), "nothing"),
            (
                Kind::WorkloadEntry,
                json!({"address": "a".repeat(257)}),
                "256",
            ),
            (Kind::ServiceEntry, json!({"hosts": vec!["a"; 257]}), "256"),
            (
                Kind::AuthorizationPolicy,
                json!({"rules": vec![json!({}); 513]}),
                "512",
            ),
            (
                Kind::AuthorizationPolicy,
                json!({"selector": true}),
                "yes or no",
            ),
        ] {
            let found = problems(kind, spec);
            assert!(
                found.len() == 1 && found[0].contains(word),
                "{word}: {found:?}"
            );
        }
    }

    #[test]
    fn what_was_meant_is_guessed_from_the_letters() {
        for (one, other, away) in [
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("ABC", "abc", 0),
            ("hots", "hosts", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(one, other), away, "{one} {other}");
        }
        assert!(unknown("zzz", ["hosts", "ports"].into_iter()).contains("hosts, ports"));
    }
}
