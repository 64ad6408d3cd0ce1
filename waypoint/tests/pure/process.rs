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
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use waypoint::process::{
    Beside, Body, Heard, Metadata, Modes, Processor, Rules, Said, Way, attributes, both, headers,
    request_headers,
};
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

fn heard(message: ProcessingResponse) -> Result<Heard, String> {
    waypoint::process::heard(message, &Rules::default())
}

/// What is made of changes by a processor that may make these.
fn made(mutations: wire::processor::Mutations, all: &[(&str, &str)]) -> Result<HeaderMap, String> {
    let rules = compile(|it| it.mutations = Some(mutations))?.rules;
    let heard = waypoint::process::heard(says(set(all)), &rules)?;
    let Said::Headers(common) = heard.said else {
        panic!("{:?}", heard.said)
    };
    let mut headers = HeaderMap::new();
    common.mutation.apply(&mut headers);
    for (name, value) in [
        ("path", common.mutation.path),
        (
            "authority",
            common.mutation.authority.map(|it| it.to_string()),
        ),
        ("method", common.mutation.method.map(|it| it.to_string())),
    ] {
        if let Some(value) = value {
            headers.insert(name, value.parse().unwrap());
        }
    }
    Ok(headers)
}

#[test]
fn what_it_may_change_is_for_its_object_to_say() {
    use wire::processor::Mutations;
    let asks = [
        ("X-A", "1"),
        ("x-b", "1"),
        ("y", "1"),
        (":path", "/p"),
        (":authority", "other:80"),
        (":method", "PUT"),
        ("x-envoy-upstream", "1"),
        ("content-length", "1"),
        ("x-forwarded-client-cert", "me"),
    ];
    for (mutations, expected) in [
        (Mutations::default(), &["path", "x-a", "x-b", "y"][..]),
        (
            Mutations {
                routing: true,
                ..Mutations::default()
            },
            &["authority", "method", "path", "x-a", "x-b", "y"],
        ),
        (
            Mutations {
                allow: names(&["x-*"]),
                deny: names(&["X-B"]),
                ..Mutations::default()
            },
            &["x-a"],
        ),
        (
            Mutations {
                allow: names(&[":path", "host", ":authority", "content-length", "x-envoy-*"]),
                ..Mutations::default()
            },
            &["path"],
        ),
        (
            Mutations {
                deny: names(&["*"]),
                routing: true,
                ..Mutations::default()
            },
            &[],
        ),
    ] {
        let headers = made(mutations.clone(), &asks).unwrap();
        let mut found: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{mutations:?}");
        let strict = Mutations {
            strict: true,
            ..mutations
        };
        assert!(made(strict, &asks).is_err_and(|why| why.contains("which it may not")));
    }
    let routing = Mutations {
        routing: true,
        ..Mutations::default()
    };
    for (name, value) in [
        (":method", "HEAD"),
        (":method", "CONNECT"),
        (":method", "no method"),
        ("host", "a b"),
        (":authority", "user@host"),
        (":authority", ""),
    ] {
        let made = made(routing.clone(), &[(name, value)]);
        assert!(made.is_err(), "{name} {value}: {made:?}");
    }
}

struct About;

impl expression::Subject for About {
    fn attribute(&self, attribute: expression::Attribute) -> expression::Value<'_> {
        match attribute {
            expression::Attribute::Path => expression::Value::text("/a?b"),
            expression::Attribute::SourcePort => expression::Value::Int(7),
            expression::Attribute::Mtls => expression::Value::Bool(true),
            _ => expression::Value::Null,
        }
    }

    fn field(&self, _: expression::Fields, name: &str) -> Option<std::borrow::Cow<'_, str>> {
        (name == "x-user").then(|| "anna".into())
    }
}

#[test]
fn it_is_told_the_attributes_that_are_asked_for_with_its_first_message() {
    let wanted = [
        "request.path",
        "request.headers['x-user']",
        "request.headers['x-none']",
        "source.port",
        "connection.mtls",
        "response.code",
    ];
    let processor = compile(|it| it.attributes = wanted.map(str::to_owned).to_vec()).unwrap();
    let all = attributes(&processor.attributes, &About);
    let told = headers(
        Way::There,
        Default::default(),
        true,
        Beside {
            modes: Some(processor.modes),
            attributes: all,
            ..Beside::default()
        },
    );
    let message = ProcessingRequest::decode(told.unwrap().slice(5..)).unwrap();
    let fields = &message.attributes["envoy.filters.http.ext_proc"].fields;
    let of = |name: &str| fields.get(name).and_then(|it| it.kind.clone());
    let text = |text: &str| Some(Kind::StringValue(text.to_owned()));
    assert_eq!(of("request.path"), text("/a?b"));
    assert_eq!(of("request.headers['x-user']"), text("anna"));
    assert_eq!(of("source.port"), Some(Kind::NumberValue(7.0)));
    assert_eq!(of("connection.mtls"), Some(Kind::BoolValue(true)));
    assert_eq!(fields.len(), 4, "{fields:?}");
    assert!(compile(|it| it.attributes = vec!["source.adress".to_owned()]).is_err());
    assert!(attributes(&[], &About).is_empty());
}

