//! 1. the bytes are what a policy says of paths, hosts, headers, principals and namespaces, then a request
//! 2. the same rules do not let it pass both as an ALLOW and as a DENY

use std::net::{IpAddr, SocketAddr};

use api::waypoint as wire;
use http::{HeaderMap, HeaderValue, Method};
use waypoint::asked::{self, Asked, Form};
use waypoint::authorize::{Context, Policies, Verdict};
use waypoint::client::{Baggage, Client};

/// See the file's head. Lines are parts, tabs divide values.
pub fn policy(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.split('\n');
    let mut part = || parts.next().unwrap_or_default();
    let (path, authority, lines) = (part(), part(), part());
    let rule = rule([part(), part(), part(), part(), part()]);
    let Ok(path) = asked::normalise(path, Form::Base) else {
        return;
    };
    let Ok(host) = asked::host(authority) else {
        return;
    };
    let mut headers = HeaderMap::new();
    for value in lines.split('\t') {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.append("x-a", value);
        }
    }
    let client = client();
    let asked = Asked {
        method: &Method::GET,
        scheme: "http",
        host: &host.name,
        authority,
        path: &path,
        query: None,
        headers: &headers,
        port: 80,
        destination: SocketAddr::from(([10, 96, 0, 1], 80)),
        sni: None,
        client: &client,
        remote: asked::remote(client.address.ip(), &headers, 0),
        claims: None,
    };
    let passes = |action| {
        let policies = policies(&rule, action);
        let _ = policies.explain(&asked);
        matches!(policies.judge(&asked), Verdict::Allow { .. })
    };
    let allow = wire::authorization::Action::Allow;
    let deny = wire::authorization::Action::Deny;
    assert!(!(passes(allow) && passes(deny)), "both let it pass");
}

fn rule([paths, hosts, values, principals, namespaces]: [&str; 5]) -> wire::AuthorizationRule {
    let list = |text: &str| -> Vec<String> {
        let parts = text.split('\t').filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect()
    };
    wire::AuthorizationRule {
        from: vec![wire::Source {
            principals: list(principals),
            namespaces: list(namespaces),
            ..Default::default()
        }],
        to: vec![wire::Operation {
            paths: list(paths),
            hosts: list(hosts),
            ..Default::default()
        }],
        when: vec![wire::Condition {
            key: "request.headers[x-a]".to_owned(),
            values: list(values),
            not_values: Vec::new(),
        }],
    }
}

fn policies(rule: &wire::AuthorizationRule, action: wire::authorization::Action) -> Policies {
    let policy = wire::Authorization {
        action: action.into(),
        rules: vec![rule.clone()],
        ..Default::default()
    };
    let context = Context {
        trust_domain: "cluster.local",
        ..Context::default()
    };
    Policies::compile(&[(&wire::Origin::default(), &policy)], &context)
}

fn client() -> Client {
    let address = IpAddr::from([10, 0, 0, 1]);
    Client {
        identity: "spiffe://cluster.local/ns/app/sa/client".parse().ok(),
        address: SocketAddr::new(address, 40_000),
        peer: address,
        workload: None,
        said: Baggage::default(),
    }
}
