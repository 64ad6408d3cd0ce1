//! Generated AuthorizationPolicies, and the same as Istio gives them to Envoy's RBAC: one filter of all that deny, one of all
//! that allow. Who asks is no part of it: here it is what is asked.

use serde_json::{Map, Value, json};

use super::asks::Ask;
use super::draw::Draw;
use super::envoy::Front;
use super::rules::{METHODS, NAMES, joined};

/// A service and the policies for it.
pub(super) struct Guarded {
    pub(super) name: String,
    pub(super) policies: Vec<Policy>,
}

#[derive(Clone, Debug)]
pub(super) struct Policy {
    denies: bool,
    rules: Vec<Rule>,
}

/// Any of the operations (none: all there are), and all of the conditions.
#[derive(Clone, Debug)]
struct Rule {
    to: Vec<Operation>,
    when: Vec<(&'static str, Listed)>,
}

#[derive(Clone, Debug)]
struct Operation {
    hosts: Listed,
    methods: Listed,
    paths: Listed,
}

/// One of these, and none of those.
#[derive(Clone, Debug, Default)]
struct Listed {
    values: Vec<String>,
    not: Vec<String>,
}

/// Of what a header is asked for. `*` is whatever there is.
const PATTERNS: &[&str] = &["1", "2", "one", "One", "two words", "42", "o*", "*e", "*"];
/// What is asked in the place of each.
const SAID: &[&str] = &["1", "2", "one", "One", "two words", "42", "a,b", "1,2", ""];

/// A service of that number.
pub(super) fn service(number: usize, draw: &mut Draw) -> Guarded {
    let name = format!("g{number}");
    let policies = (0..1 + draw.below(3)).map(|_| policy(&name, draw));
    Guarded {
        policies: policies.collect(),
        name,
    }
}

fn policy(service: &str, draw: &mut Draw) -> Policy {
    let denies = draw.chance(50);
    Policy {
        denies,
        rules: (0..1 + draw.below(3))
            .map(|_| rule(service, draw))
            .collect(),
    }
}

fn rule(service: &str, draw: &mut Draw) -> Rule {
    let mut names: Vec<&'static str> = (0..draw.below(3)).map(|_| draw.one(NAMES)).collect();
    names.sort_unstable();
    names.dedup();
    let operation = |draw: &mut Draw| {
        let hosts = |draw: &mut Draw| match draw.below(5) {
            0 => format!("{service}.shop"),
            1 => format!("{}.SHOP", service.to_uppercase()),
            2 => "other.example".to_owned(),
            3 => "*.shop".to_owned(),
            _ => format!("{service}.*"),
        };
        let method = |draw: &mut Draw| draw.one(METHODS).to_owned();
        Operation {
            hosts: listed(25, hosts, draw),
            methods: listed(40, method, draw),
            // Something must be said of an operation.
            paths: match listed(70, path, draw) {
                all if all.values.is_empty() && all.not.is_empty() => Listed {
                    values: vec![path(draw)],
                    not: Vec::new(),
                },
                all => all,
            },
        }
    };
    Rule {
        to: (0..draw.below(3)).map(|_| operation(draw)).collect(),
        when: names
            .into_iter()
            .map(|name| {
                let value = |draw: &mut Draw| draw.one(PATTERNS).to_owned();
                let mut listed = listed(90, value, draw);
                if listed.values.is_empty() && listed.not.is_empty() {
                    listed.values.push("*".into());
                }
                (name, listed)
            })
            .collect(),
    }
}

/// Nothing, so many in a hundred something.
fn listed(percent: usize, one: impl Fn(&mut Draw) -> String, draw: &mut Draw) -> Listed {
    if !draw.chance(percent) {
        return Listed::default();
    }
    let some = |draw: &mut Draw| (0..1 + draw.below(2)).map(|_| one(draw)).collect();
    match draw.below(4) {
        0 => Listed {
            values: Vec::new(),
            not: some(draw),
        },
        1 => Listed {
            values: some(draw),
            not: some(draw),
        },
        _ => Listed {
            values: some(draw),
            not: Vec::new(),
        },
    }
}

fn path(draw: &mut Draw) -> String {
    match draw.below(8) {
        0..3 => joined(draw),
        3 => joined(draw) + "*",
        4 => joined(draw) + "/*",
        5 => format!("*{}", joined(draw)),
        6 => joined(draw) + "/{*}",
        _ => format!("{}/{{**}}", joined(draw)),
    }
}

impl Guarded {
    /// One that some rule is about, changed a little.
    pub(super) fn ask(&self, draw: &mut Draw) -> Ask {
        let rules: Vec<&Rule> = self.policies.iter().flat_map(|one| &one.rules).collect();
        let rule = rules[draw.below(rules.len())];
        let operation = (!rule.to.is_empty()).then(|| &rule.to[draw.below(rule.to.len())]);
        let of = |listed: Option<&Listed>, draw: &mut Draw| {
            let all = listed.map(|all| [&all.values[..], &all.not[..]].concat());
            let all = all.unwrap_or_default();
            (!all.is_empty()).then(|| draw.one(&all))
        };
        let path = of(operation.map(|one| &one.paths), draw);
        let path = match path {
            Some(path) => like(&path, draw),
            None => joined(draw),
        };
        let method = of(operation.map(|one| &one.methods), draw);
        let mut ask = Ask {
            method: method.unwrap_or_else(|| draw.one(METHODS).into()),
            target: path,
            host: match draw.below(6) {
                0 => format!("{}.shop:80", self.name),
                1 => "other.example".into(),
                2 => format!("{}.Shop", self.name.to_uppercase()),
                3 => format!("{}.shop.svc.cluster.local", self.name),
                _ => format!("{}.shop", self.name),
            },
            headers: Vec::new(),
            body: String::new(),
            http2: false,
        };
        for (name, listed) in &rule.when {
            if draw.chance(85) {
                let value = of(Some(listed), draw).unwrap_or_default();
                let value = match draw.below(4) {
                    0 => draw.one(SAID).to_owned(),
                    _ => value.replace('*', draw.one(&["", "n", "one"])),
                };
                ask.say(name, &value);
            }
        }
        for _ in 0..draw.below(2) {
            ask.change(draw);
        }
        ask
    }

