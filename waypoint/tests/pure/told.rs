//! What is told of requests, from resources to collectors: which lines, which spans, which labels.

#[path = "told/labels.rs"]
mod labels;
#[path = "told/said.rs"]
mod said;

use std::sync::Arc;
use std::time::Instant;

use api::otlp::any_value::Value;
use api::waypoint as wire;
use http::Response;
use waypoint::report::{Line, Own, Record, Told};
use wire::resource::Kind;

use self::said::{Said, attribute, lines, log, pass, sampled, service, spans, tracing};
use crate::report::scene::{Scene, body, data, get, logged, read, trailers};

#[test]
fn where_nothing_is_said_each_request_has_our_line_and_nothing_is_kept() {
    let said = Said::new();
    assert!(said.told().is_plain());
    let scene = Scene::new();
    let mut headers = http::HeaderMap::new();
    let seen = logged(|| headers = pass(&scene, &said.told(), &sampled()));
    assert_eq!(seen.len(), 1);
    assert_eq!(headers["traceparent"], sampled().headers()["traceparent"]);
}

#[test]
fn the_last_object_that_names_providers_says_which_there_are() {
    let shown = |said: &Said| (said.told().line.clone(), said.told().logs.len());
    let mut said = Said::new();
    let near = |telemetry: wire::Telemetry, rank| wire::Telemetry { rank, ..telemetry };
    said.telemetry("mesh", log(&[(&["lines"], false, "")]));
    assert_eq!(shown(&said), (Line::Never, 1), "instead of the usual one");
    said.telemetry("near", near(log(&[(&[], true, "")]), 2));
    assert_eq!(
        shown(&said),
        (Line::Never, 0),
        "that of the mesh is taken away"
    );
    said.telemetry("near", near(log(&[(&["envoy", "lines"], false, "")]), 2));
    assert_eq!(shown(&said), (Line::Each, 1));
    said.telemetry("near", near(log(&[(&["nobody-knows"], false, "")]), 2));
    assert_eq!(shown(&said), (Line::Never, 0));
    // What the mesh's settings say is before all others, and gone where another says more.
    let mut said = Said::new();
    said.telemetry(
        "usual",
        wire::Telemetry {
            defaults: true,
            ..log(&[(&["lines"], false, "")])
        },
    );
    assert_eq!(shown(&said), (Line::Never, 1));
    said.telemetry("near", near(log(&[(&["envoy"], false, "")]), 0));
    assert_eq!(shown(&said), (Line::Each, 0));
}

#[test]
fn a_filter_says_which_requests_have_a_line() {
    let mut said = Said::new();
    let scene = Scene::new();
    for (filter, expected) in [
        ("response.code >= 400", 1),
        ("response.code >= 500", 0),
        ("request.headers['x-user'] == 'anna'", 1),
        ("response.headers.server == 'other'", 0),
        (
            "request.url_path == '/cart' && filter_state.downstream_peer.namespace == 'front'",
            1,
        ),
        ("response.code_details == 'x'", 0),
        ("has(request.referer)", 0),
    ] {
        said.telemetry("near", log(&[(&["envoy"], false, filter)]));
        let seen = logged(|| drop(pass(&scene, &said.told(), &sampled())));
        assert_eq!(seen.len(), expected, "{filter}");
    }
    // One that cannot be read is refused by name, and the last good one stays.
    let bad = log(&[(&["envoy"], false, "response.cod")]);
    assert_eq!(said.set("telemetry/shop/near", Kind::Telemetry(bad)), 1);
}

#[test]
fn filters_may_ask_what_address_was_meant_and_how_an_answer_ended() {
    let mut said = Said::new();
    let scene = Scene::new();
    let pass = |told: &Arc<Told>| {
        let mut report = scene.sent(&get("/"));
        report.meant(([10, 96, 0, 1], 80).into());
        report.told(told);
        report.heard(&mut http::HeaderMap::new());
        let frames = vec![data(b"all"), trailers("x-sum", "7")];
        read(report.answer(Response::new(body(frames))));
    };
    for (filter, expected) in [
        (
            "destination.address == '10.96.0.1' && destination.port == 80",
            1,
        ),
        ("destination.address == '10.0.1.7'", 0),
        ("response.trailers['x-sum'] == '7'", 1),
        ("response.trailers['x-sum'] == '8'", 0),
        ("has(response.trailers['x-other'])", 0),
        ("has(connection.requested_server_name)", 0),
    ] {
        said.telemetry("near", log(&[(&["envoy"], false, filter)]));
        let seen = logged(|| pass(&said.told()));
        assert_eq!(seen.len(), expected, "{filter}");
    }
}

