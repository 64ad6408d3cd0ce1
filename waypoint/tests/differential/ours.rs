//! The rules as a user of the mesh writes them: HTTPRoute and VirtualService.

use serde_json::{Map, Value, json};

use super::rules::{
    Action, Change, Cors, Kind, MISSING, Match, Named, Path, PathChange, Redirect, Rule, Ruled,
    Text,
};

/// All objects of a service, one document each (JSON is YAML).
pub(super) fn objects(ruled: &Ruled) -> Vec<String> {
    let name = |number: usize| format!("{}-{number}", ruled.name);
    let objects = ruled.objects.iter().enumerate();
    objects
        .map(|(number, rules)| {
            let object = match ruled.kind {
                Kind::HttpRoute => json!({
                    "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                    "metadata": { "namespace": "shop", "name": name(number) },
                    "spec": {
                        "parentRefs": [{ "group": "", "kind": "Service", "name": ruled.name, "port": 80 }],
                        "rules": rules.iter().map(gateway).collect::<Vec<_>>(),
                    },
                }),
                Kind::VirtualService => json!({
                    "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
                    "metadata": { "namespace": "shop", "name": name(number) },
                    "spec": { "hosts": [ruled.name], "http": rules.iter().map(istio).collect::<Vec<_>>() },
                }),
            };
            object.to_string()
        })
        .collect()
}

// ---- Gateway API

fn gateway(rule: &Rule) -> Value {
    let mut filters = gateway_filters(rule);
    let mut all = Map::new();
    all.insert(
        "matches".into(),
        rule.matches.iter().map(gateway_match).collect(),
    );
    match &rule.action {
        Action::Redirect(redirect) => {
            filters.push(
                json!({ "type": "RequestRedirect", "requestRedirect": gateway_redirect(redirect) }),
            );
        }
        Action::Forward {
            backend,
            host,
            path,
        } => {
            let mut rewrite = Map::new();
            if let Some(host) = host {
                rewrite.insert("hostname".into(), host.split(':').next().into());
            }
            if let Some(path) = path {
                rewrite.insert("path".into(), gateway_path(path));
            }
            if !rewrite.is_empty() {
                filters.push(json!({ "type": "URLRewrite", "urlRewrite": rewrite }));
            }
            let name = app(*backend);
            all.insert("backendRefs".into(), json!([{ "name": name, "port": 80 }]));
        }
        Action::Direct(..) => {}
    }
    if !filters.is_empty() {
        all.insert("filters".into(), filters.into());
    }
    if let Some((attempts, codes)) = rule.retries {
        let codes = codes.split(',').filter_map(|code| code.parse::<u16>().ok());
        let codes: Vec<u16> = codes.collect();
        all.insert(
            "retry".into(),
            json!({ "attempts": attempts, "codes": codes }),
        );
    }
    let timeouts = [
        ("request", rule.timeouts.whole),
        ("backendRequest", rule.timeouts.each),
    ];
    let timeouts: Map<String, Value> = said(&timeouts).collect();
    if !timeouts.is_empty() {
        all.insert("timeouts".into(), timeouts.into());
    }
    all.into()
}

/// Times by their names, as both APIs write them.
fn said(all: &[(&str, Option<u32>)]) -> impl Iterator<Item = (String, Value)> {
    let all = all.iter();
    all.filter_map(|(name, time)| Some(((*name).to_owned(), format!("{}ms", (*time)?).into())))
}

/// Those that are for every kind of rule.
fn gateway_filters(rule: &Rule) -> Vec<Value> {
    let mut filters = Vec::new();
    for (kind, field, change) in [
        (
            "RequestHeaderModifier",
            "requestHeaderModifier",
            &rule.request,
        ),
        (
            "ResponseHeaderModifier",
            "responseHeaderModifier",
            &rule.response,
        ),
    ] {
        if let Some(change) = listed(change) {
            filters.push(json!({ "type": kind, field: change }));
        }
    }
    if let Some(cors) = &rule.cors {
        filters.push(json!({ "type": "CORS", "cors": {
            "allowOrigins": cors.origins, "allowCredentials": cors.credentials, "allowMethods": cors.methods,
            "allowHeaders": cors.headers, "exposeHeaders": cors.expose, "maxAge": cors.age,
        } }));
    }
    filters
}

