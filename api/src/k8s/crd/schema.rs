//! The shape of a type, in the few words of JSON Schema that an API server takes.
//!
//! 1. schemars says what serde reads, without references                     ([`of`])
//! 2. its ways to say "may be left out" and "one of these words" are made plain
//! 3. closed objects are opened for an API server                            ([`open`])
//! 4. around the spec: status, and whatever else somebody writes             ([`object`])

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

/// The shape of `T`. An object that says `additionalProperties: false` has no other fields.
pub(super) fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let schema = settings.into_generator().into_root_schema_for::<T>();
    let mut schema = schema.to_value();
    make_plain(&mut schema);
    schema
}

/// Opens every closed object: an API server shall keep what it does not know.
pub(super) fn open(mut schema: Value) -> Value {
    each(&mut schema, &mut |fields| {
        if fields.get("additionalProperties") == Some(&Value::Bool(false)) {
            fields.remove("additionalProperties");
            fields.insert(KEEP.into(), true.into());
        }
    });
    schema
}

/// A whole object of which `spec` is the shape of the spec.
pub(super) fn object(spec: Value, spec_is_needed: bool) -> Value {
    let required: &[&str] = if spec_is_needed { &["spec"] } else { &[] };
    let mut object = json!({
        "type": "object",
        KEEP: true,
        "properties": {
            "spec": spec,
            "status": {"type": "object", KEEP: true},
        },
    });
    if !required.is_empty() {
        object["required"] = json!(required);
    }
    object
}

const KEEP: &str = "x-kubernetes-preserve-unknown-fields";

/// What schemars writes for `Option` and for enums of words, as plain types; defaults are left to
/// the reader, or an API server would write them into everybody's objects.
fn make_plain(schema: &mut Value) {
    each(schema, &mut |fields| {
        for word in ["$schema", "title", "default", "format"] {
            fields.remove(word);
        }
        if let Some(Value::Array(types)) = fields.get_mut("type") {
            types.retain(|it| it != "null");
            if let [one] = types.as_slice() {
                let one = one.clone();
                fields.insert("type".into(), one);
            }
        }
        if let Some(Value::Array(ways)) = fields.remove("anyOf") {
            let something = ways.into_iter().find(|way| way["type"] != "null");
            merge(fields, something);
        }
        if let Some(Value::Array(ways)) = fields.remove("oneOf") {
            fields.insert("type".into(), "string".into());
            fields.insert("enum".into(), ways.iter().flat_map(words).collect());
        }
        if let Some(Value::String(text)) = fields.get_mut("description") {
            *text = text.replace("[`", "").replace("`]", "").replace('\n', " ");
        }
    });
}

/// What a field says of itself goes before what its type says.
fn merge(fields: &mut Map<String, Value>, more: Option<Value>) {
    let Some(Value::Object(more)) = more else {
        return;
    };
    for (name, value) in more {
        fields.entry(name).or_insert(value);
    }
}

fn words(way: &Value) -> Vec<Value> {
    match (&way["const"], &way["enum"]) {
        (word @ Value::String(_), _) => vec![word.clone()],
        (_, Value::Array(words)) => words.clone(),
        _ => Vec::new(),
    }
}

/// Every schema inside a schema, from the outside in.
fn each(schema: &mut Value, change: &mut impl FnMut(&mut Map<String, Value>)) {
    let Value::Object(fields) = schema else {
        return;
    };
    change(fields);
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        for property in properties.values_mut() {
            each(property, change);
        }
    }
    for word in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(word) {
            each(inner, change);
        }
    }
}

/// The schema at a path like `rules[].from[].source` (`{}` for the values of a map).
pub(super) fn at<'a>(schema: &'a mut Value, path: &str) -> Option<&'a mut Map<String, Value>> {
    let mut here = schema;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        let name = step.trim_end_matches("[]").trim_end_matches("{}");
        if !name.is_empty() {
            here = here.get_mut("properties")?.get_mut(name)?;
        }
        if step.ends_with("[]") {
            here = here.get_mut("items")?;
        } else if step.ends_with("{}") {
            here = here.get_mut("additionalProperties")?;
        }
    }
    here.as_object_mut()
}
