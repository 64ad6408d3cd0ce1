//! The table, judged.

use std::net::SocketAddr;

use api::waypoint as wire;
use hbone::Identity;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use serde_json::Value;
use waypoint::asked::{self, Asked, Form};
use waypoint::authenticate::Claims;
use waypoint::authorize::{Connection, Context, Denied, Policies, Verdict};
use waypoint::client::{Baggage, Client};

use super::table::{Case, Group, Policy, groups};

#[test]
fn each_case_of_the_table_is_judged_as_it_says() {
    let mut number = 0;
    let mut wrong = Vec::new();
    for group in groups() {
        let policies = compiled(&group);
        assert_eq!(policies.complaints().count(), 0, "{}", group.title);
        for case in &group.cases {
            number += 1;
            let found = judged(&policies, case);
            if found != expected(case) {
                wrong.push(format!("line {} ({}): {found}", case.line, group.title));
            }
        }
    }
    assert!(number >= 300, "{number} cases are left");
    assert!(
        wrong.is_empty(),
        "{} of {number} are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn explain_says_what_is_done() {
    for group in groups() {
        let policies = compiled(&group);
        for case in group
            .cases
            .iter()
            .filter(|case| !case.tcp && case.verdict != "400")
        {
            let explained = asking(case, |asked| policies.explain(asked)).unwrap();
            let verdict = match &*case.verdict {
                "unclear" => "deny",
                verdict => verdict,
            };
            assert_eq!(explained.verdict, verdict, "line {}", case.line);
            let named = case.by.as_deref().filter(|by| *by != "-");
            if let Some((policy, rule)) = named.and_then(|by| by.split_once('.')) {
                let name = format!("app/{policy} rule {rule}");
                assert!(
                    explained.because.contains(&name),
                    "line {}: {}",
                    case.line,
                    explained.because
                );
            }
        }
    }
}

/// The verdict and whose it is, as the table writes them.
fn expected(case: &Case) -> String {
    match &case.by {
        Some(by) => format!("{} by {by}", case.verdict),
        None => case.verdict.clone(),
    }
}

fn judged(policies: &Policies, case: &Case) -> String {
    if case.tcp {
        let client = client(case);
        let sni = case.sni.as_deref();
        let connection = Connection {
            client: &client,
            destination: SocketAddr::new(case.to, case.port),
            port: case.port,
            sni: sni.filter(|name| *name != UNREAD),
            unread: sni == Some(UNREAD),
        };
        return words(&policies.judge_connection(&connection, &[]));
    }
    asking(case, |asked| words(&policies.judge(asked))).unwrap_or_else(|_| "400".to_owned())
}

/// In the place of a server's name.
const UNREAD: &str = "?";

fn words(verdict: &Verdict<'_>) -> String {
    match verdict {
        Verdict::Allow { by: None } => "allow".to_owned(),
        Verdict::Allow { by: Some(by) } => format!("allow by {}.{}", short(by.policy), by.rule),
        Verdict::Deny(Denied::Rule(by)) => format!("deny by {}.{}", short(by.policy), by.rule),
        Verdict::Deny(Denied::Undecidable(by)) => {
            format!("unclear by {}.{}", short(by.policy), by.rule)
        }
        Verdict::Deny(Denied::NothingAllows) => "deny by -".to_owned(),
        Verdict::Deny(denied) => denied.to_string(),
        Verdict::Ask(providers) => {
            assert_eq!(providers, &["authz"]);
            "ask".to_owned()
        }
    }
}

fn short(policy: &str) -> &str {
    policy.strip_prefix("app/").unwrap()
}

pub(super) fn client(case: &Case) -> Client {
    let identity = case.identity.as_ref();
    Client {
        identity: identity.map(|(namespace, account)| {
            Identity::new(&case.trust_domain, namespace, account).unwrap()
        }),
        address: SocketAddr::new(case.from, 40_000),
        peer: case.from,
        workload: None,
        said: Baggage::default(),
    }
}

/// Makes what is judged of a request, by the way that requests take.
pub(super) fn asking<T>(
    case: &Case,
    judge: impl FnOnce(&Asked<'_>) -> T,
) -> Result<T, asked::Unclear> {
    let mut headers = HeaderMap::new();
    for (name, value) in &case.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_bytes(value).unwrap());
    }
    let method: Method = case.method.parse().unwrap();
    let (path, query) = match case.path.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (&*case.path, None),
    };
    let uri = path.parse::<Uri>().unwrap_or_default();
    let path = if uri == Uri::default() {
        asked::normalise(path, Form::default())?
    } else {
        asked::target(&method, &uri, Form::default())?
    };
    let host = asked::host(&case.host)?;
    let client = client(case);
    let claims = case.claims.as_ref().map(claims);
    Ok(judge(&Asked {
        method: &method,
        scheme: if case.https { "https" } else { "http" },
        host: &host.name,
        authority: &case.host,
        path: &path,
        query,
        headers: &headers,
        port: case.port,
        destination: SocketAddr::new(case.to, case.port),
        sni: case.sni.as_deref(),
        client: &client,
        remote: asked::remote(case.from, &headers, 0),
        claims: claims.as_ref(),
    }))
}

