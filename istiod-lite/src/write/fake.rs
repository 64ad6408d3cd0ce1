//! An API server in memory, for tests: objects, versions, watches, conflicts. No network, no clock:
//! under paused time a test of minutes takes none.
//!
//! It does what the writers rely on and no more: of schemas, rights and admission it knows
//! nothing; a test says itself which requests are refused.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::cluster::Connection;

/// The API server. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    moved: watch::Sender<u64>,
}

/// Says with which status a request is refused, if it is.
type Rule = Box<dyn Fn(&Method, &str) -> Option<u16> + Send>;

#[derive(Default)]
struct State {
    version: u64,
    objects: BTreeMap<Name, Value>,
    history: Vec<Event>,
    /// `METHOD path`, of all that changes something.
    writes: Vec<String>,
    rule: Option<Rule>,
    /// A field of statuses that the schema does not have.
    pruned: &'static str,
    /// What each field manager applied last, to an object or its status: what it leaves out the next time goes.
    applied: BTreeMap<(Name, bool, String), Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    plural: String,
    namespace: String,
    name: String,
}

struct Event {
    version: u64,
    name: Name,
    what: &'static str,
    object: Value,
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl Fake {
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            moved: watch::Sender::new(0),
        }
    }

    pub(crate) fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.answer(request).await) }
        });
        Client::new(service, "default")
    }

    pub(crate) fn connection(&self) -> Connection {
        Connection {
            client: self.client(),
            watching: self.client(),
        }
    }

    /// Puts an object there, or another version of it, as somebody else would.
    pub(crate) fn put(&self, plural: &str, namespace: &str, name: &str, object: Value) {
        let name = Name::new(plural, namespace, name);
        self.change(|state| drop(state.store(name, object)));
    }

    pub(crate) fn remove(&self, plural: &str, namespace: &str, name: &str) {
        let name = Name::new(plural, namespace, name);
        self.change(|state| drop(state.remove(&name)));
    }

    pub(crate) fn object(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let name = Name::new(plural, namespace, name);
        self.state.lock().unwrap().objects.get(&name).cloned()
    }

    /// All objects of a kind.
    pub(crate) fn all(&self, plural: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        let these = state
            .objects
            .iter()
            .filter(|(name, _)| name.plural == plural);
        these.map(|(_, object)| object.clone()).collect()
    }

    /// Waits until an object (`Null` if there is none) is as wanted; a day is too long.
    pub(crate) async fn until(
        &self,
        name: (&str, &str, &str),
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let day = std::time::Duration::from_secs(24 * 3600);
        let waited = tokio::time::timeout(day, self.becomes(name, wanted)).await;
        waited.unwrap_or_else(|_| panic!("{name:?} never becomes so"))
    }

    async fn becomes(
        &self,
        (plural, namespace, name): (&str, &str, &str),
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        let mut moved = self.moved.subscribe();
        loop {
            moved.mark_unchanged();
            let object = self.object(plural, namespace, name).unwrap_or_default();
            if wanted(&object) {
                return object;
            }
            moved.changed().await.unwrap();
        }
    }

    /// What was written since this was asked last.
    pub(crate) fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().writes)
    }

    /// From now on requests are refused as `rule` says; status 0: they are never answered.
    pub(crate) fn refuse(&self, rule: impl Fn(&Method, &str) -> Option<u16> + Send + 'static) {
        self.state.lock().unwrap().rule = Some(Box::new(rule));
    }

    pub(crate) fn refuse_nothing(&self) {
        self.state.lock().unwrap().rule = None;
    }

    /// From now on no status has that field.
    pub(crate) fn prune(&self, field: &'static str) {
        self.state.lock().unwrap().pruned = field;
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.moved.send_modify(|moves| *moves += 1);
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        let refused = {
            let state = self.state.lock().unwrap();
            state
                .rule
                .as_ref()
                .and_then(|rule| rule(&parts.method, &path))
        };
        match refused {
            Some(0) => std::future::pending().await,
            Some(code) => return failure(code),
            None => {}
        }
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let (name, status) = Name::of(&path);
        if parts.method == Method::GET && query.contains("watch=true") {
            return self.watch(name, &query);
        }
        let mut answer = None;
        let write = parts.method != Method::GET;
        let kind = parts.headers.get(http::header::CONTENT_TYPE);
        let applies = kind.is_some_and(|it| it == "application/apply-patch+yaml");
        let handle = |state: &mut State| {
            if write {
                state.writes.push(format!("{} {path}", parts.method));
            }
            let deed = (&parts.method, applies);
            answer = Some(state.handle(deed, name, status, &query, body));
        };
        if write {
            self.change(handle);
        } else {
            handle(&mut self.state.lock().unwrap());
        }
        match answer.unwrap() {
            Ok(value) => json_answer(200, &value),
            Err(code) => failure(code),
        }
    }

    fn watch(&self, wanted: Name, query: &str) -> Answer {
        let from = parameter(query, "resourceVersion").and_then(|text| text.parse().ok());
        let query = query.to_owned();
        let seed = (self.clone(), self.moved.subscribe(), from.unwrap_or(0));
        let lines = futures_util::stream::unfold(seed, move |(fake, mut moved, at)| {
            let (wanted, query) = (wanted.clone(), query.clone());
            async move {
                loop {
                    moved.mark_unchanged();
                    let next = {
                        let state = fake.state.lock().unwrap();
                        let mut later = state.history.iter().filter(|it| it.version > at);
                        let next =
                            later.find(|it| it.name.is_in(&wanted) && matches(&query, &it.object));
                        next.map(|it| (it.version, json!({"type": it.what, "object": it.object})))
                    };
                    if let Some((version, event)) = next {
                        let line = Bytes::from(format!("{event}\n"));
                        return Some((Ok(Frame::data(line)), (fake, moved, version)));
                    }
                    moved.changed().await.ok()?;
                }
            }
        });
        let body = StreamBody::new(lines.boxed()).boxed_unsync();
        Response::builder().status(200).body(body).unwrap()
    }
}