/// Name of the service of an app.
pub(super) fn app(number: usize) -> String {
    match number {
        MISSING => "missing".into(),
        number => format!("b{number}"),
    }
}

fn gateway_match(one: &Match) -> Value {
    let mut all = Map::new();
    let path = one.path.as_ref().map(|path| match path {
        Path::Exact(path) => json!({ "type": "Exact", "value": path }),
        Path::Prefix(path) | Path::Text(path) => json!({ "type": "PathPrefix", "value": path }),
        Path::Regex(path) => json!({ "type": "RegularExpression", "value": path }),
    });
    all.extend(path.map(|path| ("path".into(), path)));
    let named = |named: &Named| match &named.text {
        Text::Exact(value) => json!({ "name": named.name, "value": value }),
        Text::Regex(value) => {
            json!({ "type": "RegularExpression", "name": named.name, "value": value })
        }
        other => panic!("HTTPRoute has no {other:?}"),
    };
    for (field, conditions) in [("headers", &one.headers), ("queryParams", &one.query)] {
        if !conditions.is_empty() {
            all.insert(field.into(), conditions.iter().map(named).collect());
        }
    }
    all.extend(one.method.map(|method| ("method".into(), method.into())));
    all.into()
}

fn gateway_redirect(redirect: &Redirect) -> Value {
    let mut all = Map::new();
    all.insert("statusCode".into(), redirect.status.into());
    all.extend(
        redirect
            .scheme
            .map(|scheme| ("scheme".into(), scheme.into())),
    );
    all.extend(redirect.host.map(|host| ("hostname".into(), host.into())));
    all.extend(redirect.port.map(|port| ("port".into(), port.into())));
    let path = redirect.path.as_ref().map(gateway_path);
    all.extend(path.map(|path| ("path".into(), path)));
    all.into()
}

fn gateway_path(path: &PathChange) -> Value {
    match path {
        PathChange::Full(path) => json!({ "type": "ReplaceFullPath", "replaceFullPath": path }),
        PathChange::Prefix(path) => {
            json!({ "type": "ReplacePrefixMatch", "replacePrefixMatch": path })
        }
        PathChange::Regex(..) => panic!("HTTPRoute has no expressions in rewrites"),
    }
}

fn listed(change: &Change) -> Option<Value> {
    let pairs = |pairs: &[(&str, &str)]| -> Value {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| json!({ "name": name, "value": value }))
            .collect()
    };
    let empty = change.set.is_empty() && change.add.is_empty() && change.remove.is_empty();
    (!empty).then(|| {
        let mut all = Map::new();
        if !change.set.is_empty() {
            all.insert("set".into(), pairs(&change.set));
        }
        if !change.add.is_empty() {
            all.insert("add".into(), pairs(&change.add));
        }
        if !change.remove.is_empty() {
            all.insert("remove".into(), json!(change.remove));
        }
        all.into()
    })
}

// ---- Istio

fn istio(rule: &Rule) -> Value {
    let mut all = Map::new();
    all.insert(
        "match".into(),
        rule.matches.iter().map(istio_match).collect(),
    );
    match &rule.action {
        Action::Redirect(redirect) => {
            all.insert("redirect".into(), istio_redirect(redirect));
        }
        Action::Direct(status, body) => {
            let direct = match body.is_empty() {
                true => json!({ "status": status }),
                false => json!({ "status": status, "body": { "string": body } }),
            };
            all.insert("directResponse".into(), direct);
        }
        Action::Forward {
            backend,
            host,
            path,
        } => {
            let destination = json!({ "host": app(*backend), "port": { "number": 80 } });
            all.insert("route".into(), json!([{ "destination": destination }]));
            let rewrite = istio_rewrite(*host, path.as_ref());
            if !rewrite.is_empty() {
                all.insert("rewrite".into(), rewrite.into());
            }
        }
    }
    let headers: Map<String, Value> = [("request", &rule.request), ("response", &rule.response)]
        .into_iter()
        .filter_map(|(name, change)| Some((name.to_owned(), mapped(change)?)))
        .collect();
    if !headers.is_empty() {
        all.insert("headers".into(), headers.into());
    }
    if let Some(cors) = &rule.cors {
        all.insert("corsPolicy".into(), istio_cors(cors));
    }
    if let Some(status) = rule.abort {
        all.insert(
            "fault".into(),
            json!({ "abort": { "httpStatus": status, "percentage": { "value": 100 } } }),
        );
    }
    if let Some((attempts, on)) = rule.retries {
        let mut retries = Map::new();
        retries.insert("attempts".into(), attempts.into());
        retries.insert("retryOn".into(), on.into());
        retries.extend(said(&[("perTryTimeout", rule.timeouts.each)]));
        all.insert("retries".into(), retries.into());
    }
    all.extend(said(&[("timeout", rule.timeouts.whole)]));
    all.into()
}

