//! A JSON value becomes an object, by the same reading and the same checks as a document of YAML.
//!
//! Enters: what an API server answers, of a kind we read. Leaves: the object, or everything that is
//! wrong with it. Fields we do not know are passed over, as an API server's clients do.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::check;
use super::objects::{Kind, Object};
use super::yaml::{self, Source};

/// An object of `kind`.
///
/// # Errors
/// What is wrong with it, one text each: first what does not fit its type (that alone, since the
/// rest then cannot be read), else all that types cannot say, with the path of the field.
pub fn read(kind: Kind, value: &Value) -> Result<Object, Vec<String>> {
    let object = yaml::typed(kind, &Json(value)).map_err(|error| vec![error.to_string()])?;
    let problems = check::check(&object);
    if problems.is_empty() {
        return Ok(object);
    }
    Err(problems.iter().map(ToString::to_string).collect())
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
    fn a_good_object_is_taken_and_unknown_fields_are_passed_over() {
        let value = json!({"metadata": {"name": "p", "namespace": "alpha"},
            "spec": {"mtls": {"mode": "STRICT"}, "ofTomorrow": 1}});
        let object = read(Kind::PeerAuthentication, &value).unwrap();
        assert_eq!(object.key().to_string(), "PeerAuthentication alpha/p");
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