    /// What a user writes, and what Envoy is told.
    pub(super) fn front(&self) -> Front {
        let objects = self.policies.iter().enumerate().map(|(number, policy)| {
            json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": { "namespace": "shop", "name": format!("{}-{number}", self.name) },
                "spec": {
                    "targetRefs": [{ "group": "", "kind": "Service", "name": self.name }],
                    "action": if policy.denies { "DENY" } else { "ALLOW" },
                    "rules": policy.rules.iter().map(written).collect::<Vec<_>>(),
                },
            })
            .to_string()
        });
        let filters = [true, false].into_iter().filter_map(|denies| {
            let all = self.policies.iter().filter(|one| one.denies == denies);
            let rules = all.flat_map(|one| &one.rules).enumerate();
            let policies: Map<String, Value> = rules
                .map(|(number, rule)| (number.to_string(), told(rule)))
                .collect();
            (!policies.is_empty()).then(|| {
                json!({ "name": "envoy.filters.http.rbac", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                    "rules": { "action": if denies { "DENY" } else { "ALLOW" }, "policies": policies },
                } })
            })
        });
        let all =
            json!({ "match": { "prefix": "/" }, "route": { "cluster": "b0", "timeout": "0s" } });
        Front {
            name: self.name.clone(),
            objects: objects.collect(),
            routes: vec![all],
            filters: filters.collect(),
        }
    }
}

/// A path that such a pattern is about.
fn like(pattern: &str, draw: &mut Draw) -> String {
    let within = match draw.below(3) {
        0 => "x".to_owned(),
        1 => joined(draw),
        _ => String::new(),
    };
    let within = within.trim_start_matches('/');
    let path = pattern
        .replace("{**}", within)
        .replace("{*}", within)
        .replace('*', within);
    match path.starts_with('/') {
        true => path,
        false => format!("/{path}"),
    }
}

