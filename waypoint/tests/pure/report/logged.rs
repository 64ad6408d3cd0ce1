//! The access log.

use std::sync::Arc;

use http::{Request, Response, StatusCode, Version};
use http_body_util::Full;
use waypoint::report::{Flag, Line, Told};

use super::scene::{Scene, get, logged, read};

fn field<'l>(line: &'l str, name: &str) -> Option<&'l str> {
    let start = line.find(&format!(" {name}="))? + name.len() + 2;
    let rest = &line[start..];
    Some(rest.split(' ').next().unwrap().trim_matches('"'))
}

#[test]
fn a_line_has_what_a_person_needs() {
    let scene = Scene::new();
    let lines = logged(|| {
        let mut request = get("/cart?item=7");
        let headers = request.headers_mut();
        headers.insert("user-agent", "curl/8".parse().unwrap());
        headers.insert("x-request-id", "abc-1".parse().unwrap());
        let mut report = scene.sent(&request);
        report.routed("HTTPRoute/shop/web/0".into());
        read(report.answer(Response::new(Full::from("hello"))));
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    let line = &lines[0];
    assert!(line.starts_with("INFO access request complete"), "{line}");
    for (name, value) in [
        ("src.addr", "10.0.0.5:40000"),
        ("src.workload", "front-deployment"),
        ("src.namespace", "front"),
        ("src.identity", "spiffe://cluster.local/ns/front/sa/app"),
        ("dst.addr", "10.0.1.7:8080"),
        ("dst.service", "web.shop.svc.cluster.local"),
        ("dst.port", "80"),
        ("dst.workload", "web"),
        ("dst.namespace", "shop"),
        ("dst.identity", "spiffe://cluster.local/ns/shop/sa/web"),
        ("method", "GET"),
        ("host", "web"),
        ("path", "/cart?item=7"),
        ("protocol", "HTTP/1.1"),
        ("code", "200"),
        ("flags", "-"),
        ("route", "HTTPRoute/shop/web/0"),
        ("bytes_sent", "5"),
        ("bytes_recv", "0"),
        ("user_agent", "curl/8"),
        ("request_id", "abc-1"),
    ] {
        assert_eq!(field(line, name), Some(value), "{name} in {line}");
    }
    for name in ["tries", "detail", "policy", "trace_id", "grpc_status"] {
        assert_eq!(
            field(line, name),
            None,
            "{name} would only say that there is nothing to say"
        );
    }
    assert!(field(line, "duration").unwrap().ends_with("ms"));
}

#[test]
fn what_failed_is_a_warning_that_says_why() {
    let scene = Scene::new();
    let lines = logged(|| {
        let mut report = scene.sent(&get("/"));
        report.tried(&scene.endpoint, ([10, 0, 1, 8], 8080).into(), None);
        report.flag(Flag::UpstreamConnectFailure);
        report.detail("connection-refused");
        report.detail("a later reason");
        let mut answer = Response::new(Full::from("x"));
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        read(report.answer(answer));
    });
    let line = &lines[0];
    assert!(line.starts_with("WARN access"), "{line}");
    let found =
        ["flags", "tries", "detail", "code", "dst.addr"].map(|name| field(line, name).unwrap());
    assert_eq!(
        found,
        ["UF", "2", "connection-refused", "503", "10.0.1.8:8080"]
    );
}

#[test]
fn what_a_policy_refused_is_a_warning_without_a_flag() {
    let scene = Scene::new();
    let lines = logged(|| {
        let mut report = scene.begin(&get("/"));
        report.denied("shop/no-admin rule 0".into());
        let mut answer = Response::new(Full::from("RBAC: access denied"));
        *answer.status_mut() = StatusCode::FORBIDDEN;
        read(report.answer(answer));
    });
    assert!(lines[0].starts_with("WARN access"), "{lines:?}");
    assert_eq!(field(&lines[0], "flags"), Some("-"));
    assert!(
        lines[0].contains("policy=\"shop/no-admin rule 0\""),
        "{lines:?}"
    );
}

#[test]
fn a_quiet_request_is_counted_and_not_logged() {
    let scene = Scene::new();
    let lines = logged(|| {
        let mut report = scene.sent(&get("/"));
        report.told(&Arc::new(Told {
            line: Line::Never,
            ..Told::default()
        }));
        read(report.answer(Response::new(Full::from("x"))));
    });
    assert!(lines.is_empty());
    assert_eq!(scene.total("istio_requests_total"), 1.0);
}

#[test]
fn what_a_client_sends_cannot_make_a_line_endless() {
    let scene = Scene::new();
    let lines = logged(|| {
        let request = Request::builder()
            .version(Version::HTTP_2)
            .uri(format!("http://web/{}", "a".repeat(60_000)))
            .header("user-agent", "b".repeat(30_000));
        drop(scene.begin(&request.body(()).unwrap()));
    });
    assert!(lines[0].len() < 4_000, "{}", lines[0].len());
    assert_eq!(field(&lines[0], "protocol"), Some("HTTP/2"));
    assert_eq!(field(&lines[0], "host"), Some("web"));
}
