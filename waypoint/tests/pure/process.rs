//! Of `waypoint::process`: what processors are told, and what their words mean.

use std::time::Duration;

use api::ext_proc::processing_mode::{BodySendMode, HeaderSendMode};
use api::ext_proc::processing_request::Request as Told;
use api::ext_proc::processing_response::Response as Says;
use api::ext_proc::{
    CommonResponse, HeaderMutation, HeaderValue, HeaderValueOption, HeadersResponse, HttpStatus,
    ImmediateResponse, ProcessingMode, ProcessingRequest, ProcessingResponse,
};
use api::waypoint as wire;
use http::{HeaderMap, Request, StatusCode};
use prost::Message;
use waypoint::process::{Body, Modes, Processor, Said, Way, headers, heard, request_headers};
use wire::processor::BodyMode;

fn processing(change: impl FnOnce(&mut wire::Processor)) -> wire::Processing {
    let mut processor = wire::Processor {
        service: Some(wire::ServiceRef {
            namespace: "shop".to_owned(),
            hostname: "clerk.shop".to_owned(),
            port: 9000,
        }),
        request_headers: true,
        response_headers: true,
        ..Default::default()
    };
    change(&mut processor);
    wire::Processing {
        processor: Some(processor),
        ..Default::default()
    }
}

fn compile(change: impl FnOnce(&mut wire::Processor)) -> Result<Processor, String> {
    Processor::compile(&wire::Origin::default(), &processing(change))
}

fn modes(change: impl FnOnce(&mut wire::Processor)) -> Modes {
    compile(change).unwrap().modes
}

fn set(all: &[(&str, &str)]) -> Option<HeaderMutation> {
    let option = |(key, value): &(&str, &str)| HeaderValueOption {
        header: Some(HeaderValue {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    Some(HeaderMutation {
        set_headers: all.iter().map(option).collect(),
        remove_headers: vec![
            "x-gone".to_owned(),
            "host".to_owned(),
            "x-envoy-a".to_owned(),
        ],
    })
}

fn says(mutation: Option<HeaderMutation>) -> ProcessingResponse {
    ProcessingResponse {
        response: Some(Says::RequestHeaders(HeadersResponse {
            response: Some(CommonResponse {
                header_mutation: mutation,
                ..Default::default()
            }),
        })),
        ..Default::default()
    }
}

#[test]
fn what_cannot_be_done_as_asked_is_refused() {
    assert!(compile(|_| {}).is_ok());
    assert!(compile(|it| it.service = None).is_err());
    assert!(compile(|it| it.request_body = 9).is_err());
    assert!(compile(|it| it.status_on_error = 99).is_err());
    assert!(compile(|it| it.body_bytes = (16 << 20) + 1).is_err());
    let invalid = wire::Processing {
        invalid: "why".to_owned(),
        ..processing(|_| {})
    };
    assert!(Processor::compile(&wire::Origin::default(), &invalid).is_err());
}

#[test]
fn the_first_message_says_what_will_be_shown_and_a_head_is_shown_as_it_is() {
    let request = Request::builder().uri("/a?b").header("host", "web");
    let head = request
        .header("x-raw", "v")
        .body(())
        .unwrap()
        .into_parts()
        .0;
    let modes = modes(|it| it.request_body = BodyMode::FullDuplexStreamed.into());
    let shown = request_headers(&head, "web");
    let message = headers(Way::There, shown, true, Some(modes)).unwrap();
    let message = ProcessingRequest::decode(message.slice(5..)).unwrap();
    let config = message.protocol_config.unwrap();
    assert_eq!(config.request_body_mode(), BodySendMode::FullDuplexStreamed);
    let Some(Told::RequestHeaders(told)) = message.request else {
        panic!("{:?}", message.request)
    };
    assert!(told.end_of_stream);
    let all = told.headers.unwrap().headers;
    let shown: Vec<_> = all
        .iter()
        .map(|it| format!("{} {}", it.key, String::from_utf8_lossy(&it.raw_value)))
        .collect();
    assert_eq!(
        shown,
        [
            ":method GET",
            ":path /a?b",
            ":authority web",
            ":scheme http",
            "x-raw v"
        ]
    );
}

#[test]
fn it_may_not_change_for_whom_and_how_a_message_is_carried() {
    let message = says(set(&[
        ("x-a", "1"),
        (":method", "PUT"),
        (":authority", "other"),
        ("host", "other"),
        ("content-length", "3"),
        ("transfer-encoding", "chunked"),
        ("x-envoy-upstream", "1"),
        ("x-forwarded-client-cert", "me"),
        (":path", "/b"),
        (":status", "404"),
    ]));
    let Said::Headers(common) = heard(message).unwrap().said else {
        panic!()
    };
    let mut all = HeaderMap::new();
    for name in ["x-gone", "host", "x-envoy-a", "x-a", "x_a"] {
        all.insert(name, "old".parse().unwrap());
    }
    common.mutation.apply(&mut all);
    let mut names: Vec<_> = all.keys().map(|it| it.as_str().to_owned()).collect();
    names.sort();
    assert_eq!(names, ["host", "x-a", "x-envoy-a"]);
    assert_eq!(all["x-a"], "1");
    assert_eq!(common.mutation.path.as_deref(), Some("/b"));
    assert_eq!(common.mutation.status, Some(StatusCode::NOT_FOUND));
}

#[test]
fn what_nobody_understands_is_an_error() {
    assert!(heard(ProcessingResponse::default()).is_err());
    assert!(heard(says(set(&[("bad name", "1")]))).is_err());
    assert!(heard(says(set(&[("x", "a\nb")]))).is_err());
    assert!(heard(says(set(&[(":status", "101")]))).is_err());
    let immediate = |code| ProcessingResponse {
        response: Some(Says::ImmediateResponse(ImmediateResponse {
            status: Some(HttpStatus { code }),
            ..Default::default()
        })),
        ..Default::default()
    };
    for (code, good) in [
        (0, true),
        (403, true),
        (100, false),
        (-1, false),
        (600, false),
    ] {
        assert_eq!(heard(immediate(code)).is_ok(), good, "{code}");
    }
    let longer = ProcessingResponse {
        override_message_timeout: Some(prost_types::Duration {
            seconds: 2,
            nanos: 0,
        }),
        ..Default::default()
    };
    assert_eq!(
        heard(longer).unwrap().said,
        Said::Longer(Duration::from_secs(2))
    );
}

#[test]
fn it_may_ask_for_other_parts_but_not_for_both_ways_at_once() {
    let asks = ProcessingMode {
        request_body_mode: BodySendMode::Buffered.into(),
        response_header_mode: HeaderSendMode::Skip.into(),
        request_trailer_mode: HeaderSendMode::Send.into(),
        ..Default::default()
    };
    let now = modes(|_| {}).overridden(&asks);
    assert_eq!(now.there.body, Body::Whole);
    assert!(now.there.headers && now.there.trailers && !now.back.headers);
    let duplex = modes(|it| it.response_body = BodyMode::FullDuplexStreamed.into());
    assert_eq!(duplex.overridden(&asks), duplex);
    assert!(duplex.back.trailers, "its pieces end there");
    let wants = ProcessingMode {
        request_body_mode: BodySendMode::FullDuplexStreamed.into(),
        ..asks
    };
    assert_eq!(modes(|_| {}).overridden(&wants), modes(|_| {}));
}
