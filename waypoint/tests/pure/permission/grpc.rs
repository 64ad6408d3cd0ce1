//! Over gRPC.

use api::ext_authz::check_response::HttpResponse as Said;
use api::ext_authz::header_value_option::HeaderAppendAction as Append;
use api::ext_authz::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpStatus,
    OkHttpResponse, QueryParameter, Status, address, attribute_context::HttpRequest,
};
use http::{Uri, Version};
use prost::Message;
use prost_types::Struct;
use prost_types::value::Kind;
use waypoint::permission::Denial;

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
        ..Default::default()
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
        ..Default::default()
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
fn of_a_connection_is_asked_who_wants_it_and_to_what() {
    let case = Case::of(Request::get("/"));
    let (to, own) = (
        ([10, 96, 0, 1], 5432).into(),
        "spiffe://cluster.local/ns/shop/sa/way",
    );
    let sent = grpc().asks_about(&case.client, to, own).unwrap();
    let check = CheckRequest::decode(&sent.body()[5..]).unwrap();
    let attributes = check.attributes.unwrap();
    assert!(attributes.request.is_none());
    let source = attributes.source.unwrap();
    assert_eq!(source.principal, "spiffe://cluster.local/ns/shop/sa/client");
    let destination = attributes.destination.unwrap();
    assert_eq!(destination.principal, own);
    let Some(address::Address::SocketAddress(at)) = destination.address.unwrap().address else {
        panic!("no address")
    };
    assert_eq!(at.address, "10.96.0.1");
    // Who is asked with requests cannot be asked about what is none.
    let plain = authorizer(|it| it.http = true).unwrap();
    assert!(plain.asks_about(&case.client, to, own).is_err());
}

fn sets(set: &[(&str, &str)], removed: &[&str]) -> OkHttpResponse {
    let parameter = |(key, value): &(&str, &str)| QueryParameter {
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    };
    OkHttpResponse {
        query_parameters_to_set: set.iter().map(parameter).collect(),
        query_parameters_to_remove: removed.iter().map(|it| (*it).to_owned()).collect(),
        ..Default::default()
    }
}

/// Where a request goes after a permission; none: where it went.
fn leads(ok: OkHttpResponse, uri: &str) -> Result<Option<String>, String> {
    let uri: Uri = uri.parse().unwrap();
    match heard(&allows(ok))? {
        Answered::Allowed(allowed) => Ok(allowed.parameters.of(&uri)?.map(|it| it.to_string())),
        denied => panic!("{denied:?}"),
    }
}

/// As Envoy 1.40 wrote them, asked the same.
#[test]
fn a_query_that_is_changed_is_written_anew_by_name() {
    type Pairs = &'static [(&'static str, &'static str)];
    let cases: &[(&str, Pairs, &[&str], &str)] = &[
        ("/a", &[("x", "1")], &[], "/a?x=1"),
        ("/a?", &[("x", "1")], &[], "/a?x=1"),
        // In the place of all of that name.
        ("/a?x=1&x=2&y=3", &[("x", "4")], &[], "/a?x=4&y=3"),
        ("/a?x=1", &[("x", "2"), ("x", "3")], &[], "/a?x=3"),
        // The others as they came, by name; those of one name in their order.
        (
            "/a?z=1&b=2&a=3&b=1",
            &[("m", "")],
            &[],
            "/a?a=3&b=2&b=1&m=&z=1",
        ),
        ("/a?B=1&a=2&_=3", &[], &["x"], "/a?B=1&_=3&a=2"),
        ("/a?flag&x=1", &[("y", "2")], &[], "/a?flag=&x=1&y=2"),
        ("/a?x=a=b&y=1", &[], &["y"], "/a?x=a=b"),
        ("/a?x=1&&y=2&", &[], &["y"], "/a?=&x=1"),
        // Nothing is escaped or taken for what it would be unescaped.
        ("/a?x=%41+b&%78=1", &[("x", "%20")], &[], "/a?%78=1&x=%20"),
        ("/a?x=1", &[], &["%78", "X"], "/a?x=1"),
        (
            "/a?x[]=1&x[]=2",
            &[("y[]", "?/:@")],
            &[],
            "/a?x[]=1&x[]=2&y[]=?/:@",
        ),
        // Removed goes last; where nothing is left, there is no query.
        (
            "/a?x=1&y=2",
            &[("y", "3"), ("z", "4")],
            &["y", "z"],
            "/a?x=1",
        ),
        ("/a?x=1&x=2", &[], &["x"], "/a"),
        ("/a", &[], &["x"], "/a"),
        // Of a path nothing changes.
        ("/a%2Fb/;p=1?x=1", &[("x", "2")], &[], "/a%2Fb/;p=1?x=2"),
        (
            "http://web.shop:80/a?x=1",
            &[],
            &["x"],
            "http://web.shop:80/a",
        ),
    ];
    for (uri, set, removed, written) in cases {
        let found = leads(sets(set, removed), uri);
        assert_eq!(
            found,
            Ok(Some((*written).to_owned())),
            "{uri} {set:?} {removed:?}"
        );
    }
    assert_eq!(leads(sets(&[], &[]), "/a?z&a"), Ok(None));
}

