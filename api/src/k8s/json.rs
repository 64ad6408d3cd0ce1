//! A JSON value becomes an object, by the same reading and the same checks as a document of YAML.
//!
//! Enters: what an API server answers or asks about, of a kind we read. Leaves: the object, or
//! everything that is wrong with it. A field that Istio's kinds do not have is wrong; in Kubernetes'
//! own kinds it is passed over, as an API server's clients do.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::check::{self, Problem, Step};
use super::objects::{Kind, Object};
use super::yaml::{self, Source};

/// An object of `kind`.
///
/// # Errors
/// All that is wrong with it, one text each, with the path of the field. Whoever asks twice is told
/// the same: the webhook that refuses an object, and the status of one that got past it.
pub fn read(kind: Kind, value: &Value) -> Result<Object, Vec<String>> {
    let mut problems = check::check_shape(kind, value);
    let readable = if problems.is_empty() {
        Cow::Borrowed(value)
    } else {
        Cow::Owned(without(value, &problems))
    };
    match yaml::typed(kind, &Json(&readable)) {
        Ok(object) => {
            let more = check::check(&object);
            if problems.is_empty() && more.is_empty() {
                return Ok(object);
            }
            // "A source without fields" is no news of one whose only field was mistyped.
            let consequence =
                |of: &Problem| problems.iter().any(|it| it.path.0.starts_with(&of.path.0));
            let more: Vec<_> = more.into_iter().filter(|it| !consequence(it)).collect();
            problems.extend(more);
        }
        // The reader stops at the first mistake, mostly one of those that are known already.
        Err(error) if problems.is_empty() => return Err(vec![error.to_string()]),
        Err(_) => {}
    }
    Err(problems.iter().map(ToString::to_string).collect())
}

/// What is left when the fields that cannot be read are taken away, so that the others can be looked
/// at too.
fn without(value: &Value, problems: &[Problem]) -> Value {
    let mut value = value.clone();
    for problem in problems {
        let Some((Step::Key(field), way)) = problem.path.0.split_last() else {
            continue;
        };
        let around = way.iter().try_fold(&mut value, |here, step| match step {
            Step::Key(key) => here.get_mut(key),
            Step::Index(index) => here.get_mut(index),
        });
        if let Some(Value::Object(fields)) = around {
            fields.remove(field);
        }
    }
    value
}

struct Json<'a>(&'a Value);

impl Source for Json<'_> {
    type Error = serde_json::Error;

    fn read<T: DeserializeOwned>(&self) -> Result<T, Self::Error> {
        T::deserialize(self.0)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_good_object_is_taken() {
        let value = json!({"metadata": {"name": "p", "namespace": "alpha"},
            "spec": {"mtls": {"mode": "STRICT"}}, "status": {"conditions": []}});
        let object = read(Kind::PeerAuthentication, &value).unwrap();
        assert_eq!(object.key().to_string(), "PeerAuthentication alpha/p");
    }

    #[test]
    fn a_field_that_does_not_exist_makes_an_object_wrong_only_where_it_is_ours_to_say() {
        let of_tomorrow =
            |metadata: Value| json!({"metadata": metadata, "spec": {"ofTomorrow": 1}});
        let named = json!({"name": "p", "namespace": "alpha"});
        assert!(
            read(
                Kind::Pod,
                &json!({"metadata": named, "spec": {"containers": [], "ofTomorrow": 1}})
            )
            .is_ok()
        );
        let reasons = read(Kind::PeerAuthentication, &of_tomorrow(named)).unwrap_err();
        assert_eq!(
            reasons,
            ["spec.ofTomorrow: unknown field; there are mtls, portLevelMtls, selector"]
        );
    }

    #[test]
    fn a_mistyped_field_hides_no_other_mistake_and_makes_no_new_one() {
        let of = |source: Value| {
            let value = json!({"metadata": {"name": "p", "namespace": "alpha"},
                "spec": {"rules": [{"from": [{"source": source}]}]}});
            read(Kind::AuthorizationPolicy, &value).unwrap_err()
        };
        let one = of(json!({"principal": ["a"]}));
        assert!(one.len() == 1 && one[0].contains("principals"), "{one:?}");
        let two = of(json!({"principal": ["a"], "ipBlocks": ["nowhere"]}));
        assert!(two.len() == 2 && two[1].contains("nowhere"), "{two:?}");
        let item = of(json!({"principals": [7], "ipBlocks": ["nowhere"]}));
        assert!(
            item.len() == 1 && item[0].contains("principals[0]"),
            "{item:?}"
        );
    }

    #[test]
    fn a_wrong_enum_and_a_wrong_value_are_told_apart_by_their_reason() {
        let bad = |mode: &str, port: i32| {
            let value = json!({"metadata": {"name": "p", "namespace": "alpha"},
                "spec": {"selector": {"matchLabels": {"a": "b"}}, "mtls": {"mode": mode},
                    "portLevelMtls": {port.to_string(): {"mode": "STRICT"}}}});
            read(Kind::PeerAuthentication, &value)
        };
        assert!(bad("STRICT", 80).is_ok());
        let reasons = bad("SOMETIMES", 80).unwrap_err();
        assert!(reasons[0].contains("SOMETIMES"), "{reasons:?}");
        assert!(bad("STRICT", 70_000).is_err());
    }
}
