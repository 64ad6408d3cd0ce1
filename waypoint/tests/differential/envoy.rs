//! The same rules as Envoy has them: a listener of its own for each service, shaped as Istio shapes a waypoint's chain for a
//! service's port.
//!
//! What Istio translates badly is written here as Gateway API means it, since it is Envoy that is compared with:
//! precedence (rules are sorted here, by a second reading of the specification), a prefix `/` that is replaced, a
//! replacement that ends in a slash.

use std::cmp::Reverse;
use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use super::ours::{app, objects};
use super::rules::{
    APPS, Action, Change, Cors, Kind, Match, Named, Path, PathChange, Redirect, Rule, Ruled, Text,
};

/// The listener of the first service; the others follow.
pub(super) const FIRST_PORT: u16 = 20_000;
const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http";

/// A service: what a user writes for it, and what an Envoy is told that means the same.
pub(super) struct Front {
    pub(super) name: String,
    /// Documents of YAML.
    pub(super) objects: Vec<String>,
    pub(super) routes: Vec<Value>,
    /// Filters before the usual ones.
    pub(super) filters: Vec<Value>,
}

impl Front {
    pub(super) fn of_rules(service: &Ruled) -> Self {
        Self {
            name: service.name.clone(),
            objects: objects(service),
            routes: routes(service),
            filters: Vec::new(),
        }
    }
}

/// The whole of its configuration.
pub(super) fn config(fronts: &[Front], apps: &[SocketAddr; APPS]) -> Value {
    let listeners = fronts.iter().enumerate().map(|(number, front)| {
        json!({
            "name": front.name,
            "address": { "socket_address": { "address": "::", "ipv4_compat": true, "port_value": FIRST_PORT + number as u16 } },
            "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.http_connection_manager", "typed_config": connections(front),
            }] }],
        })
    });
    let clusters = apps.iter().enumerate().map(|(number, at)| {
        let endpoint = json!({ "endpoint": { "address": { "socket_address": { "address": at.ip(), "port_value": at.port() } } } });
        json!({
            "name": app(number), "type": "STATIC", "connect_timeout": "10s",
            "load_assignment": { "cluster_name": app(number), "endpoints": [{ "lb_endpoints": [endpoint] }] },
        })
    });
    json!({ "static_resources": {
        "listeners": listeners.collect::<Vec<_>>(), "clusters": clusters.collect::<Vec<_>>(),
    } })
}

fn connections(front: &Front) -> Value {
    let filter = |name: &str, kind: &str| json!({ "name": format!("envoy.filters.http.{name}"), "typed_config": { "@type": format!("{HTTP}.{name}.v3.{kind}") } });
    let usual = [
        filter("cors", "Cors"),
        filter("fault", "HTTPFault"),
        filter("router", "Router"),
    ];
    let filters: Vec<Value> = front.filters.iter().cloned().chain(usual).collect();
    json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": front.name, "stream_idle_timeout": "0s", "use_remote_address": false,
        "server_header_transformation": "PASS_THROUGH",
        // MeshConfig's pathNormalization: DECODE_AND_MERGE_SLASHES.
        "normalize_path": true, "merge_slashes": true, "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD",
        "route_config": {
            "validate_clusters": false,
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": front.routes }],
        },
        "http_filters": filters,
    })
}

fn routes(service: &Ruled) -> Vec<Value> {
    let rules = service.objects.iter().flatten();
    let mut all: Vec<(&Match, &Rule)> = rules
        .flat_map(|rule| rule.matches.iter().map(move |one| (one, rule)))
        .collect();
    if service.kind == Kind::HttpRoute {
        // Stable: what is equal stays in the order of objects and rules.
        all.sort_by_key(|(one, _)| precedence(one));
    }
    all.into_iter()
        .map(|(one, rule)| route(service.kind, one, rule))
        .collect()
}

/// HTTPRouteRule.matches; where it leaves expressions, before what asks nothing of the path.
fn precedence(one: &Match) -> impl Ord + use<> {
    let (kind, length) = match &one.path {
        Some(Path::Exact(path)) => (0, path.len()),
        Some(Path::Prefix(path) | Path::Text(path)) if path != "/" => {
            (1, path.trim_end_matches('/').len())
        }
        Some(Path::Regex(path)) => (2, path.len()),
        _ => (3, 0),
    };
    let more = (one.method.is_some(), one.headers.len(), one.query.len());
    (kind, Reverse(length), Reverse(more))
}