#[test]
fn who_asks_by_name_for_a_service_without_addresses_has_meant_none() {
    let mut said = Said::new();
    let scene = Scene::new();
    for (filter, expected) in [
        ("has(destination.address)", 0),
        ("destination.port == 80", 1),
    ] {
        said.telemetry("near", log(&[(&["envoy"], false, filter)]));
        let seen = logged(|| {
            let mut report = scene.sent(&get("/"));
            report.meant(([0, 0, 0, 0], 80).into());
            report.told(&said.told());
            read(report.answer(Response::new(body(vec![data(b"all")]))));
        });
        assert_eq!(seen.len(), expected, "{filter}");
    }
}

#[test]
fn filters_may_ask_what_name_a_connection_of_tls_was_for() {
    let mut said = Said::new();
    let scene = Scene::new();
    for (filter, expected) in [
        ("connection.requested_server_name == 'web.example'", 1),
        ("connection.requested_server_name == 'other.example'", 0),
        ("destination.address == '10.96.0.1'", 1),
    ] {
        said.telemetry("near", log(&[(&["envoy"], false, filter)]));
        let seen = logged(|| {
            let mut report = scene.reports.connection(&scene.caller(), Instant::now());
            report.service(&scene.service, 443);
            report.meant(([10, 96, 0, 1], 443).into());
            report.told(&said.told());
            report.named(Some("web.example"));
            report.opened();
        });
        assert_eq!(seen.len(), expected, "{filter}");
    }
}

#[test]
fn a_collector_of_lines_gets_what_its_format_says() {
    let mut said = Said::new();
    said.telemetry("near", log(&[(&["lines"], false, "")]));
    let mut opened = said.open("lines");
    pass(&Scene::new(), &said.told(), &sampled());
    let found = lines(&mut opened).remove(0);
    let body = found.body.and_then(|it| it.value);
    assert_eq!(body, Some(Value::StringValue("GET anna".to_owned())));
    assert_eq!(attribute(&found.attributes, "code").as_deref(), Some("404"));
    assert_eq!(
        attribute(&found.attributes, "server").as_deref(),
        Some("app")
    );
    assert_eq!(attribute(&found.attributes, "none"), None);
    assert_eq!(
        found.trace_id,
        0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes()
    );
    let request = opened
        .to
        .request(&[Record::Line(Box::default())], &Own::default());
    let request = request.unwrap();
    assert!(request.uri().path().ends_with("LogsService/Export"));
}

#[test]
fn a_span_has_the_tags_that_are_asked_for_and_the_client_s_trace() {
    let mut said = Said::new();
    let tag = |name: &str, value, otherwise: &str| wire::SpanTag {
        name: name.to_owned(),
        value: Some(value),
        otherwise: otherwise.to_owned(),
    };
    use wire::span_tag::Value as Of;
    said.telemetry(
        "near",
        tracing(wire::Tracing {
            sampling: Some(0.0),
            tags: Some(wire::SpanTags {
                tags: vec![
                    tag("literal", Of::Literal("a".to_owned()), ""),
                    tag("who", Of::Header("x-user".to_owned()), "nobody"),
                    tag("other", Of::Header("x-other".to_owned()), "nobody"),
                    tag("absent", Of::Header("x-other".to_owned()), ""),
                    tag(
                        "home",
                        Of::Environment("NO_SUCH_VARIABLE".to_owned()),
                        "none",
                    ),
                    tag(
                        "format",
                        Of::Format(
                            "%RESPONSE_CODE% %RESP(SERVER)% %CEL(request.method)%".to_owned(),
                        ),
                        "",
                    ),
                ],
            }),
            ..Default::default()
        }),
    );
    let mut opened = said.open("otel");
    let scene = Scene::new();
    let headers = pass(&scene, &said.told(), &sampled());
    let span = spans(&mut opened).remove(0);
    let told = headers["traceparent"].to_str().unwrap();
    let own: String = span.span_id.iter().map(|it| format!("{it:02x}")).collect();
    assert_eq!(
        told,
        format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{own}-01")
    );
    assert_eq!(span.parent_span_id, 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes());
    for (name, expected) in [
        ("literal", Some("a")),
        ("who", Some("anna")),
        ("other", Some("nobody")),
        ("absent", None),
        ("home", Some("none")),
        ("format", Some("404 app GET")),
        ("http.status_code", Some("404")),
        ("http.url", Some("http://web/cart?item=7")),
        ("istio.source_workload", Some("front-deployment")),
        ("istio.canonical_service", Some("web")),
        ("response_size", Some("7")),
    ] {
        assert_eq!(
            attribute(&span.attributes, name).as_deref(),
            expected,
            "{name}"
        );
    }
    // No other request has one.
    let unsampled = pass(&scene, &said.told(), &get("/"));
    assert!(unsampled["traceparent"].to_str().unwrap().ends_with("-00"));
    assert!(spans(&mut opened).is_empty());
}