fn claims(all: &Value) -> Claims {
    let text = |name: &str| all[name].as_str().unwrap_or_default().to_owned();
    Claims {
        issuer: text("iss"),
        subject: text("sub"),
        audiences: strings(&all["aud"]),
        all: all.as_object().unwrap().clone(),
    }
}

pub(super) fn compiled(group: &Group) -> Policies {
    let origin = |policy: &Policy| wire::Origin {
        namespace: "app".to_owned(),
        name: policy.name.clone(),
        ..Default::default()
    };
    let made: Vec<_> = group
        .policies
        .iter()
        .map(|policy| (origin(policy), on_the_wire(policy)))
        .collect();
    let all: Vec<_> = made
        .iter()
        .map(|(origin, policy)| (origin, policy))
        .collect();
    let aliases = ["old.local".to_owned(), "older.local".to_owned()];
    Policies::compile(
        &all,
        &Context {
            trust_domain: "cluster.local",
            aliases: &aliases,
            service: Some(("app", "shop.app.svc.cluster.local")),
        },
    )
}

pub(super) fn on_the_wire(policy: &Policy) -> wire::Authorization {
    let action = wire::authorization::Action::from_str_name(&policy.action).unwrap();
    wire::Authorization {
        action: action.into(),
        dry_run: policy.dry_run,
        provider: policy.provider.clone(),
        rules: policy.rules.iter().map(rule).collect(),
        ..Default::default()
    }
}

fn rule(rule: &Value) -> wire::AuthorizationRule {
    wire::AuthorizationRule {
        from: list(&rule["from"])
            .iter()
            .map(|from| source(&from["source"]))
            .collect(),
        to: list(&rule["to"])
            .iter()
            .map(|to| operation(&to["operation"]))
            .collect(),
        when: list(&rule["when"])
            .iter()
            .map(|when| wire::Condition {
                key: when["key"].as_str().unwrap().to_owned(),
                values: strings(&when["values"]),
                not_values: strings(&when["notValues"]),
            })
            .collect(),
    }
}

fn source(source: &Value) -> wire::Source {
    wire::Source {
        principals: strings(&source["principals"]),
        not_principals: strings(&source["notPrincipals"]),
        request_principals: strings(&source["requestPrincipals"]),
        not_request_principals: strings(&source["notRequestPrincipals"]),
        namespaces: strings(&source["namespaces"]),
        not_namespaces: strings(&source["notNamespaces"]),
        ip_blocks: strings(&source["ipBlocks"]),
        not_ip_blocks: strings(&source["notIpBlocks"]),
        remote_ip_blocks: strings(&source["remoteIpBlocks"]),
        not_remote_ip_blocks: strings(&source["notRemoteIpBlocks"]),
        service_accounts: strings(&source["serviceAccounts"]),
        not_service_accounts: strings(&source["notServiceAccounts"]),
    }
}

fn operation(operation: &Value) -> wire::Operation {
    wire::Operation {
        hosts: strings(&operation["hosts"]),
        not_hosts: strings(&operation["notHosts"]),
        ports: strings(&operation["ports"]),
        not_ports: strings(&operation["notPorts"]),
        methods: strings(&operation["methods"]),
        not_methods: strings(&operation["notMethods"]),
        paths: strings(&operation["paths"]),
        not_paths: strings(&operation["notPaths"]),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::String(one) => vec![one.clone()],
        value => list(value)
            .iter()
            .map(|one| one.as_str().unwrap().to_owned())
            .collect(),
    }
}
