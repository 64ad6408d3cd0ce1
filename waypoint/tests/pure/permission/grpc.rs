//! Over gRPC.

use api::ext_authz::check_response::HttpResponse as Said;
use api::ext_authz::header_value_option::HeaderAppendAction as Append;
use api::ext_authz::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpStatus,
    OkHttpResponse, Status, address, attribute_context::HttpRequest,
};
use http::Version;
use prost::Message;

use super::*;

fn grpc() -> Authorizer {
    authorizer(|_| {}).unwrap()
}

/// What is asked, and the attributes of the request in it.
fn asked(case: &Case, authorizer: &Authorizer) -> (CheckRequest, HttpRequest) {
    let request = case.asks(authorizer).unwrap();
    assert_eq!(request.body()[0], 0);
    let length = (request.body().len() as u32 - 5).to_be_bytes();
    assert_eq!(request.body()[1..5], length);
    let check = CheckRequest::decode(&request.body()[5..]).unwrap();
    let attributes = check.attributes.clone().unwrap();
    let http = attributes.request.unwrap().http.unwrap();
    (check, http)
}

fn framed(response: &CheckResponse) -> Vec<u8> {
    let message = response.encode_to_vec();
    let mut framed = vec![0];
    framed.extend((message.len() as u32).to_be_bytes());
    framed.extend(message);
    framed
}

const KIND: (&str, &str) = ("content-type", "application/grpc");

fn heard(response: &CheckResponse) -> Result<Answered, String> {
    let trailers = headers(&[("grpc-status", "0")]);
    hears(&grpc(), 200, &[KIND], &framed(response), Some(&trailers))
}

fn says(code: i32, said: Option<Said>) -> CheckResponse {
    CheckResponse {
        status: Some(Status {
            code,
            ..Default::default()
        }),
        http_response: said,
    }
}

fn option(key: &str, value: &str, append: Option<bool>, action: Append) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }),
        append,
        append_action: action.into(),
    }
}

fn plainly(key: &str, value: &str) -> HeaderValueOption {
    option(key, value, None, Append::AppendIfExistsOrAdd)
}

fn allows(ok: OkHttpResponse) -> CheckResponse {
    says(0, Some(Said::OkResponse(ok)))
}

#[test]
fn the_question_says_who_asks_for_what() {
    let request = Request::post("/cart?all=1")
        .header("host", "web.shop:80")
        .header("x-request-id", "id-1")
        .header("content-length", "12")
        .header("accept", "a")
        .header("accept", "b")
        .header("cookie", "a=1")
        .header("cookie", "b=2");
    let mut case = Case::of(request).body(b"begin", false);
    case.token = Some(http::HeaderValue::from_static("Bearer t"));
    let sent = case.asks(&grpc()).unwrap();
    assert_eq!(
        sent.uri(),
        "http://judge.auth:9000/envoy.service.auth.v3.Authorization/Check"
    );
    assert_eq!(sent.version(), Version::HTTP_2);
    assert_eq!(
        shown(sent.headers()),
        [
            "content-type: application/grpc",
            "grpc-timeout: 600m",
            "te: trailers",
            "x-request-id: id-1",
        ]
    );
    let (check, http) = asked(&case, &grpc());
    let attributes = check.attributes.unwrap();
    let source = attributes.source.unwrap();
    assert_eq!(source.principal, "spiffe://cluster.local/ns/shop/sa/client");
    let Some(address::Address::SocketAddress(from)) = source.address.unwrap().address else {
        panic!("no address")
    };
    assert_eq!(from.address, "10.0.0.1");
    let own = attributes.destination.unwrap().principal;
    assert_eq!(own, "spiffe://cluster.local/ns/shop/sa/way");
    let time = attributes.request.unwrap().time.unwrap();
    assert_eq!((time.seconds, time.nanos), (1, 500_000_000));
    let mut fields: Vec<_> = http.headers.iter().collect();
    fields.sort();
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!("{name}: {value}"))
        .collect();
    assert_eq!(
        fields,
        [
            ":authority: web.shop:80",
            ":method: POST",
            ":path: /cart?all=1",
            ":scheme: http",
            "accept: a,b",
            "authorization: Bearer t",
            "content-length: 12",
            "cookie: a=1; b=2",
            "x-envoy-auth-partial-body: true",
            "x-request-id: id-1",
        ]
    );
    assert_eq!((http.id.as_str(), http.method.as_str()), ("id-1", "POST"));
    assert_eq!(
        (http.path.as_str(), http.host.as_str()),
        ("/cart?all=1", "web.shop:80")
    );
    assert_eq!((http.size, http.protocol.as_str()), (12, "HTTP/1.1"));
    assert_eq!((http.body.as_str(), http.raw_body.len()), ("begin", 0));
}