#[test]
fn the_nearest_word_on_traces_counts_field_by_field() {
    let mut said = Said::new();
    said.telemetry(
        "mesh",
        tracing(wire::Tracing {
            sampling: Some(50.0),
            ..Default::default()
        }),
    );
    let nearer = |tracing: wire::Tracing| wire::Telemetry {
        rank: 2,
        tracing: Some(tracing),
        ..Default::default()
    };
    said.telemetry(
        "near",
        nearer(wire::Tracing {
            istio_tags: Some(false),
            ..Default::default()
        }),
    );
    let told = said.told();
    let found = told.tracing.as_ref().unwrap();
    assert_eq!((found.sampling, found.istio_tags), (50.0, false));
    said.telemetry(
        "near",
        nearer(wire::Tracing {
            disabled: Some(true),
            ..Default::default()
        }),
    );
    assert!(said.told().tracing.is_none());
    said.telemetry(
        "near",
        nearer(wire::Tracing {
            providers: vec!["provider/x".to_owned()],
            ..Default::default()
        }),
    );
    assert!(said.told().tracing.is_none(), "nobody can be told");
}

#[test]
fn what_does_not_fit_is_dropped_and_counted() {
    let mut said = Said::new();
    said.telemetry("near", tracing(wire::Tracing::default()));
    let mut opened = said.open("otel");
    let (scene, told) = (Scene::new(), said.told());
    logged(|| {
        for _ in 0..2_100 {
            pass(&scene, &told, &sampled());
        }
    });
    assert_eq!(said.counts("otel"), [0, 52, 0]);
    assert_eq!(spans(&mut opened).len(), 2_048);
    // Another edit of the object is no other queue; a provider that is another is.
    said.telemetry(
        "near",
        tracing(wire::Tracing {
            sampling: Some(7.0),
            ..Default::default()
        }),
    );
    pass(&scene, &said.told(), &sampled());
    assert_eq!(spans(&mut opened).len(), 1);
    let port = wire::ServiceRef {
        port: 4318,
        ..service()
    };
    let kind = wire::provider::Kind::TraceCollector(wire::TraceCollector {
        service: Some(port),
        protocol: wire::trace_collector::Protocol::Zipkin.into(),
        short_ids: true,
        ..Default::default()
    });
    said.provider("otel", kind);
    let mut opened = said.open("otel");
    let headers = pass(&scene, &said.told(), &get("/"));
    assert!(headers.contains_key("x-b3-traceid") || headers.contains_key("x-b3-sampled"));
    pass(&scene, &said.told(), &sampled());
    let all: Vec<Record> = std::iter::from_fn(|| opened.records.try_recv().ok()).collect();
    let own = Own {
        service: "way.shop".to_owned(),
        ..Own::default()
    };
    let request = opened.to.request(&all, &own).unwrap();
    assert_eq!(request.uri().path(), "/api/v2/spans");
    let json: serde_json::Value = serde_json::from_slice(request.body()).unwrap();
    let span = json.as_array().unwrap().last().unwrap();
    assert_eq!(span["traceId"], "a3ce929d0e0e4736");
    assert_eq!(span["localEndpoint"]["serviceName"], "way.shop");
    assert_eq!(span["tags"]["http.status_code"], "404");
}

#[test]
fn of_a_collector_that_changes_faster_than_anybody_listens_only_the_last_waits() {
    let mut said = Said::new();
    said.telemetry("near", tracing(wire::Tracing::default()));
    let (scene, first) = (Scene::new(), said.told());
    pass(&scene, &first, &sampled());
    for port in 4318..4400 {
        let port = wire::ServiceRef { port, ..service() };
        let kind = wire::provider::Kind::TraceCollector(wire::TraceCollector {
            service: Some(port),
            ..Default::default()
        });
        said.provider("otel", kind);
    }
    assert_eq!(said.counts("otel"), [0, 1, 0], "what the first one held");
    // Who still has the old queue loses nothing silently.
    pass(&scene, &first, &sampled());
    assert_eq!(said.counts("otel"), [0, 2, 0]);
    pass(&scene, &said.told(), &sampled());
    let mut opened = said.open("otel");
    assert_eq!(opened.to.service.port, 4399);
    assert_eq!(spans(&mut opened).len(), 1);
    assert!(said.nothing_opened("otel"));
}