fn istio_rewrite(host: Option<&str>, path: Option<&PathChange>) -> Map<String, Value> {
    let mut rewrite = Map::new();
    rewrite.extend(host.map(|host| ("authority".into(), host.into())));
    match path {
        Some(PathChange::Prefix(path) | PathChange::Full(path)) => {
            rewrite.insert("uri".into(), (*path).into());
        }
        Some(PathChange::Regex(pattern, with)) => {
            rewrite.insert(
                "uriRegexRewrite".into(),
                json!({ "match": pattern, "rewrite": with }),
            );
        }
        None => {}
    }
    rewrite
}

fn istio_match(one: &Match) -> Value {
    let mut all = Map::new();
    let path = one.path.as_ref().map(|path| match path {
        Path::Exact(path) => json!({ "exact": path }),
        Path::Prefix(path) | Path::Text(path) => json!({ "prefix": path }),
        Path::Regex(path) => json!({ "regex": path }),
    });
    all.extend(path.map(|path| ("uri".into(), path)));
    if one.ignore_case {
        all.insert("ignoreUriCase".into(), true.into());
    }
    let text = |text: &Text| match text {
        Text::Exact(value) => json!({ "exact": value }),
        Text::Prefix(value) => json!({ "prefix": value }),
        Text::Regex(value) => json!({ "regex": value }),
        Text::Present => json!({}),
    };
    let conditions = |all: &[Named], without: bool| -> Map<String, Value> {
        let all = all.iter().filter(|one| one.without == without);
        all.map(|one| (one.name.to_owned(), text(&one.text)))
            .collect()
    };
    for (field, conditions) in [
        ("headers", conditions(&one.headers, false)),
        ("withoutHeaders", conditions(&one.headers, true)),
        ("queryParams", conditions(&one.query, false)),
    ] {
        if !conditions.is_empty() {
            all.insert(field.into(), conditions.into());
        }
    }
    all.extend(
        one.method
            .map(|method| ("method".into(), json!({ "exact": method }))),
    );
    all.into()
}

fn istio_redirect(redirect: &Redirect) -> Value {
    let mut all = Map::new();
    all.insert("redirectCode".into(), redirect.status.into());
    all.extend(
        redirect
            .scheme
            .map(|scheme| ("scheme".into(), scheme.into())),
    );
    all.extend(redirect.host.map(|host| ("authority".into(), host.into())));
    all.extend(redirect.port.map(|port| ("port".into(), port.into())));
    if let Some(PathChange::Full(path)) = redirect.path {
        all.insert("uri".into(), path.into());
    }
    all.into()
}

fn istio_cors(cors: &Cors) -> Value {
    let origins: Vec<_> = cors
        .origins
        .iter()
        .map(|origin| json!({ "exact": origin }))
        .collect();
    json!({
        "allowOrigins": origins, "allowCredentials": cors.credentials, "allowMethods": cors.methods,
        "allowHeaders": cors.headers, "exposeHeaders": cors.expose, "maxAge": format!("{}s", cors.age),
    })
}

fn mapped(change: &Change) -> Option<Value> {
    let pairs = |pairs: &[(&str, &str)]| -> Map<String, Value> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).into()))
            .collect()
    };
    let empty = change.set.is_empty() && change.add.is_empty() && change.remove.is_empty();
    (!empty).then(
        || json!({ "set": pairs(&change.set), "add": pairs(&change.add), "remove": change.remove }),
    )
}