impl State {
    fn handle(
        &mut self,
        (method, applies): (&Method, bool),
        mut name: Name,
        status: bool,
        query: &str,
        mut body: Value,
    ) -> Result<Value, u16> {
        if *method == Method::POST {
            name.name = body["metadata"]["name"].as_str().unwrap().to_owned();
            if self.objects.contains_key(&name) {
                return Err(409);
            }
            return Ok(self.store(name, body));
        }
        if *method == Method::GET && name.name.is_empty() {
            return Ok(self.list(&name, query));
        }
        let before = self.objects.get(&name).cloned();
        if before.is_none() && body["metadata"]["resourceVersion"].is_string() {
            return Err(if applies { 409 } else { 404 });
        }
        let version = body["metadata"]["resourceVersion"].as_str();
        let known = before.as_ref().map(|it| &it["metadata"]["resourceVersion"]);
        if known.is_some_and(|known| version.is_some_and(|version| version != known)) {
            return Err(409);
        }
        if applies {
            let manager = parameter(query, "fieldManager").unwrap_or_default();
            let mut fresh = body.clone();
            let metadata = fresh.get_mut("metadata").and_then(Value::as_object_mut);
            metadata.and_then(|it| it.remove("resourceVersion"));
            let of = (name.clone(), status, manager);
            let last = self.applied.insert(of, fresh);
            if before.is_none() {
                return Ok(self.store(name, body));
            }
            if let Some(last) = last {
                leave_out(&last, &mut body);
            }
        }
        let before = before.ok_or(404_u16)?;
        match *method {
            Method::GET => Ok(before),
            Method::DELETE => Ok(self.remove(&name).unwrap_or_default()),
            Method::PUT => Ok(self.store(name, body)),
            Method::PATCH => {
                if !status {
                    body.as_object_mut().unwrap().remove("status");
                } else if let Some(status) = body.get_mut("status").and_then(Value::as_object_mut) {
                    status.remove(self.pruned);
                }
                let mut after = before.clone();
                lay(&mut after, &body);
                // The API server does not write what is so already.
                if after == before {
                    Ok(before)
                } else {
                    Ok(self.store(name, after))
                }
            }
            _ => Err(405),
        }
    }

    fn list(&self, name: &Name, query: &str) -> Value {
        let items = self.objects.iter();
        let items = items.filter(|(of, object)| of.is_in(name) && matches(query, object));
        let items: Vec<&Value> = items.map(|(_, object)| object).collect();
        json!({
            "apiVersion": "v1", "kind": "List", "items": items,
            "metadata": {"resourceVersion": self.version.to_string()},
        })
    }