#[test]
fn a_body_that_is_no_text_is_shown_as_bytes_and_unnamed_headers_are_not_shown() {
    let case = Case::of(Request::get("/").header("x-a", "1").header("x-b", "2"));
    let (_, http) = asked(&case.body(b"\xff\x00", true), &grpc());
    assert_eq!(
        (http.body.as_str(), &http.raw_body[..]),
        ("", &b"\xff\x00"[..])
    );
    assert_eq!(http.size, -1);

    let some = authorizer(|it| it.send_headers = vec!["x-b".to_owned()]).unwrap();
    let mut case = Case::of(Request::get("/").header("x-a", "1").header("x-b", "2"));
    case.token = Some(http::HeaderValue::from_static("Bearer t"));
    let (_, http) = asked(&case, &some);
    let mut names: Vec<_> = http.headers.keys().collect();
    names.sort();
    assert_eq!(names, [":authority", ":method", ":path", ":scheme", "x-b"]);
}

#[test]
fn a_permission_changes_the_request_and_the_answer() {
    let answered = heard(&allows(OkHttpResponse {
        headers: vec![
            plainly("x-user", "anna"),
            option("x-set", "new", Some(false), Append::AppendIfExistsOrAdd),
            option("x-more", "2", Some(true), Append::OverwriteIfExists),
            option("x-absent", "2", None, Append::AddIfAbsent),
            option("x-new", "1", None, Append::AddIfAbsent),
            option("x-there", "2", None, Append::OverwriteIfExists),
            option("x-nowhere", "2", None, Append::OverwriteIfExists),
            plainly("content-length", "0"),
            plainly("host", "elsewhere"),
        ],
        headers_to_remove: vec!["x-secret".to_owned(), "host".to_owned(), ":path".to_owned()],
        response_headers_to_add: vec![plainly("set-cookie", "a=1"), plainly("set-cookie", "b=2")],
    }))
    .unwrap();
    let Answered::Allowed(allowed) = &answered else {
        panic!("{answered:?}")
    };
    let mut told = HeaderMap::new();
    allowed
        .answer
        .iter()
        .for_each(|change| change.apply(&mut told));
    assert_eq!(shown(&told), ["set-cookie: a=1", "set-cookie: b=2"]);
    let before = [
        ("host", "web"),
        ("content-length", "7"),
        ("x-user", "root"),
        ("x_user", "root"),
        ("x-set", "old"),
        ("x-more", "1"),
        ("x-absent", "1"),
        ("x-there", "1"),
        ("x-secret", "s"),
    ];
    assert_eq!(
        applied(answered, &before),
        [
            "content-length: 7",
            "host: web",
            "x-absent: 1",
            "x-more: 1",
            "x-more: 2",
            "x-new: 1",
            "x-set: new",
            "x-there: 2",
            "x-user: anna",
        ]
    );
}

