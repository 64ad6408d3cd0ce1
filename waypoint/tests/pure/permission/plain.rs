//! With a request like the client's own.

use http::{Method, Version};

use super::*;

fn plain(change: impl FnOnce(&mut wire::Authorizer)) -> Authorizer {
    authorizer(|it| {
        it.http = true;
        change(it);
    })
    .unwrap()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn the_question_is_the_request_with_what_is_shown_of_it() {
    let judge = plain(|it| {
        it.path_prefix = "/check".to_owned();
        it.send_headers = names(&["x-user", "connection", "x-by"]);
        it.add_headers = vec![wire::Header {
            name: "x-by".to_owned(),
            value: "mesh".to_owned(),
        }];
    });
    let case = || {
        Case::of(
            Request::put("/cart?all=1")
                .header("host", "web.shop:80")
                .header("authorization", "Basic x")
                .header("x-user", "a")
                .header("x-user", "b")
                .header("x-by", "me")
                .header("x-else", "1")
                .header("connection", "close"),
        )
    };
    let asked = case().asks(&judge).unwrap();
    assert_eq!(asked.uri(), "http://web.shop:80/check/cart?all=1");
    assert_eq!(
        (asked.method(), asked.version()),
        (&Method::PUT, Version::HTTP_11)
    );
    assert_eq!(
        shown(asked.headers()),
        [
            "authorization: Basic x",
            "x-by: mesh",
            "x-user: a",
            "x-user: b"
        ]
    );
    assert!(asked.body().is_empty());

    let mut shown_body = case().body(b"12345", true);
    shown_body.head.headers.remove("authorization");
    shown_body.token = Some(HeaderValue::from_static("Bearer t"));
    let asked = shown_body.asks(&judge).unwrap();
    assert_eq!(&asked.body()[..], b"12345");
    assert_eq!(asked.headers()["x-envoy-auth-partial-body"], "false");
    assert_eq!(asked.headers()["authorization"], "Bearer t");
}

#[test]
fn there_is_no_target_but_a_path_and_no_connect() {
    for (request, asked) in [
        (Request::options("*"), "http://web.shop:80/"),
        (Request::get("http://web.shop/a"), "http://web.shop:80/a"),
        (
            Request::connect("/chat").version(Version::HTTP_2),
            "http://web.shop:80/chat",
        ),
    ] {
        let request = Case::of(request).asks(&plain(|_| {})).unwrap();
        assert_eq!(request.uri(), asked);
        assert_ne!(request.method(), Method::CONNECT);
    }
}

#[test]
fn only_200_is_a_permission() {
    let judge = plain(|_| {});
    for status in [201, 204, 301, 302, 400, 401, 403, 404, 429] {
        let answered = hears(&judge, status, &[], b"why", None);
        let Ok(Answered::Denied(denial)) = answered else {
            panic!("{status}: {answered:?}")
        };
        assert_eq!(denial.status.as_u16(), status);
        assert_eq!(&denial.body[..], b"why");
    }
    for status in [500, 502, 503, 504, 599, 101] {
        assert!(hears(&judge, status, &[], b"", None).is_err(), "{status}");
    }
    let answered = hears(&judge, 200, &[("x-user", "root")], b"", None);
    assert_eq!(answered, Ok(Answered::Allowed(Allowed::default())));
}

#[test]
fn of_a_permission_only_what_is_named_goes_on() {
    let judge = plain(|it| {
        it.to_upstream = names(&["x-*"]);
        it.to_downstream_on_allow = names(&["set-cookie"]);
    });
    let said = [
        ("x-user", "anna"),
        ("x-user", "admin"),
        ("content-type", "text/html"),
        ("content-length", "0"),
        ("set-cookie", "s=1"),
        ("x-envoy-auth-headers-to-remove", "x-secret, host,, a b"),
    ];
    let answered = hears(&judge, 200, &said, b"", None).unwrap();
    let Answered::Allowed(allowed) = &answered else {
        panic!("{answered:?}")
    };
    let mut told = HeaderMap::new();
    allowed
        .answer
        .iter()
        .for_each(|change| change.apply(&mut told));
    assert_eq!(shown(&told), ["set-cookie: s=1"]);
    let before = [
        ("host", "web"),
        ("content-type", "a/b"),
        ("x-user", "root"),
        ("x-secret", "1"),
    ];
    assert_eq!(
        applied(answered, &before),
        [
            "content-type: a/b",
            "host: web",
            "x-user: admin",
            "x-user: anna"
        ]
    );
}

#[test]
fn of_a_denial_all_goes_back_or_what_is_named() {
    let said = [
        ("location", "/login"),
        ("www-authenticate", "Basic"),
        ("x-why", "1"),
        ("x-else", "1"),
        ("content-type", "text/html"),
        ("content-length", "3"),
        ("connection", "close"),
    ];
    let told = |judge: &Authorizer| match hears(judge, 302, &said, b"", None) {
        Ok(Answered::Denied(denial)) => shown(&denial.headers),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        told(&plain(|_| {})),
        [
            "content-type: text/html",
            "location: /login",
            "www-authenticate: Basic",
            "x-else: 1",
            "x-why: 1",
        ]
    );
    let some = plain(|it| it.to_downstream_on_deny = names(&["x-why"]));
    assert_eq!(
        told(&some),
        ["location: /login", "www-authenticate: Basic", "x-why: 1"]
    );
}