#[test]
fn what_would_be_another_parameter_or_end_the_query_is_no_permission() {
    for (key, value) in [
        ("x", "1&admin=1"),
        ("x&admin", "1"),
        ("x=1", "2"),
        ("x", "1#f"),
        ("x", "a b"),
        ("x", "a\nb"),
        ("x", "é"),
        ("x", "\u{0}"),
        ("x", "<\">"),
    ] {
        let found = leads(sets(&[(key, value)], &[]), "/a");
        assert!(found.is_err(), "{key}={value}: {found:?}");
    }
    let long = "x".repeat(70_000);
    let found = leads(sets(&[("x", &long)], &[]), "/a");
    assert!(found.is_err_and(|why| why.contains("too long")));
    // A CONNECT as it always was has no path.
    assert!(leads(sets(&[("x", "1")], &[]), "web.shop:80").is_err());
}

fn words(fields: &[(&str, &str)]) -> Struct {
    let field = |(name, text): &(&str, &str)| {
        let kind = Some(Kind::StringValue((*text).to_owned()));
        ((*name).to_owned(), prost_types::Value { kind })
    };
    Struct {
        fields: fields.iter().map(field).collect(),
    }
}

#[test]
fn what_is_said_of_the_request_comes_with_any_answer() {
    let (outer, inner) = (words(&[("by", "outer")]), words(&[("by", "inner")]));
    let metadata = |said: Option<Said>, code: i32| {
        let response = CheckResponse {
            dynamic_metadata: Some(outer.clone()),
            ..says(code, said)
        };
        match heard(&response).unwrap() {
            Answered::Allowed(allowed) => allowed.metadata,
            Answered::Denied(Denial { metadata, .. }) => metadata,
        }
    };
    let denied = Said::DeniedResponse(DeniedHttpResponse::default());
    let ok = |dynamic_metadata| {
        Said::OkResponse(OkHttpResponse {
            dynamic_metadata,
            ..Default::default()
        })
    };
    for (said, code, expected) in [
        (None, 0, &outer),
        (None, 7, &outer),
        (Some(denied), 7, &outer),
        (Some(ok(None)), 0, &outer),
        // The older field goes before the other.
        (Some(ok(Some(inner.clone()))), 0, &inner),
    ] {
        assert_eq!(metadata(said.clone(), code), *expected, "{said:?}");
    }
    assert_eq!(
        heard(&says(0, None)),
        Ok(Answered::Allowed(Allowed::default()))
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
        http_response: Some(Said::OkResponse(OkHttpResponse::default())),
        ..Default::default()
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