#[test]
fn a_denial_is_told_in_its_own_words() {
    let denied = |status: Option<i32>| {
        Said::DeniedResponse(DeniedHttpResponse {
            status: status.map(|code| HttpStatus { code }),
            headers: vec![
                plainly("set-cookie", "a"),
                plainly("set-cookie", "b"),
                plainly("content-length", "9"),
            ],
            body: "no".to_owned(),
        })
    };
    for (code, status, told) in [
        (7, Some(418), 418),
        (16, Some(302), 302),
        (7, None, 403),
        (7, Some(0), 403),
        (7, Some(101), 403),
        (7, Some(-1), 403),
        // What it says of the request counts, and not the number beside it.
        (0, Some(401), 401),
    ] {
        let Ok(Answered::Denied(denial)) = heard(&says(code, Some(denied(status)))) else {
            panic!("{code} {status:?}")
        };
        assert_eq!(denial.status.as_u16(), told);
        assert_eq!(&denial.body[..], b"no");
        assert_eq!(shown(&denial.headers), ["set-cookie: a", "set-cookie: b"]);
    }
    for said in [None, Some(Said::OkResponse(OkHttpResponse::default()))] {
        let Ok(Answered::Denied(denial)) = heard(&says(7, said)) else {
            panic!("allowed")
        };
        assert_eq!(denial.status, StatusCode::FORBIDDEN);
    }
}

#[test]
fn nothing_else_is_a_permission() {
    let plain = Answered::Allowed(Allowed::default());
    assert_eq!(heard(&says(0, None)), Ok(plain.clone()));
    let no_code = CheckResponse {
        status: None,
        http_response: Some(Said::OkResponse(OkHttpResponse::default())),
    };
    assert_eq!(heard(&no_code), Ok(plain));

    let good = framed(&says(0, None));
    let ends = |code: &'static str| headers(&[("grpc-status", code), ("grpc-message", "busy")]);
    let two = [good.clone(), good.clone()].concat();
    let mut compressed = good.clone();
    compressed[0] = 1;
    let mut garbage = good.clone();
    *garbage.last_mut().unwrap() = 0xff;
    let html = ("content-type", "text/html");
    let ok = Some(ends("0"));
    for (what, status, kind, body, trailers) in [
        ("another status", 503, KIND, &good, ok.clone()),
        ("a redirect", 302, KIND, &good, ok.clone()),
        ("no gRPC", 200, html, &good, ok.clone()),
        ("an error", 200, KIND, &good, Some(ends("14"))),
        ("no end", 200, KIND, &good, None),
        (
            "trailers without a status",
            200,
            KIND,
            &good,
            Some(HeaderMap::new()),
        ),
        ("two messages", 200, KIND, &two, ok.clone()),
        ("half a message", 200, KIND, &good[..6].to_vec(), ok.clone()),
        ("no message", 200, KIND, &Vec::new(), ok.clone()),
        ("a compressed one", 200, KIND, &compressed, ok.clone()),
        ("one that is none", 200, KIND, &garbage, ok.clone()),
    ] {
        let answered = hears(&grpc(), status, &[kind], body, trailers.as_ref());
        assert!(answered.is_err(), "{what}: {answered:?}");
    }
    let only_head = [KIND, ("grpc-status", "7"), ("grpc-message", "busy")];
    let why = hears(&grpc(), 200, &only_head, b"", None).unwrap_err();
    assert!(why.contains("busy"), "{why}");

    let empty = heard(&CheckResponse::default());
    assert!(empty.is_err(), "{empty:?}");
    for header in [
        plainly(":path", "/admin"),
        plainly("a b", ""),
        plainly("x-a", "\n"),
    ] {
        let answered = heard(&allows(OkHttpResponse {
            headers: vec![header],
            ..Default::default()
        }));
        assert!(answered.is_err(), "{answered:?}");
    }
    let unheard_of = HeaderValueOption {
        append_action: 9,
        ..plainly("x-a", "1")
    };
    let answered = heard(&allows(OkHttpResponse {
        headers: vec![unheard_of],
        ..Default::default()
    }));
    assert!(answered.is_err(), "{answered:?}");
}