fn structs(all: &[(&str, &[(&str, Kind)])]) -> Struct {
    let value = |kind: Kind| Value { kind: Some(kind) };
    let fields = |all: &[(&str, Kind)]| Struct {
        fields: all
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), value(kind.clone())))
            .collect(),
    };
    let of = |(name, all): &(&str, &[(&str, Kind)])| {
        ((*name).to_owned(), value(Kind::StructValue(fields(all))))
    };
    Struct {
        fields: all.iter().map(of).collect(),
    }
}

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn what_is_said_of_a_request_is_told_to_those_who_may_hear_it() {
    let mut metadata = Metadata::default();
    let nothing = metadata.value();
    assert!(matches!(nothing, expression::Value::Null), "{nothing:?}");
    let claims = serde_json::json!({"sub": "anna", "roles": ["a", "b"], "age": 7});
    let claims = waypoint::authenticate::Claims {
        issuer: String::new(),
        subject: "anna".to_owned(),
        audiences: Vec::new(),
        all: claims.as_object().unwrap().clone(),
    };
    metadata.verified(&std::sync::Arc::new(claims));
    let shared = metadata.shared();
    let token = "envoy.filters.http.jwt_authn";
    let text = |text: &str| Kind::StringValue(text.to_owned());
    let words = structs(&[
        ("a", &[("x", text("1")), ("y", Kind::NumberValue(2.0))]),
        ("b", &[("x", text("not his"))]),
        (token, &[("payload", text("forged"))]),
    ]);
    let writable = names(&["a", token]);
    shared.take(words, &writable).unwrap();
    shared
        .take(structs(&[("a", &[("x", text("2"))])]), &writable)
        .unwrap();

    // Who was told of it before sees it too; a newer word of one key counts, the others stay.
    let told = metadata.of(&names(&["a", "b", "c"]));
    assert_eq!(told.keys().collect::<Vec<_>>(), ["a"]);
    let expected = structs(&[("a", &[("x", text("2")), ("y", Kind::NumberValue(2.0))])]);
    let value = Kind::StructValue(told["a"].clone());
    assert_eq!(expected.fields["a"].kind, Some(value));
    for (asked, expected) in [
        ("metadata.filter_metadata['a'].x", "2"),
        ("metadata.filter_metadata.a.y + 1.0", "3"),
        (
            "metadata.filter_metadata['envoy.filters.http.jwt_authn'].payload.roles[1]",
            "b",
        ),
        ("has(metadata.filter_metadata.b)", "false"),
    ] {
        let read = expression::cel::Expression::read(asked).unwrap();
        let subject = Of(&metadata);
        assert_eq!(
            read.value(&subject).unwrap().to_string(),
            expected,
            "{asked}"
        );
    }
    let payload = &metadata.of(&names(&[token]))[token].fields["payload"];
    let Some(Kind::StructValue(payload)) = &payload.kind else {
        panic!("{payload:?}")
    };
    assert_eq!(payload.fields["sub"].kind, Some(text("anna")));
    assert_eq!(payload.fields["age"].kind, Some(Kind::NumberValue(7.0)));
}

/// A request of which only that is known.
struct Of<'a>(&'a Metadata);

impl expression::Subject for Of<'_> {
    fn attribute(&self, attribute: expression::Attribute) -> expression::Value<'_> {
        match attribute {
            expression::Attribute::Metadata => self.0.value(),
            _ => expression::Value::Null,
        }
    }

    fn field(&self, _: expression::Fields, _: &str) -> Option<std::borrow::Cow<'_, str>> {
        None
    }
}

#[test]
fn of_one_request_no_more_is_said_than_can_be_held() {
    let metadata = Metadata::default().shared();
    let long = |bytes: usize| Kind::StringValue("x".repeat(bytes));
    let writable = names(&["a", "b"]);
    let said = |name: &str, bytes: usize| {
        metadata.take(structs(&[(name, &[("x", long(bytes))])]), &writable)
    };
    // What is not heard is not held.
    assert!(said("c", 80_000).is_ok());
    for _ in 0..9 {
        // Again and again the same is not more.
        said("a", 40_000).unwrap();
    }
    assert!(said("b", 40_000).is_err());
    assert!(said("a", 80_000).is_err());
}

