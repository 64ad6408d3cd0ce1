//! What `/config_dump` and `/explain` say of a proxy.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use mesh::{NamespacedHost, Service, Snapshot, Workload};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{Question, Shown, words};
use crate::asked::{self, Asked};
use crate::authenticate::Claims;
use crate::balance::Group;
use crate::client::{Baggage, Client};
use crate::compiled::{self, Backend, Config};
use crate::east_west;
use crate::limit::Gate;
use crate::proxy::Proxy;
use crate::route::{Found, Rule};
use crate::state::{Held, Resources};

impl Shown for Proxy {
    fn dump(&self, out: &mut dyn io::Write) -> io::Result<()> {
        Ok(serde_json::to_writer_pretty(out, &Dump::of(self))?)
    }

    fn explain(&self, question: &Question) -> Value {
        // Nothing stands behind the gateway of a network, and it judges no requests.
        if self.config.is_east_west() {
            let client = self.client(question);
            let namespace = client.namespace().unwrap_or_default();
            return east_west::explain(self, &question.host, question.port, namespace);
        }
        let mesh = self.mesh.load();
        let namespace = &*self.config.pod_namespace;
        let Some(service) = mesh.service_for_host(&question.host, namespace).cloned() else {
            let why = format!("no service of host {} is known here", question.host);
            return json!({ "answer": "none", "because": why });
        };
        let client = self.client(question);
        let claims = question.claims.as_ref().map(claims);
        let path = match path(question) {
            Ok(path) => path,
            Err(why) => return json!({ "answer": 400, "because": why }),
        };
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (&*path, None),
        };
        let address = client.address.ip();
        let authority = question.authority();
        let asked = Asked {
            method: &question.method,
            scheme: "http",
            host: &question.host,
            authority: &authority,
            path,
            query,
            headers: &question.headers,
            port: question.port,
            destination: (address, question.port).into(),
            sni: None,
            client: &client,
            remote: asked::remote(address, &question.headers, 0),
            claims: claims.as_ref(),
        };
        let config = self.state.load();
        let mut shown = judged(&config, &self.state.said(), &service, &asked);
        shown["client"] = json!({
            "identity": client.identity.as_ref().map(ToString::to_string),
            "namespace": client.namespace(),
            "workload": client.workload.as_ref().map(|workload| workload.name()),
        });
        shown
    }
}

/// Everything there is to show, fixed at its beginning; written an item at a time.
struct Dump<'a> {
    proxy: &'a Proxy,
    said: Arc<Resources>,
    config: Arc<Config>,
    mesh: Arc<Snapshot>,
}

impl<'a> Dump<'a> {
    fn of(proxy: &'a Proxy) -> Self {
        Self {
            proxy,
            said: proxy.state.said(),
            config: proxy.state.load_full(),
            mesh: proxy.mesh.load_full(),
        }
    }
}

impl Serialize for Dump<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let Self {
            proxy,
            said,
            config,
            mesh,
        } = self;
        let mut map = out.serialize_map(None)?;
        let calls = || config.calls.shown().into_iter().map(shown_calls);
        map.serialize_entry("calls", &Each(calls))?;
        let gateway = json!({
            "namespace": proxy.config.pod_namespace,
            "name": proxy.config.gateway_name,
            "trust_domain": config.gateway.trust_domain,
            "trust_domain_aliases": config.gateway.trust_domain_aliases,
        });
        map.serialize_entry("gateway", &gateway)?;
        map.serialize_entry("identity", &proxy.identity.to_string())?;
        map.serialize_entry("metric_series", &proxy.reports.series())?;
        map.serialize_entry("requests", &proxy.load.requests())?;
        map.serialize_entry("resources", &Each(|| said.iter().map(shown_resource)))?;
        let services = || {
            config.services().map(|(name, service)| {
                let known = mesh.service(&name.namespace, &name.host);
                shown_service(name, service, known)
            })
        };
        map.serialize_entry("services", &Each(services))?;
        map.serialize_entry("version", env!("CARGO_PKG_VERSION"))?;
        map.end()
    }
}

/// A list of which one item exists at a time.
struct Each<F>(F);

impl<F: Fn() -> I, I: Iterator<Item = Value>> Serialize for Each<F> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_seq((self.0)())
    }
}

impl Proxy {
    /// Whoever the question is about.
    fn client(&self, question: &Question) -> Client {
        let mesh = self.mesh.load();
        let address = question.address.unwrap_or([0, 0, 0, 0].into());
        let identity = question
            .identity
            .as_ref()
            .and_then(|text| text.parse().ok());
        Client {
            identity,
            address: (address, 0).into(),
            peer: address,
            workload: mesh.workload_at(&self.network, address).cloned(),
            said: Baggage::default(),
        }
    }
}