fn route(kind: Kind, one: &Match, rule: &Rule) -> Value {
    let mut all = Map::new();
    all.insert("match".into(), matching(one));
    let mut filters = Map::new();
    match &rule.action {
        Action::Redirect(redirect) => {
            all.insert("redirect".into(), redirected(kind, one, redirect));
        }
        Action::Direct(status, body) => {
            let direct = match body.is_empty() {
                true => json!({ "status": status }),
                false => json!({ "status": status, "body": { "inline_string": body } }),
            };
            all.insert("direct_response".into(), direct);
        }
        Action::Forward {
            backend,
            host,
            path,
        } => {
            let to = onward(kind, one, rule, *backend, *host, path.as_ref());
            all.insert("route".into(), to);
        }
    }
    for (field, gone, change) in [
        (
            "request_headers_to_add",
            "request_headers_to_remove",
            &rule.request,
        ),
        (
            "response_headers_to_add",
            "response_headers_to_remove",
            &rule.response,
        ),
    ] {
        all.insert(field.into(), added(change));
        all.insert(gone.into(), json!(change.remove));
    }
    if let Some(cors) = &rule.cors {
        filters.insert("envoy.filters.http.cors".into(), shared(kind, cors));
    }
    if let Some(status) = rule.abort {
        filters.insert(
            "envoy.filters.http.fault".into(),
            json!({
                "@type": format!("{HTTP}.fault.v3.HTTPFault"),
                "abort": { "http_status": status, "percentage": { "numerator": 100 } },
            }),
        );
    }
    all.insert("typed_per_filter_config".into(), filters.into());
    all.into()
}

fn onward(
    kind: Kind,
    one: &Match,
    rule: &Rule,
    backend: usize,
    host: Option<&str>,
    path: Option<&PathChange>,
) -> Value {
    let mut to = Map::new();
    to.insert("cluster".into(), app(backend).into());
    to.insert(
        "cluster_not_found_response_code".into(),
        "INTERNAL_SERVER_ERROR".into(),
    );
    to.insert("timeout".into(), seconds(rule.timeouts.whole).into());
    let host = host.map(|host| match kind {
        Kind::HttpRoute => host.split(':').next().unwrap_or_default(),
        Kind::VirtualService => host,
    });
    to.extend(host.map(|host| ("host_rewrite_literal".into(), host.into())));
    to.extend(path.map(|path| rewritten(kind, one, path)));
    if kind == Kind::VirtualService || rule.retries.is_some() || rule.timeouts.each.is_some() {
        // Istio's own, where nothing is said.
        let unsaid = match kind {
            Kind::VirtualService => (2, "connect-failure,refused-stream,unavailable,cancelled"),
            Kind::HttpRoute => (0, ""),
        };
        let (attempts, on) = rule.retries.unwrap_or(unsaid);
        let (codes, mut on): (Vec<&str>, Vec<&str>) = on
            .split(',')
            .filter(|on| !on.is_empty())
            .partition(|on| on.parse::<u16>().is_ok());
        if kind == Kind::HttpRoute && !codes.is_empty() {
            // GEP-1731: beside the codes, whatever was not answered.
            on.extend([
                "retriable-status-codes",
                "reset",
                "connect-failure",
                "refused-stream",
            ]);
        }
        let codes = codes.iter().filter_map(|code| code.parse::<u16>().ok());
        to.insert(
            "retry_policy".into(),
            json!({
                "retry_on": on.join(","), "num_retries": attempts, "per_try_timeout": seconds(rule.timeouts.each),
                "retriable_status_codes": codes.collect::<Vec<_>>(),
            }),
        );
    }
    to.into()
}

/// None is for ever.
fn seconds(milliseconds: Option<u32>) -> String {
    format!("{:.3}s", f64::from(milliseconds.unwrap_or(0)) / 1000.0)
}

fn matching(one: &Match) -> Value {
    let mut all = Map::new();
    let (field, value) = match &one.path {
        None => ("prefix", json!("/")),
        Some(Path::Exact(path)) => ("path", json!(path)),
        Some(Path::Text(path)) => ("prefix", json!(path)),
        Some(Path::Regex(path)) => ("safe_regex", json!({ "regex": path })),
        Some(Path::Prefix(path)) => match path.trim_end_matches('/') {
            "" => ("prefix", json!("/")),
            path => ("path_separated_prefix", json!(path)),
        },
    };
    all.insert(field.into(), value);
    if one.ignore_case {
        all.insert("case_sensitive".into(), false.into());
    }
    let mut headers: Vec<Value> = one.headers.iter().map(header).collect();
    headers.extend(
        one.method
            .map(|method| json!({ "name": ":method", "string_match": { "exact": method } })),
    );
    all.insert("headers".into(), headers.into());
    let query = one.query.iter().map(|one| match &one.text {
        Text::Present => json!({ "name": one.name, "present_match": true }),
        text => json!({ "name": one.name, "string_match": string(text) }),
    });
    all.insert("query_parameters".into(), query.collect());
    all.into()
}