#[test]
fn authorizers_say_what_they_say_in_a_namespace_of_their_own() {
    let namespace = "envoy.filters.http.ext_authz";
    let words = |all: &[(&str, Kind)]| match structs(&[("a", all)]).fields.remove("a") {
        Some(Value {
            kind: Some(Kind::StructValue(words)),
        }) => words,
        other => panic!("{other:?}"),
    };
    let number = |it: f64| Kind::NumberValue(it);
    // Nobody who was asked has anything to say: nothing is held.
    assert!(
        Metadata::default()
            .authorized(words(&[("x", number(1.0))]))
            .is_ok()
    );
    let metadata = Metadata::default().shared();
    metadata.authorized(words(&[])).unwrap();
    assert!(metadata.of(&names(&[namespace])).is_empty());
    metadata
        .authorized(words(&[("x", number(1.0)), ("y", number(1.0))]))
        .unwrap();
    metadata.authorized(words(&[("x", number(2.0))])).unwrap();
    let told = metadata.of(&names(&[namespace]));
    let expected = words(&[("x", number(2.0)), ("y", number(1.0))]);
    assert_eq!(told[namespace], expected);
    let long = |bytes: usize| words(&[("z", Kind::StringValue("x".repeat(bytes)))]);
    assert!(metadata.authorized(long(80_000)).is_err());
    // It is the same room as everybody's.
    let all = names(&["b"]);
    let others = || structs(&[("b", &[("x", Kind::StringValue("x".repeat(40_000)))])]);
    metadata.take(others(), &all).unwrap();
    assert!(metadata.authorized(long(40_000)).is_err());
}

#[test]
fn with_each_message_goes_what_is_said_of_the_request_and_that_nobody_waits() {
    let words = structs(&[("a", &[("x", Kind::BoolValue(true))])]);
    let metadata = Metadata::default().shared();
    metadata.take(words, &names(&["a"])).unwrap();
    let beside = Beside {
        metadata: metadata.of(&names(&["a"])),
        observed: true,
        ..Beside::default()
    };
    let message = headers(Way::Back, Default::default(), true, beside).unwrap();
    let message = ProcessingRequest::decode(message.slice(5..)).unwrap();
    let context = message.metadata_context.unwrap();
    assert_eq!(
        context.filter_metadata["a"].fields["x"].kind,
        Some(Kind::BoolValue(true))
    );
    assert!(message.observability_mode && message.protocol_config.is_none());
    let plain = headers(Way::There, Default::default(), true, Beside::default()).unwrap();
    let plain = ProcessingRequest::decode(plain.slice(5..)).unwrap();
    assert!(plain.metadata_context.is_none() && !plain.observability_mode);
}

#[test]
fn both_ways_attributes_stand_under_one_name() {
    let processor = compile(|it| it.response_attributes = names(&["request.path", "source.port"]));
    let processor = processor.unwrap();
    let of = |wanted: &[_]| attributes(wanted, &About);
    let all = both(
        of(&processor.of_answers[..1]),
        of(&processor.of_answers[1..]),
    );
    assert_eq!(all["envoy.filters.http.ext_proc"].fields.len(), 2);
    assert!(both(of(&[]), of(&[])).is_empty());
}

#[test]
fn who_only_looks_on_is_shown_pieces_and_stops_nothing() {
    let observer = |body: BodyMode| {
        compile(|it| {
            it.observe = true;
            it.response_body = body.into();
        })
    };
    let one = observer(BodyMode::Streamed).unwrap();
    assert_eq!(one.watches, Some(Duration::from_secs(5)));
    assert!(one.fail_open);
    assert!(observer(BodyMode::None).is_ok());
    for body in [
        BodyMode::Buffered,
        BodyMode::BufferedPartial,
        BodyMode::FullDuplexStreamed,
    ] {
        assert!(observer(body).is_err(), "{body:?}");
    }
    assert_eq!(compile(|_| {}).unwrap().watches, None);
}

#[test]
fn what_cannot_be_done_as_asked_is_refused() {
    assert!(compile(|it| it.response_attributes = names(&["response.cod"])).is_err());
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
    let first = Beside {
        modes: Some(modes),
        ..Beside::default()
    };
    let message = headers(Way::There, shown, true, first).unwrap();
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
