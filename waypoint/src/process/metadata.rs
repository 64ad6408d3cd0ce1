//! What is said of a request by those who saw it, for whoever comes after them: Envoy's dynamic metadata.
//!
//! | namespace | who says it |
//! |---|---|
//! | `envoy.filters.http.jwt_authn` | a good token: its claims, as `payload` |
//! | `envoy.filters.http.ext_authz` | authorizers (`dynamic_metadata`), and how long the last took |
//! | those that an object lets it write | a processor |
//!
//! Processors that come later are told it, and logs, metrics and spans may ask for it when the request has ended; what
//! authorizers say, policies may as well. How much of it there is for one request is bounded.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use expression::Value;
use prost::Message;
use prost_types::value::Kind;
use prost_types::{ListValue, Struct};
use serde_json::Value as Json;

use crate::authenticate::Claims;

/// Of one request. Clones share what is said.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    claims: Option<Arc<Claims>>,
    /// None: nobody has been shown the request who could say something.
    said: Option<Arc<Mutex<Said>>>,
}

type Said = BTreeMap<String, Struct>;

impl Metadata {
    /// It came with a good token.
    pub fn verified(&mut self, claims: &Arc<Claims>) {
        self.claims = Some(claims.clone());
    }

    /// For somebody who says more, or hears what others say.
    pub fn shared(&mut self) -> Self {
        self.said.get_or_insert_default();
        self.clone()
    }

    /// Takes what somebody says in the namespaces that are his to write; what he says in others is not heard. A key that
    /// was there before has a new value.
    ///
    /// # Errors
    /// It is too much.
    pub fn take(&self, words: Struct, writable: &[String]) -> Result<(), String> {
        let Some(said) = &self.said else {
            return Ok(());
        };
        let heard = words.fields.into_iter().filter_map(|(namespace, value)| {
            let is_his = writable.contains(&namespace) && namespace != TOKEN;
            match value.kind {
                Some(Kind::StructValue(value)) if is_his => Some((namespace, value)),
                _ => None,
            }
        });
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        for (namespace, value) in heard {
            add(&mut said, namespace, value)?;
        }
        within(&said)
    }

    /// Takes what an authorizer says, in the namespace of authorizers. A key that was there before has a new value.
    ///
    /// # Errors
    /// It is too much.
    pub fn authorized(&self, words: Struct) -> Result<(), String> {
        let Some(said) = self.said.as_ref().filter(|_| !words.fields.is_empty()) else {
            return Ok(());
        };
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut said, AUTHORIZERS.to_owned(), words)?;
        within(&said)
    }

    /// What an authorizer has said under a key, as `judge` sees it; none if none has.
    pub(crate) fn of_authorizers<T>(
        &self,
        key: &str,
        judge: impl FnOnce(&prost_types::Value) -> T,
    ) -> Option<T> {
        let said = self.said.as_ref()?;
        let said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.get(AUTHORIZERS)?.fields.get(key).map(judge)
    }

    /// What was said in some namespaces.
    pub fn of(&self, namespaces: &[String]) -> HashMap<String, Struct> {
        let is_wanted = |name: &str| namespaces.iter().any(|it| it == name);
        let mut found = HashMap::new();
        if let Some(said) = &self.said {
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            let wanted = said.iter().filter(|(name, _)| is_wanted(name));
            found.extend(wanted.map(|(name, value)| (name.clone(), value.clone())));
        }
        if let Some(claims) = self.claims.as_ref().filter(|_| is_wanted(TOKEN)) {
            found.insert(TOKEN.to_owned(), payload(claims));
        }
        found
    }

    /// All of it, for expressions; nothing if there is none.
    pub fn value(&self) -> Value<'static> {
        let mut all: Vec<(Value<'static>, Value<'static>)> = Vec::new();
        let mut put = |name: &str, of: &Struct| {
            all.push((Value::text(name.to_owned()), fields(of, DEPTH)));
        };
        if let Some(said) = &self.said {
            let said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.iter().for_each(|(name, of)| put(name, of));
        }
        if let Some(claims) = &self.claims {
            put(TOKEN, &payload(claims));
        }
        match all.is_empty() {
            true => Value::Null,
            false => Value::Map(all.into()),
        }
    }
}

fn add(said: &mut Said, namespace: String, words: Struct) -> Result<(), String> {
    if words.encoded_len() > MOST {
        return Err(too_much());
    }
    let fields = &mut said.entry(namespace).or_default().fields;
    fields.extend(words.fields);
    Ok(())
}

fn within(said: &Said) -> Result<(), String> {
    let all = said.iter();
    let bytes: usize = all.map(|(name, it)| name.len() + it.encoded_len()).sum();
    match bytes > MOST {
        true => Err(too_much()),
        false => Ok(()),
    }
}

fn too_much() -> String {
    format!("of one request it is more than {MOST} bytes of metadata that are said")
}

/// As Envoy's filter has it.
fn payload(claims: &Claims) -> Struct {
    let all = claims.all.iter();
    let fields = all.filter_map(|(name, value)| Some((name.clone(), of_json(value, DEPTH)?)));
    let fields = Struct {
        fields: fields.collect(),
    };
    let payload = prost_types::Value {
        kind: Some(Kind::StructValue(fields)),
    };
    Struct {
        fields: BTreeMap::from([("payload".to_owned(), payload)]),
    }
}

/// None for what lies too deep.
fn of_json(value: &Json, depth: usize) -> Option<prost_types::Value> {
    let depth = depth.checked_sub(1)?;
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(yes) => Kind::BoolValue(*yes),
        Json::Number(number) => Kind::NumberValue(number.as_f64()?),
        Json::String(text) => Kind::StringValue(text.clone()),
        Json::Array(all) => Kind::ListValue(ListValue {
            values: all.iter().filter_map(|it| of_json(it, depth)).collect(),
        }),
        Json::Object(all) => {
            let all = all.iter();
            let fields = all.filter_map(|(name, it)| Some((name.clone(), of_json(it, depth)?)));
            Kind::StructValue(Struct {
                fields: fields.collect(),
            })
        }
    };
    Some(prost_types::Value { kind: Some(kind) })
}

fn fields(of: &Struct, depth: usize) -> Value<'static> {
    let all = of.fields.iter();
    let all = all.map(|(name, it)| (Value::text(name.clone()), value(it, depth)));
    Value::Map(all.collect())
}

/// Nothing for what lies too deep.
fn value(of: &prost_types::Value, depth: usize) -> Value<'static> {
    let Some(depth) = depth.checked_sub(1) else {
        return Value::Null;
    };
    match &of.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(yes)) => Value::Bool(*yes),
        Some(Kind::NumberValue(number)) => Value::Double(*number),
        Some(Kind::StringValue(text)) => Value::text(text.clone()),
        Some(Kind::ListValue(all)) => {
            Value::List(all.values.iter().map(|it| value(it, depth)).collect())
        }
        Some(Kind::StructValue(of)) => fields(of, depth),
    }
}

/// Of Envoy's filter for tokens. What a good token says nobody else may.
const TOKEN: &str = "envoy.filters.http.jwt_authn";
/// Of Envoy's filter for authorizers.
pub(crate) const AUTHORIZERS: &str = "envoy.filters.http.ext_authz";
/// Bytes that are said of one request.
const MOST: usize = 64 << 10;
/// Structs within structs.
const DEPTH: usize = 16;