/// As every request's, or why it is answered with 400.
fn path(question: &Question) -> Result<String, String> {
    let uri: http::Uri = question
        .path
        .parse()
        .map_err(|_| format!("{} is not a path", question.path))?;
    match asked::target(&question.method, &uri, asked::Form::default()) {
        Ok(path) => Ok(match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.into_owned(),
        }),
        Err(unclear) => Err(unclear.to_string()),
    }
}

/// A token's payload that somebody says is good.
fn claims(found: &Value) -> Claims {
    let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    let audiences = match &found["aud"] {
        Value::Array(all) => all
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        Value::String(one) => vec![one.clone()],
        _ => Vec::new(),
    };
    Claims {
        issuer: text("iss"),
        subject: text("sub"),
        audiences,
        all: found.as_object().cloned().unwrap_or_default(),
    }
}

/// What would be done with it, in the order of a request's phases.
fn judged(config: &Config, said: &Resources, service: &Arc<Service>, asked: &Asked<'_>) -> Value {
    let compiled = config.service(&service.key());
    let authorization = compiled.policies.explain(asked);
    let denied = authorization.verdict == "deny";
    let rules = compiled.routes(asked.port);
    let concern = rules.concerns(asked.client.namespace());
    let found = rules.find(asked).filter(|_| concern);
    let limiter = compiled
        .limits
        .of(found.as_ref().map(|found| &found.rule.name));
    let (answer, because) = match &found {
        // Nothing is known here of its policies, and nothing of it is served.
        _ if config.fronts.service(&service.key()).is_none() => (
            json!("none"),
            "the service is not behind this waypoint".to_owned(),
        ),
        _ if service.port(asked.port).is_none() => {
            (json!("none"), "the service has no such port".to_owned())
        }
        _ if denied => (json!(403), authorization.because.clone()),
        None if concern => (
            json!(404),
            "no rule of the service is for this request".to_owned(),
        ),
        None => (
            json!("the app's"),
            "the service has no rules for this client".to_owned(),
        ),
        Some(Found { rule, .. }) => match &rule.broken {
            Some(why) => (json!(500), why.to_string()),
            None => (
                json!("the app's, or the rule's"),
                format!("rule {}", rule.label),
            ),
        },
    };
    json!({
        "service": service.key().to_string(),
        "port": asked.port,
        "path": asked.path,
        "answer": answer,
        "because": because,
        "authorization": authorization,
        "tokens_are_checked": !compiled.tokens.is_empty(),
        "route": found.as_ref().map(|found| shown_rule(found.rule, said)),
        "limits": limiter.concerning(asked).collect::<Vec<_>>(),
        "endpoints": endpoints(config, service, found.as_ref(), asked),
    })
}

/// Of each backend that the request may go to.
fn endpoints(
    config: &Config,
    service: &Arc<Service>,
    found: Option<&Found<'_>>,
    asked: &Asked<'_>,
) -> Vec<Value> {
    let straight = || vec![(service.key(), asked.port, "")];
    let to = found.map_or_else(straight, |found| {
        let backends = found.rule.backends.iter();
        let of = |backend: &'_ crate::route::Backend| {
            let named = &backend.service;
            let (namespace, host) = (Arc::from(&*named.namespace), Arc::from(&*named.hostname));
            let port = match named.port {
                0 => asked.port,
                port => port,
            };
            (NamespacedHost::new(namespace, host), port)
        };
        backends
            .map(|backend| {
                let (service, port) = of(backend);
                (service, port, backend.subset.as_deref().unwrap_or_default())
            })
            .collect()
    });
    to.into_iter()
        .map(|(service, port, subset)| {
            let towards = config.calls.towards(&service);
            let shown = match towards.backend(port, subset, asked.client.namespace()) {
                Ok(backend) => shown_backend(port, subset, &backend),
                Err(why) => json!({ "broken": why.to_string() }),
            };
            json!({ "service": service.to_string(), "backend": shown })
        })
        .collect()
}

fn shown_rule(rule: &Rule, said: &Resources) -> Value {
    let name = &rule.name;
    let is_it = |held: &&Arc<Held>| {
        held.resource.origin.as_ref().is_some_and(|origin| {
            origin.kind == *name.kind
                && origin.namespace == *name.namespace
                && origin.name == *name.name
                && origin.rule == *name.rule
        })
    };
    let resource = said.iter().find(is_it);
    json!({
        "rule": &*rule.label,
        "broken": rule.broken,
        "resource": resource.map(shown_resource),
    })
}

