//! As much of an API server as the agent asks for: lists, watches, single objects and patches of pods, namespaces
//! and daemonsets over plain HTTP. It can lose rights, forget its history, and be away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;

use super::eventually;

/// Resource, namespace, name.
type Key = (String, String, String);

/// What happened: at which version, to what, how.
type Event = (u64, Key, &'static str, Value);

#[derive(Default)]
struct World {
    version: u64,
    objects: BTreeMap<Key, Value>,
    history: Vec<Event>,
    /// Older versions cannot be watched from.
    oldest: u64,
    /// `verb resource` that are refused.
    forbidden: BTreeSet<String>,
    /// Resources of which a watch tells nothing for the time being.
    held: BTreeSet<String>,
    /// What happened after this version no watch tells of for the time being.
    told_until: Option<u64>,
    asked: Vec<String>,
}

#[derive(Clone)]
struct Shared {
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
    /// Moves when every connection is to end.
    ended: watch::Sender<u64>,
}

/// The server, which ends with this value.
pub struct ApiServer {
    shared: Shared,
    address: SocketAddr,
    /// Keeps the port from others while nobody answers there.
    place: Option<Socket>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl ApiServer {
    pub fn start() -> Self {
        let mut server = Self {
            shared: Shared {
                world: Arc::default(),
                changed: watch::channel(0).0,
                ended: watch::channel(0).0,
            },
            address: "127.0.0.1:0".parse().unwrap(),
            place: None,
            runtime: None,
        };
        server.place = server.bound();
        server.back();
        server
    }

    /// At its address, where nobody listens; none while another still does.
    fn bound(&self) -> Option<Socket> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&self.address.into()).ok().map(|()| socket)
    }

    /// It answers again, at the address it had.
    pub fn back(&mut self) {
        let socket = self.place.take().unwrap();
        socket.listen(128).unwrap();
        let listener = std::net::TcpListener::from(socket);
        listener.set_nonblocking(true).unwrap();
        self.address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let routes = Router::new()
            .fallback(answer)
            .with_state(self.shared.clone());
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, routes).await.unwrap();
        });
        self.runtime = Some(runtime);
    }

    /// Nobody is there: connections end, new ones are refused.
    pub fn away(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
        eventually("it listens no more", || {
            self.place = self.bound();
            self.place.is_some()
        });
    }

    /// For `KUBECONFIG`.
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{}", self.address) } }],
            "users": [{ "name": "c", "user": {} }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "c" } }],
        })
        .to_string()
    }

    pub fn set(&self, resource: &str, object: Value) {
        self.shared.set(resource, object);
    }

    pub fn delete(&self, resource: &str, namespace: &str, name: &str) {
        self.shared
            .delete(&(resource.into(), namespace.into(), name.into()));
    }

    pub fn object(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.into(), namespace.into(), name.into());
        self.world().objects.get(&key).cloned()
    }

    /// Takes the right `verb resource` away; every watch ends and has to be begun again.
    pub fn forbid(&self, rights: &[&str]) {
        self.world().forbidden = rights.iter().map(|&right| right.to_owned()).collect();
        self.shared.ended.send_modify(|ended| *ended += 1);
    }

    /// Watches of these tell nothing until this is called again.
    pub fn hold(&self, resources: &[&str]) {
        self.world().held = resources
            .iter()
            .map(|&resource| resource.to_owned())
            .collect();
        self.shared.changed.send_modify(|changed| *changed += 1);
    }

    /// The version of now.
    pub fn version(&self) -> u64 {
        self.world().version
    }

    /// Watches, which held something back, tell of what happened until this version, and of nothing later.
    pub fn tell_until(&self, version: u64) {
        let mut world = self.world();
        world.told_until = Some(version);
        world.held.clear();
        drop(world);
        self.shared.changed.send_modify(|changed| *changed += 1);
    }

    /// What was before cannot be watched from any more: who was not watching has to list.
    pub fn forget_history(&self) {
        let mut world = self.world();
        world.oldest = world.version;
        world.history.clear();
    }

    /// Requests so far, as `METHOD path`.
    pub fn asked(&self) -> Vec<String> {
        self.world().asked.clone()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    fn set(&self, resource: &str, mut object: Value) {
        let mut world = self.world.lock().unwrap();
        world.version += 1;
        object["metadata"]["resourceVersion"] = world.version.to_string().into();
        let text = |part: &Value| part.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let key = (
            resource.to_owned(),
            text(&metadata["namespace"]),
            text(&metadata["name"]),
        );
        let old = world.objects.insert(key.clone(), object.clone());
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        let event = (world.version, key, kind, object);
        world.history.push(event);
        self.changed.send_modify(|changed| *changed += 1);
    }

    fn delete(&self, key: &Key) {
        let mut world = self.world.lock().unwrap();
        world.version += 1;
        let object = world.objects.remove(key).unwrap();
        let event = (world.version, key.clone(), "DELETED", object);
        world.history.push(event);
        self.changed.send_modify(|changed| *changed += 1);
    }
}