fn header(one: &Named) -> Value {
    let mut all = Map::new();
    all.insert("name".into(), one.name.into());
    match &one.text {
        Text::Present => all.insert("present_match".into(), true.into()),
        text => all.insert("string_match".into(), string(text)),
    };
    if one.without {
        // As Istio has it: who has no such header has none that matches.
        all.insert("invert_match".into(), true.into());
        let value = !matches!(one.text, Text::Present);
        all.insert("treat_missing_header_as_empty".into(), value.into());
    }
    all.into()
}

fn string(text: &Text) -> Value {
    match text {
        Text::Exact(value) => json!({ "exact": value }),
        Text::Prefix(value) => json!({ "prefix": value }),
        Text::Regex(value) => json!({ "safe_regex": { "regex": value } }),
        Text::Present => json!({}),
    }
}

fn redirected(kind: Kind, one: &Match, redirect: &Redirect) -> Value {
    let mut all = Map::new();
    let status = match redirect.status {
        302 => "FOUND",
        303 => "SEE_OTHER",
        307 => "TEMPORARY_REDIRECT",
        308 => "PERMANENT_REDIRECT",
        _ => "MOVED_PERMANENTLY",
    };
    all.insert("response_code".into(), status.into());
    all.extend(
        redirect
            .scheme
            .map(|scheme| ("scheme_redirect".into(), scheme.into())),
    );
    all.extend(
        redirect
            .host
            .map(|host| ("host_redirect".into(), host.into())),
    );
    let port = redirect.port.filter(|port| {
        !matches!(
            (redirect.scheme.unwrap_or("http"), port),
            ("http", 80) | ("https", 443)
        )
    });
    all.extend(port.map(|port| ("port_redirect".into(), port.into())));
    match &redirect.path {
        Some(PathChange::Full(path)) => {
            all.insert("path_redirect".into(), (*path).into());
        }
        Some(path) => {
            let (field, value) = rewritten(kind, one, path);
            all.insert(field, value);
        }
        None => {}
    }
    all.into()
}

fn rewritten(kind: Kind, one: &Match, path: &PathChange) -> (String, Value) {
    let regex = |pattern: &str, with: &str| {
        let rewrite = json!({ "pattern": { "regex": pattern }, "substitution": with });
        ("regex_rewrite".to_owned(), rewrite)
    };
    match path {
        PathChange::Full(path) => regex("^/.*$", path),
        PathChange::Regex(pattern, with) => regex(pattern, with),
        PathChange::Prefix(with) if kind == Kind::VirtualService => {
            ("prefix_rewrite".to_owned(), (*with).into())
        }
        PathChange::Prefix(with) => {
            let prefix = match &one.path {
                Some(Path::Prefix(prefix)) => prefix.trim_end_matches('/'),
                _ => "",
            };
            let quoted = prefix.replace('.', "\\.");
            // The rest follows after one slash; the whole of it is a slash at least.
            let with = with.trim_end_matches('/');
            match with {
                "" => regex(&format!("^{quoted}/?(.*)$"), "/\\1"),
                with if prefix.is_empty() => regex("^(/.*)$", &format!("{with}\\1")),
                with => regex(&format!("^{quoted}(/.*)?$"), &format!("{with}\\1")),
            }
        }
    }
}

fn added(change: &Change) -> Value {
    let option = |(name, value): &(&str, &str), action: &str| json!({ "header": { "key": name, "value": value }, "append_action": action });
    let set = change
        .set
        .iter()
        .map(|pair| option(pair, "OVERWRITE_IF_EXISTS_OR_ADD"));
    let add = change
        .add
        .iter()
        .map(|pair| option(pair, "APPEND_IF_EXISTS_OR_ADD"));
    set.chain(add).collect()
}

fn shared(kind: Kind, cors: &Cors) -> Value {
    let origins: Vec<_> = cors
        .origins
        .iter()
        .map(|origin| json!({ "exact": origin }))
        .collect();
    json!({
        "@type": format!("{HTTP}.cors.v3.CorsPolicy"),
        "allow_origin_string_match": origins, "allow_credentials": cors.credentials,
        "allow_methods": cors.methods.join(", "), "allow_headers": cors.headers.join(", "),
        "expose_headers": cors.expose.join(", "), "max_age": cors.age.to_string(),
        // Istio's default for a VirtualService; a Gateway API's filter answers all of them.
        "forward_not_matching_preflights": kind == Kind::VirtualService,
    })
}
