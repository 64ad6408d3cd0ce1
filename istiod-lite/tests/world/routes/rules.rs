//! One rule and what a waypoint is told of it.

use serde_json::{Value, json};

use super::{mesh, route, said, service, set, told};
use api::k8s::objects::Kind;

/// What is told of a rule beside its parents.
fn rule(kind: &str, rule: &Value) -> Value {
    let mut world = mesh();
    let spec = json!({"parentRefs": [service("web")], "hostnames": ["ignored.example.com"], "rules": [rule]});
    set(&mut world, &route(kind, "a", &spec));
    let key = format!("a/wp/{}/a/r/0", kind.to_lowercase());
    let mut told = told(&world).remove(&key).unwrap_or_else(|| {
        let said = said(&world, kind_of(kind), "a");
        panic!("{rule}: {said:?}")
    });
    let mut route = told["route"].take();
    route.as_object_mut().unwrap().remove("parents");
    route
}

fn kind_of(kind: &str) -> Kind {
    kind.parse().unwrap()
}

fn same(kind: &str, cases: &[(Value, Value)]) {
    for (given, expected) in cases {
        assert_eq!(rule(kind, given), *expected, "{given}");
    }
}

#[test]
fn matches_of_http() {
    let matching = |given: Value, expected: Value| {
        (json!({"matches": [given]}), json!({"matches": [expected]}))
    };
    same(
        "HTTPRoute",
        &[
            (json!({}), json!({})),
            matching(json!({}), json!({})),
            matching(
                json!({"path": {"value": "/a"}}),
                json!({"path": {"prefix": "/a"}}),
            ),
            matching(
                json!({"path": {"type": "PathPrefix"}}),
                json!({"path": {"prefix": "/"}}),
            ),
            matching(
                json!({"path": {"type": "Exact", "value": "/a"}}),
                json!({"path": {"exact": "/a"}}),
            ),
            matching(
                json!({"path": {"type": "RegularExpression", "value": "/a.*"}}),
                json!({"path": {"regex": "/a.*"}}),
            ),
            matching(
                json!({"method": "GET"}),
                json!({"method": {"exact": "GET"}}),
            ),
            // Of a name the first counts, whatever its case.
            matching(
                json!({"headers": [{"name": "Version", "value": "two"}, {"name": "version", "value": "one"}, {"type": "RegularExpression", "name": "x", "value": "a|b"}]}),
                json!({"headers": [{"name": "version", "value": {"exact": "two"}}, {"name": "x", "value": {"regex": "a|b"}}]}),
            ),
            // Names of parameters have a case.
            matching(
                json!({"queryParams": [{"name": "A", "value": "1"}, {"name": "a", "value": "2"}, {"name": "a", "value": "3"}]}),
                json!({"query": [{"name": "A", "value": {"exact": "1"}}, {"name": "a", "value": {"exact": "2"}}]}),
            ),
        ],
    );
}

#[test]
fn matches_of_grpc() {
    let calling = |given: Value, expected: Value| {
        (
            json!({"matches": [{"method": given}]}),
            json!({"grpc": true, "matches": [expected]}),
        )
    };
    same(
        "GRPCRoute",
        &[
            (json!({}), json!({"grpc": true})),
            calling(json!({}), json!({})),
            calling(
                json!({"service": "a.B", "method": "C"}),
                json!({"path": {"exact": "/a.B/C"}}),
            ),
            calling(
                json!({"service": "a.B"}),
                json!({"path": {"prefix": "/a.B"}}),
            ),
            calling(
                json!({"method": "C"}),
                json!({"path": {"regex": "/[^/]+/C"}}),
            ),
            calling(
                json!({"type": "RegularExpression", "service": "a\\..*|b"}),
                json!({"path": {"regex": "/(?:a\\..*|b)/[^/]+"}}),
            ),
            (
                json!({"matches": [{"headers": [{"name": "X", "value": "y"}]}], "backendRefs": [{"name": "api", "port": 90}]}),
                json!({
                    "grpc": true,
                    "matches": [{"headers": [{"name": "x", "value": {"exact": "y"}}]}],
                    "backends": [{"service": {"namespace": "a", "hostname": "api.a.svc.cluster.local", "port": 90}, "weight": 1}],
                }),
            ),
        ],
    );
}