/// What a path asks for.
fn target(path: &str) -> (String, String, String) {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let rest = if parts[0] == "api" {
        &parts[2..]
    } else {
        &parts[3..]
    };
    let (resource, namespace, name) = match rest {
        ["namespaces", namespace, resource, rest @ ..] => (
            *resource,
            *namespace,
            rest.first().copied().unwrap_or_default(),
        ),
        [resource, rest @ ..] => (*resource, "", rest.first().copied().unwrap_or_default()),
        [] => ("", "", ""),
    };
    (resource.to_owned(), namespace.to_owned(), name.to_owned())
}

fn refusal(code: u16, reason: &str, message: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    (StatusCode::from_u16(code).unwrap(), status.to_string()).into_response()
}

fn selected(query: &BTreeMap<String, String>, object: &Value) -> bool {
    let fields = query
        .get("fieldSelector")
        .map(String::as_str)
        .unwrap_or_default();
    match fields.split_once('=') {
        Some(("spec.nodeName", node)) => object["spec"]["nodeName"] == node,
        Some(("metadata.name", name)) => object["metadata"]["name"] == name,
        _ => true,
    }
}

async fn answer(
    State(shared): State<Shared>,
    method: Method,
    uri: Uri,
    Query(query): Query<BTreeMap<String, String>>,
    body: Bytes,
) -> Response {
    let (resource, namespace, name) = target(uri.path());
    let watched = query.get("watch").is_some_and(|watch| watch == "true");
    let verb = match (&method, name.is_empty()) {
        (&Method::PATCH, _) => "patch",
        (_, false) => "get",
        (_, true) if watched => "watch",
        _ => "list",
    };
    let right = if verb == "patch" {
        format!("patch {resource}/status")
    } else {
        format!("{verb} {resource}")
    };
    let key = (resource.clone(), namespace.clone(), name.clone());
    let (version, oldest, found) = {
        let mut world = shared.world.lock().unwrap();
        world.asked.push(format!("{method} {}", uri.path()));
        if world.forbidden.contains(&right) {
            return refusal(403, "Forbidden", &format!("{right} is forbidden"));
        }
        (
            world.version,
            world.oldest,
            world.objects.get(&key).cloned(),
        )
    };
    match verb {
        "list" => {
            let world = shared.world.lock().unwrap();
            let of = |key: &Key| key.0 == resource && (namespace.is_empty() || key.1 == namespace);
            let objects = world
                .objects
                .iter()
                .filter(|(key, object)| of(key) && selected(&query, object));
            let items: Vec<&Value> = objects.map(|(_, object)| object).collect();
            let list = json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": version.to_string() }, "items": items });
            list.to_string().into_response()
        }
        "watch" => {
            let from = query
                .get("resourceVersion")
                .and_then(|version| version.parse().ok());
            let from = from.unwrap_or(version);
            if from < oldest {
                let status = json!({ "kind": "Status", "apiVersion": "v1", "code": 410, "reason": "Expired", "message": "too old", "status": "Failure", "metadata": {} });
                let event = json!({ "type": "ERROR", "object": status });
                return format!("{event}\n").into_response();
            }
            follow(shared, resource, query, from)
        }
        "patch" => match found {
            None => refusal(404, "NotFound", &format!("{name} not found")),
            Some(mut object) => {
                let patch: Value = serde_json::from_slice(&body).unwrap();
                let wanted = &patch["metadata"]["uid"];
                if *wanted != object["metadata"]["uid"] {
                    let message = format!(
                        "Pod \"{name}\" is invalid: metadata.uid: Invalid value: {wanted}: field is immutable"
                    );
                    return refusal(422, "Invalid", &message);
                }
                merge(&mut object, &patch);
                shared.set(&resource, object.clone());
                object.to_string().into_response()
            }
        },
        _ => match found {
            None => refusal(404, "NotFound", &format!("{name} not found")),
            Some(object) => object.to_string().into_response(),
        },
    }
}

/// The events after `from`, as they happen.
fn follow(
    shared: Shared,
    resource: String,
    query: BTreeMap<String, String>,
    from: u64,
) -> Response {
    let (changed, ended) = (shared.changed.subscribe(), shared.ended.subscribe());
    let state = (shared, changed, ended, from);
    let events = stream::unfold(state, move |(shared, mut changed, mut ended, from)| {
        let (resource, query) = (resource.clone(), query.clone());
        async move {
            loop {
                changed.borrow_and_update();
                let next = {
                    let world = shared.world.lock().unwrap();
                    let held = world.held.contains(&resource);
                    let until = world.told_until.unwrap_or(u64::MAX);
                    let of = |event: &&Event| {
                        !held
                            && (from + 1..=until).contains(&event.0)
                            && event.1.0 == resource
                            && selected(&query, &event.3)
                    };
                    world.history.iter().find(of).cloned()
                };
                if let Some((version, _, kind, object)) = next {
                    let line = format!("{}\n", json!({ "type": kind, "object": object }));
                    return Some((
                        Ok::<_, std::io::Error>(line),
                        (shared, changed, ended, version),
                    ));
                }
                tokio::select! {
                    changed = changed.changed() => if changed.is_err() { return None },
                    _ = ended.changed() => return None,
                }
            }
        }
    });
    Body::from_stream(events).into_response()
}

/// RFC 7386.
fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => drop(into.as_object_mut().unwrap().remove(key)),
            value => merge(&mut into[key], value),
        }
    }
}
