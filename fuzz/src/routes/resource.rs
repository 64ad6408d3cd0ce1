//! 1. the bytes are a resource
//! 2. what is understood of it is compiled; what is not is closed
//! 3. requests under it find a rule or none, and are changed or answered

use std::sync::Arc;

use api::waypoint::{Origin, Resource, resource::Kind};
use http::{HeaderMap, Method, Request, Response};
use prost::Message;
use waypoint::asked::{self, Asked};
use waypoint::client::Client;
use waypoint::filter::About;
use waypoint::retry::Outcome;
use waypoint::route::{Rule, Table, TcpRule, TcpTable};

/// See the file's head.
pub fn resource(data: &[u8]) {
    let Ok(resource) = Resource::decode(data) else {
        return;
    };
    let origin = resource.origin.unwrap_or_default();
    match resource.kind {
        Some(Kind::Route(route)) => {
            let whole = Rule::compile(&origin, &route);
            let rule = whole.unwrap_or_else(|why| Rule::closed(&origin, &route, &why));
            asks(Arc::new(rule));
        }
        Some(Kind::TcpRoute(route)) => connects(&origin, &route),
        _ => {}
    }
}

fn connects(origin: &Origin, route: &api::waypoint::TcpRoute) {
    let table = TcpTable::of([Arc::new(TcpRule::understand(origin, route))]);
    for sni in [None, Some("a.example.org"), Some("")] {
        for identity in [None, "spiffe://cluster.local/ns/shop/sa/a".parse().ok()] {
            let client = Client {
                identity,
                ..nobody()
            };
            if let Some(rule) = table.find(sni, &client) {
                let _picked = rule.backends.pick(u64::MAX);
            }
        }
    }
}

fn asks(rule: Arc<Rule>) {
    let table = Table::of([rule]);
    let client = nobody();
    let headers = HeaderMap::from_iter([(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("application/grpc"),
    )]);
    for (path, host) in [("/", "web.shop"), ("/a/b/c", "a.example.org"), ("*", "x")] {
        let asked = Asked {
            method: &Method::GET,
            scheme: "http",
            host,
            authority: host,
            path,
            query: Some("a=b&c"),
            headers: &headers,
            port: 80,
            destination: ([10, 96, 0, 1], 80).into(),
            sni: None,
            client: &client,
            remote: asked::remote(client.address.ip(), &headers, 0),
            claims: None,
        };
        if let Some(found) = table.find(&asked) {
            let about = About {
                scheme: "http",
                host,
                port: 80,
                matched: found.matched,
            };
            passes(found.rule, &about, path, &headers);
        }
    }
}

fn passes(rule: &Rule, about: &About<'_>, path: &str, headers: &HeaderMap) {
    let request = Request::builder().uri(path).body(());
    let mut head = request.expect("a path").into_parts().0;
    head.headers.clone_from(headers);
    let mut draw = 0x9e37_79b9_7f4a_7c15u64;
    let passed = rule.filters.request(&mut head, about, || {
        draw = draw.rotate_left(7).wrapping_mul(3);
        draw
    });
    let mut answer = Response::new(()).into_parts().0;
    rule.filters.response(&mut answer);
    if let Some(granted) = passed.granted {
        granted.response(&mut answer);
    }
    let _picked = rule.backends.pick(draw);
    if let Some(retry) = &rule.retry {
        let mut made = 1;
        while retry.again(made, Outcome::Reset, None, draw).is_some() {
            made += 1;
            assert!(made <= 1000, "somebody tries for ever");
        }
    }
    if let Some(hedge) = &rule.hedge {
        assert!(hedge.due(1000).is_none());
    }
}

fn nobody() -> Client {
    Client {
        identity: None,
        address: ([10, 0, 0, 1], 1).into(),
        peer: [10, 0, 0, 1].into(),
        workload: None,
        said: Default::default(),
    }
}