fn shown_resource(held: &Arc<Held>) -> Value {
    let mut shown = words::resource(&held.resource);
    shown["key"] = json!(&*held.key);
    if !held.good {
        shown["closed"] = json!(true);
    }
    if let Some(refused) = &held.refused {
        shown["refused"] = json!(refused);
    }
    shown
}

fn shown_service(
    name: &NamespacedHost,
    service: &compiled::Service,
    known: Option<&Arc<Service>>,
) -> Value {
    let ports = known.map_or(&[][..], |known| &known.ports);
    let ports = ports.iter().map(|port| {
        let rules = service.routes(port.service_port).rules();
        let rules = rules.map(|rule| match &rule.broken {
            Some(why) => json!({ "rule": &*rule.label, "broken": why }),
            None => json!({ "rule": &*rule.label }),
        });
        json!({
            "port": port.service_port,
            "protocol": format!("{:?}", port.protocol),
            "rules": rules.collect::<Vec<_>>(),
        })
    });
    json!({
        "service": name.to_string(),
        "known": known.is_some(),
        "ports": ports.collect::<Vec<_>>(),
        "policies": !service.policies.is_empty(),
        "tokens": !service.tokens.is_empty(),
        "limits": !service.limits.is_empty(),
        "logged": service.telemetry.line.shown(),
        "traced": service.telemetry.tracing.as_ref().map(|it| it.sampling),
    })
}

fn shown_backend(port: u16, subset: &str, backend: &Backend) -> Value {
    let gates = [
        ("connections", &backend.gates.connections),
        ("pending", &backend.gates.pending),
        ("requests", &backend.gates.requests),
        ("retries", &backend.gates.retries),
    ];
    let gate = |gate: &Gate| json!({ "inside": gate.inside(), "limit": gate.limit(), "refused": gate.refused() });
    let gates = gates.map(|(name, found)| (name.to_owned(), gate(found)));
    json!({
        "port": port,
        "subset": subset,
        "broken": backend.broken,
        "gates": gates.into_iter().collect::<serde_json::Map<_, _>>(),
        "endpoints": shown_endpoints(&backend.group),
    })
}

fn shown_calls((service, backends): (NamespacedHost, Vec<compiled::Called>)) -> Value {
    let backends = backends
        .iter()
        .map(|(port, subset, backend)| shown_backend(*port, subset, backend));
    json!({ "service": service.to_string(), "backends": backends.collect::<Vec<_>>() })
}

/// None before the first request.
fn shown_endpoints(group: &Group) -> Vec<Value> {
    let now = Instant::now();
    let all = group.shown().into_iter();
    all.map(|(endpoint, out)| {
        let workload: &Workload = &endpoint.workload;
        json!({
            "workload": &*workload.uid,
            "address": endpoint.address,
            "gateway": endpoint.gateway().map(|gateway| gateway.to_string()),
            "port": endpoint.target_port,
            "busy": endpoint.busy(),
            "ejected_for_seconds": out.map(|out| out.saturating_duration_since(now).as_secs()),
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;

    #[test]
    fn what_is_not_behind_this_waypoint_is_not_said_to_be_served() {
        let service = api::workload::Service {
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
            hostname: "web.shop".to_owned(),
            ports: vec![api::workload::Port {
                service_port: 80,
                target_port: 8080,
                ..Default::default()
            }],
            ..Default::default()
        };
        let service: Service = service.try_into().unwrap();
        let client = Client {
            identity: None,
            address: ([10, 0, 0, 5], 0).into(),
            peer: [10, 0, 0, 5].into(),
            workload: None,
            said: Baggage::default(),
        };
        let (method, headers) = (Method::GET, HeaderMap::new());
        let asked = Asked {
            method: &method,
            scheme: "http",
            host: "web.shop",
            authority: "web.shop",
            path: "/",
            query: None,
            headers: &headers,
            port: 80,
            destination: ([10, 0, 0, 5], 80).into(),
            sni: None,
            client: &client,
            remote: asked::remote(client.peer, &headers, 0),
            claims: None,
        };
        // It is known, and nobody has said that this waypoint stands in front of it.
        let (config, said) = (Config::default(), Resources::default());
        let shown = judged(&config, &said, &Arc::new(service), &asked);
        assert_eq!(shown["answer"], "none", "{shown}");
        assert_eq!(shown["because"], "the service is not behind this waypoint");
    }
}