// ---- as a user writes it

fn written(rule: &Rule) -> Value {
    let mut all = Map::new();
    if !rule.to.is_empty() {
        let operations = rule.to.iter().map(|one| {
            let mut all = Map::new();
            for (name, not, listed) in [
                ("hosts", "notHosts", &one.hosts),
                ("methods", "notMethods", &one.methods),
                ("paths", "notPaths", &one.paths),
            ] {
                list(&mut all, name, &listed.values);
                list(&mut all, not, &listed.not);
            }
            json!({ "operation": all })
        });
        all.insert("to".into(), operations.collect());
    }
    if !rule.when.is_empty() {
        let conditions = rule.when.iter().map(|(name, listed)| {
            let mut all = Map::new();
            all.insert("key".into(), format!("request.headers[{name}]").into());
            list(&mut all, "values", &listed.values);
            list(&mut all, "notValues", &listed.not);
            Value::from(all)
        });
        all.insert("when".into(), conditions.collect());
    }
    all.into()
}

fn list(all: &mut Map<String, Value>, name: &str, values: &[String]) {
    if !values.is_empty() {
        all.insert(name.into(), json!(values));
    }
}

// ---- as Envoy is told

fn told(rule: &Rule) -> Value {
    let permissions: Vec<Value> = rule.to.iter().map(permission).collect();
    let principals = rule.when.iter().flat_map(|(name, listed)| {
        let header = |value: &String| {
            let header = match value.as_str() {
                "*" => json!({ "name": name, "present_match": true }),
                value => json!({ "name": name, "string_match": string(value) }),
            };
            json!({ "header": header })
        };
        both(listed, "or_ids", "ids", "not_id", header)
    });
    let principals: Vec<Value> = principals.collect();
    let any = || vec![json!({ "any": true })];
    json!({
        "permissions": if permissions.is_empty() { any() } else { permissions },
        "principals": if principals.is_empty() { any() } else { vec![json!({ "and_ids": { "ids": principals } })] },
    })
}

fn permission(one: &Operation) -> Value {
    let header = |name: &'static str, lax: bool| {
        move |value: &String| {
            let mut matcher = string(value);
            if lax {
                matcher["ignore_case"] = true.into();
            }
            json!({ "header": { "name": name, "string_match": matcher } })
        }
    };
    let path = |value: &String| match value.contains('{') {
        true => json!({ "uri_template": {
            "name": "template", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
                "path_template": value.replace("{**}", "**").replace("{*}", "*"),
            },
        } }),
        false => json!({ "url_path": { "path": string(value) } }),
    };
    let (list, name, not) = ("or_rules", "rules", "not_rule");
    let mut all = both(&one.hosts, list, name, not, header(":authority", true));
    all.extend(both(
        &one.methods,
        list,
        name,
        not,
        header(":method", false),
    ));
    all.extend(both(&one.paths, list, name, not, path));
    match all.is_empty() {
        true => json!({ "any": true }),
        false => json!({ "and_rules": { "rules": all } }),
    }
}

/// One of the values, and none of the others.
fn both(
    listed: &Listed,
    or: &str,
    all: &str,
    not: &str,
    one: impl Fn(&String) -> Value,
) -> Vec<Value> {
    let any = |values: &[String]| {
        let values: Vec<Value> = values.iter().map(&one).collect();
        (!values.is_empty()).then(|| json!({ or: { all: values } }))
    };
    let none = any(&listed.not).map(|any| json!({ not: any }));
    any(&listed.values).into_iter().chain(none).collect()
}

fn string(value: &str) -> Value {
    if let Some(suffix) = value.strip_prefix('*') {
        return json!({ "suffix": suffix });
    }
    match value.strip_suffix('*') {
        Some(prefix) => json!({ "prefix": prefix }),
        None => json!({ "exact": value }),
    }
}