    fn store(&mut self, name: Name, mut object: Value) -> Value {
        self.version += 1;
        let what = if self.objects.contains_key(&name) {
            "MODIFIED"
        } else {
            "ADDED"
        };
        object["metadata"]["name"] = name.name.clone().into();
        if !name.namespace.is_empty() {
            object["metadata"]["namespace"] = name.namespace.clone().into();
        }
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.objects.insert(name.clone(), object.clone());
        self.history.push(Event {
            version: self.version,
            name,
            what,
            object: object.clone(),
        });
        object
    }

    fn remove(&mut self, name: &Name) -> Option<Value> {
        let object = self.objects.remove(name)?;
        self.version += 1;
        let event = Event {
            version: self.version,
            name: name.clone(),
            what: "DELETED",
            object: object.clone(),
        };
        self.history.push(event);
        Some(object)
    }
}

impl Name {
    fn new(plural: &str, namespace: &str, name: &str) -> Self {
        let [plural, namespace, name] = [plural, namespace, name].map(str::to_owned);
        Self {
            plural,
            namespace,
            name,
        }
    }

    /// Of a path, and whether it ends in `/status`.
    fn of(path: &str) -> (Self, bool) {
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let status = parts.last() == Some(&"status");
        if status {
            parts.pop();
        }
        let skip = if parts[0] == "api" { 2 } else { 3 };
        let name = match &parts[skip..] {
            ["namespaces", namespace, plural, name] => Self::new(plural, namespace, name),
            ["namespaces", namespace, plural] => Self::new(plural, namespace, ""),
            [plural, name] => Self::new(plural, "", name),
            [plural] => Self::new(plural, "", ""),
            other => panic!("{other:?}"),
        };
        (name, status)
    }

    fn is_in(&self, wanted: &Self) -> bool {
        self.plural == wanted.plural
            && (wanted.namespace.is_empty() || self.namespace == wanted.namespace)
            && (wanted.name.is_empty() || self.name == wanted.name)
    }
}

/// Selectors by name and by one label are what the writers use.
fn matches(query: &str, object: &Value) -> bool {
    let field = parameter(query, "fieldSelector").is_none_or(|selector| {
        selector
            .strip_prefix("metadata.name=")
            .is_some_and(|name| object["metadata"]["name"] == name)
    });
    let label = parameter(query, "labelSelector").is_none_or(|selector| {
        let labels = &object["metadata"]["labels"];
        if let Some((key, values)) = selector.split_once(" in ") {
            let mut values = values.trim_matches(['(', ')']).split(',');
            return values.any(|value| labels[key] == value);
        }
        let (key, value) = selector.split_once('=').unwrap();
        labels[key] == value
    });
    field && label
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let found = query
        .split('&')
        .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let encoded = [
        ("%3D", "="),
        ("%2F", "/"),
        ("%2C", ","),
        ("%28", "("),
        ("%29", ")"),
        ("%20", " "),
        ("+", " "),
    ];
    let plain = |text: String, (code, meant): (&str, &str)| text.replace(code, meant);
    Some(encoded.into_iter().fold(found.to_owned(), plain))
}

/// What was applied before and is not any more is to go.
fn leave_out(last: &Value, fresh: &mut Value) {
    let (Some(last), Some(fresh)) = (last.as_object(), fresh.as_object_mut()) else {
        return;
    };
    for (field, value) in last {
        match fresh.get_mut(field) {
            Some(fresh) => leave_out(value, fresh),
            None => drop(fresh.insert(field.clone(), Value::Null)),
        }
    }
}

/// RFC 7386.
fn lay(onto: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *onto = patch.clone();
        return;
    };
    if !onto.is_object() {
        *onto = json!({});
    }
    for (field, value) in patch {
        if value.is_null() {
            onto.as_object_mut().unwrap().remove(field);
        } else {
            lay(&mut onto[field.as_str()], value);
        }
    }
}

fn failure(code: u16) -> Answer {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
        "message": format!("refused with {code}"), "reason": reason,
    });
    json_answer(code, &status)
}

fn json_answer(code: u16, value: &Value) -> Answer {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}