#[test]
fn filters() {
    let doing = |given: Value, expected: Value| {
        (json!({"filters": [given]}), json!({"filters": [expected]}))
    };
    same(
        "HTTPRoute",
        &[
            doing(
                json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "X-A", "value": "1"}], "add": [{"name": "b", "value": "2"}], "remove": ["C"]}}),
                json!({"requestHeaders": {"set": [{"name": "x-a", "value": "1"}], "add": [{"name": "b", "value": "2"}], "remove": ["c"]}}),
            ),
            doing(
                json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["server"]}}),
                json!({"responseHeaders": {"remove": ["server"]}}),
            ),
            doing(
                json!({"type": "RequestRedirect", "requestRedirect": {"hostname": "example.org", "statusCode": 301}}),
                json!({"redirect": {"hostname": "example.org", "status": 301}}),
            ),
            doing(
                json!({"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "port": 8443, "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}}),
                json!({"redirect": {"scheme": "https", "port": 8443, "status": 302, "path": {"prefix": "/new"}}}),
            ),
            doing(
                json!({"type": "URLRewrite", "urlRewrite": {"hostname": "one.example.org", "path": {"type": "ReplaceFullPath", "replaceFullPath": "/all"}}}),
                json!({"rewrite": {"hostname": "one.example.org", "path": {"full": "/all"}}}),
            ),
            doing(
                json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "api", "port": 80}, "percent": 20}}),
                json!({"mirror": {"backend": {"service": {"namespace": "a", "hostname": "api.a.svc.cluster.local", "port": 80}, "weight": 1}, "fraction": {"numerator": 20, "denominator": 100}}}),
            ),
            doing(
                json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "api", "port": 80}, "fraction": {"numerator": 1, "denominator": 1000}}}),
                json!({"mirror": {"backend": {"service": {"namespace": "a", "hostname": "api.a.svc.cluster.local", "port": 80}, "weight": 1}, "fraction": {"numerator": 1, "denominator": 1000}}}),
            ),
            // Nobody waits for a mirror's answer.
            (
                json!({"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "none", "port": 80}}}]}),
                json!({}),
            ),
            doing(
                json!({"type": "CORS", "cors": {"allowOrigins": ["https://a.com", "http://*.b.com:8080", "https://*"], "allowCredentials": true, "allowMethods": ["GET"], "allowHeaders": ["*"], "exposeHeaders": ["x"], "maxAge": 60}}),
                json!({"cors": {
                    "origins": [
                        {"exact": "https://a.com", "ignoreCase": true},
                        {"regex": "http://[^/]+\\.b\\.com:8080", "ignoreCase": true},
                        {"regex": "https://[^/]+", "ignoreCase": true},
                    ],
                    "credentials": true, "methods": ["GET"], "headers": ["*"], "expose": ["x"], "maxAgeSeconds": "60",
                }}),
            ),
            doing(
                json!({"type": "CORS", "cors": {"allowOrigins": ["*"]}}),
                json!({"cors": {"anyOrigin": true, "maxAgeSeconds": "5"}}),
            ),
            doing(
                json!({"type": "ExtensionRef", "extensionRef": {"group": "x.y", "kind": "Z", "name": "z"}}),
                json!({"unknown": "nothing here knows what Z z does"}),
            ),
            doing(
                json!({"type": "Compress"}),
                json!({"unknown": "filter \"Compress\" is not supported in a HTTPRoute"}),
            ),
        ],
    );
    same(
        "GRPCRoute",
        &[(
            json!({"filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "x"}}]}),
            json!({"grpc": true, "filters": [{"unknown": "filter \"URLRewrite\" is not supported in a GRPCRoute"}]}),
        )],
    );
}

#[test]
fn backends() {
    let to = |given: Value, expected: Value| {
        (
            json!({"backendRefs": [given]}),
            json!({"backends": [expected]}),
        )
    };
    let at = |namespace: &str, hostname: &str, port: u16| json!({"namespace": namespace, "hostname": hostname, "port": port});
    same(
        "HTTPRoute",
        &[
            to(
                json!({"name": "web", "port": 80}),
                json!({"service": at("a", "web.a.svc.cluster.local", 80), "weight": 1}),
            ),
            to(
                json!({"name": "web", "port": 80, "weight": 0}),
                json!({"service": at("a", "web.a.svc.cluster.local", 80)}),
            ),
            to(
                json!({"group": "networking.istio.io", "kind": "ServiceEntry", "name": "out", "port": 443, "weight": 7}),
                json!({"service": at("a", "out.example.com", 443), "weight": 7}),
            ),
            to(
                json!({"group": "networking.istio.io", "kind": "Hostname", "name": "api.a.svc.cluster.local", "port": 80}),
                json!({"service": at("a", "api.a.svc.cluster.local", 80), "weight": 1}),
            ),
            to(
                json!({"name": "web", "port": 80, "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["a"]}}]}),
                json!({"service": at("a", "web.a.svc.cluster.local", 80), "weight": 1, "filters": [{"requestHeaders": {"remove": ["a"]}}]}),
            ),
            to(
                json!({"name": "none", "port": 80, "weight": 3}),
                json!({"invalid": "backend(none.a.svc.cluster.local) not found", "weight": 3}),
            ),
            to(
                json!({"name": "web", "port": 81}),
                json!({"invalid": "Service a/web has no port 81", "weight": 1}),
            ),
            to(
                json!({"name": "web", "port": 53}),
                json!({"invalid": "Service a/web has no port 53", "weight": 1}),
            ),
            to(
                json!({"name": "web"}),
                json!({"invalid": "backend Service a/web needs a port", "weight": 1}),
            ),
            to(
                json!({"name": "none", "namespace": "c", "port": 80}),
                json!({"invalid": "Service c/none may not be referred to from namespace a: there is no ReferenceGrant for it", "weight": 1}),
            ),
            to(
                json!({"kind": "Bucket", "group": "x.y", "name": "b"}),
                json!({"invalid": "Bucket b of group \"x.y\" is no backend: it may be a Service, ServiceEntry or Hostname", "weight": 1}),
            ),
        ],
    );
}

#[test]
fn time_and_what_is_tried_again() {
    same(
        "HTTPRoute",
        &[
            (
                json!({"timeouts": {"request": "1s", "backendRequest": "250ms"}}),
                json!({"timeouts": {"request": "1000", "backend": "250"}}),
            ),
            (
                json!({"timeouts": {"request": "0s"}}),
                json!({"timeouts": {"noRequestLimit": true}}),
            ),
            (
                json!({"timeouts": {"request": "0s", "backendRequest": "1m"}}),
                json!({"timeouts": {"noRequestLimit": true, "backend": "60000"}}),
            ),
            (
                json!({"retry": {"codes": [500, 503], "attempts": 3, "backoff": "100ms"}}),
                json!({"retry": {"codes": [500, 503], "attempts": 3, "backoff": "100", "connectFailure": true, "reset": true, "refusedStream": true}}),
            ),
            (
                json!({"retry": {}}),
                json!({"retry": {"attempts": 2, "connectFailure": true, "reset": true, "refusedStream": true}}),
            ),
            (
                json!({"retry": {"attempts": 0}}),
                json!({"retry": {"connectFailure": true, "reset": true, "refusedStream": true}}),
            ),
            (
                json!({"sessionPersistence": {"sessionName": "s"}}),
                json!({"session": {"cookie": "s"}}),
            ),
            (
                json!({"sessionPersistence": {"type": "Header", "sessionName": "X-S", "idleTimeout": "1m"}}),
                json!({"session": {"header": "x-s", "idleTimeout": "60000"}}),
            ),
            (
                json!({"sessionPersistence": {"absoluteTimeout": "1h", "cookieConfig": {"lifetimeType": "Permanent"}}}),
                json!({"session": {"cookie": "ambit-session", "absoluteTimeout": "3600000", "permanent": true}}),
            ),
        ],
    );
}

#[test]
fn who_is_asked_stands_beside_the_route() {
    let mut world = mesh();
    let auth = |backend: &str| {
        json!({"type": "ExternalAuth", "externalAuth": {
            "protocol": "HTTP", "backendRef": {"name": backend, "port": 80},
            "http": {"path": "/check", "allowedHeaders": ["authorization"], "allowedResponseHeaders": ["x-user"]},
            "forwardBody": {"maxSize": 1024},
        }})
    };
    let spec = |backend: &str| json!({"parentRefs": [service("web")], "rules": [{"filters": [auth(backend)]}]});
    set(&mut world, &route("HTTPRoute", "a", &spec("api")));
    let found = told(&world);
    let filters = &found["a/wp/httproute/a/r/0"]["route"]["filters"];
    assert_eq!(*filters, json!([{"authorizer": "httproute/a/r/asked-0"}]));
    assert_eq!(
        found["a/wp/httproute/a/r/asked-0"]["provider"]["authorizer"],
        json!({
            "service": {"namespace": "a", "hostname": "api.a.svc.cluster.local", "port": 80},
            "http": true, "pathPrefix": "/check", "sendHeaders": ["authorization"], "toUpstream": ["x-user"], "bodyBytes": 1024, "bodyPartial": true,
        })
    );
    // Whose headers are named by nobody gives all that it has; over gRPC it says so itself.
    for (protocol, given) in [("HTTP", json!(["*"])), ("GRPC", json!(null))] {
        let mut plain = spec("api");
        plain["rules"][0]["filters"][0]["externalAuth"] =
            json!({"protocol": protocol, "backendRef": {"name": "api", "port": 80}});
        set(&mut world, &route("HTTPRoute", "a", &plain));
        let told = told(&world);
        let authorizer = &told["a/wp/httproute/a/r/asked-0"]["provider"]["authorizer"];
        assert_eq!(authorizer["toUpstream"], given, "{protocol}");
    }
    // Nobody to ask: nobody passes.
    set(&mut world, &route("HTTPRoute", "a", &spec("none")));
    let found = told(&world);
    assert!(!found.contains_key("a/wp/httproute/a/r/asked-0"));
    let filter = &found["a/wp/httproute/a/r/0"]["route"]["filters"][0];
    assert!(filter["unknown"].is_string(), "{filter}");
}

#[test]
fn streams() {
    let backends = json!([{"name": "api", "port": 90, "weight": 9}, {"name": "none", "port": 1}]);
    for (kind, hostnames, sni) in [
        ("TCPRoute", json!([]), Value::Null),
        (
            "TLSRoute",
            json!(["*.example.com"]),
            json!(["*.example.com"]),
        ),
    ] {
        for version in ["v1", "v1alpha2"] {
            let mut world = mesh();
            let spec = json!({"parentRefs": [{"group": "", "kind": "Service", "name": "web", "namespace": "a", "port": 90}], "hostnames": hostnames, "rules": [{"backendRefs": backends}]});
            let text = route(kind, "a", &spec).replace("k8s.io/v1", &format!("k8s.io/{version}"));
            set(&mut world, &text);
            let key = format!("a/wp/{}/a/r/0", kind.to_lowercase());
            let told = &told(&world)[&key]["tcpRoute"];
            assert_eq!(told["parents"][0]["service"]["port"], 90);
            assert_eq!(told["sni"], sni);
            assert_eq!(told["backends"][0]["weight"], 9);
            assert_eq!(
                told["backends"][1]["invalid"],
                "backend(none.a.svc.cluster.local) not found"
            );
        }
    }
}
