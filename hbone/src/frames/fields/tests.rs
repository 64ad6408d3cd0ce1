use super::*;

type Fields<'a> = [(&'a str, &'a str)];

fn request(fields: &Fields<'_>) -> Result<RequestHead, Fault> {
    let mut request = Request::new(1000, false);
    for (name, value) in fields {
        request.field(name.as_bytes(), value.as_bytes());
    }
    request.finish().map(|(head, _)| head)
}

fn response(fields: &Fields<'_>) -> Result<ResponseHead, Fault> {
    let mut response = Response::new(1000);
    for (name, value) in fields {
        response.field(name.as_bytes(), value.as_bytes());
    }
    response.finish()
}

const CONNECT: [(&str, &str); 2] = [(":method", "CONNECT"), (":authority", "10.0.0.1:80")];
const GET: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/"),
    (":authority", "10.0.0.1:80"),
];

#[test]
fn a_connect_says_where_to_and_what_a_mesh_wants_to_know() {
    let more = [
        ("baggage", "a=1"),
        ("forwarded", "for=\"1.2.3.4:5\""),
        ("traceparent", "00-1-2-01"),
        ("x-forwarded-network", "n"),
        ("x-istio-source", "waypoint"),
        ("anything", "else"),
        ("baggage", "b=2"),
        ("forwarded", "for=9.9.9.9"),
    ];
    let head = request(&[&CONNECT[..], &more].concat()).unwrap();
    assert_eq!(head.method, Method::Connect);
    assert_eq!(&*head.authority, "10.0.0.1:80");
    assert_eq!(head.headers.baggage.as_deref(), Some("a=1,b=2"));
    assert_eq!(head.headers.forwarded.as_deref(), Some("for=\"1.2.3.4:5\""));
    assert_eq!(head.headers.traceparent.as_deref(), Some("00-1-2-01"));
    assert_eq!(head.headers.x_forwarded_network.as_deref(), Some("n"));
    assert_eq!(head.headers.x_istio_source.as_deref(), Some("waypoint"));
}

#[test]
fn a_header_that_is_no_text_counts_as_absent() {
    let mut collector = Request::new(1000, false);
    for (name, value) in CONNECT {
        collector.field(name.as_bytes(), value.as_bytes());
    }
    collector.field(b"baggage", b"\xff");
    collector.field(b"forwarded", b"\xff");
    collector.field(b"forwarded", b"for=1.2.3.4");
    let (head, _) = collector.finish().unwrap();
    assert_eq!(head.headers, RequestHeaders::default());
}

#[test]
fn other_requests_are_let_through_when_they_are_well_formed() {
    let head = request(&GET).unwrap();
    assert_eq!(head.method, Method::Other("GET".into()));
    let head = request(&[(":method", "CONNECT")]).unwrap();
    assert_eq!(&*head.authority, "", "for the caller to refuse");
    let long = "G".repeat(100);
    let mut fields = GET;
    fields[0].1 = &long;
    assert_eq!(
        request(&fields).unwrap().method,
        Method::Other("G".repeat(80).into())
    );
}

#[test]
fn requests_that_break_a_rule_are_refused() {
    for (base, more) in [
        (&CONNECT[..], &[(":path", "/")][..]),
        (&CONNECT, &[(":scheme", "https")]),
        (&CONNECT, &[(":protocol", "websocket")]),
        (&CONNECT, &[(":status", "200")]),
        (&CONNECT, &[(":method", "CONNECT")]),
        (&CONNECT, &[(":authority", "10.0.0.1:80")]),
        (&CONNECT, &[("a", "b"), (":x", "y")]),
        (&CONNECT, &[("Upper", "case")]),
        (&CONNECT, &[("", "empty")]),
        (&CONNECT, &[("spa ce", "x")]),
        (&CONNECT, &[("co:lon", "x")]),
        (&CONNECT, &[("n\u{e4}me", "x")]),
        (&CONNECT, &[("a", " leading")]),
        (&CONNECT, &[("a", "trailing\t")]),
        (&CONNECT, &[("a", "new\nline")]),
        (&CONNECT, &[("a", "return\r")]),
        (&CONNECT, &[("a", "n\0ul")]),
        (&CONNECT, &[("connection", "close")]),
        (&CONNECT, &[("keep-alive", "1")]),
        (&CONNECT, &[("proxy-connection", "x")]),
        (&CONNECT, &[("transfer-encoding", "chunked")]),
        (&CONNECT, &[("upgrade", "h2c")]),
        (&CONNECT, &[("te", "gzip")]),
        (
            &CONNECT,
            &[("host", "10.0.0.1:80"), ("host", "10.0.0.1:80")],
        ),
        (&CONNECT, &[("host", "10.0.0.2:80")]),
        (&CONNECT, &[("content-length", "5")]),
        (&GET, &[("content-length", "5"), ("content-length", "5")]),
        (&GET, &[("content-length", "+5")]),
        (&GET, &[("content-length", "")]),
        (&GET, &[("content-length", "99999999999999999999")]),
        (&GET, &[(":path", "/")]),
        (&GET[..2], &[]),
        (&GET[1..], &[]),
        (&GET[..1], &[(":scheme", "https"), (":path", "x")]),
        (&GET[..1], &[(":scheme", "https"), (":path", "")]),
        (
            &[(":method", "CONNECT")],
            &[(":authority", "not an authority")],
        ),
        (&[(":method", "CONNECT")], &[(":authority", "")]),
        (&[(":method", "")], &[(":authority", "a:1")]),
        (&[(":method", "CON NECT")], &[(":authority", "a:1")]),
        (&[], &[]),
    ] {
        let fields = [base, more].concat();
        assert!(
            matches!(request(&fields), Err(Fault::Malformed(_))),
            "{fields:?}"
        );
    }
    for more in [
        &[("te", "trailers")][..],
        &[("host", "10.0.0.1:80")],
        &[("content-length", "0")],
    ] {
        assert!(request(&[&CONNECT[..], more].concat()).is_ok(), "{more:?}");
    }
}

#[test]
fn responses_have_one_status_of_three_digits() {
    let read = response(&[(":status", "200"), ("baggage", "a=1"), ("x", "y")]).unwrap();
    assert_eq!(read.status, 200);
    assert_eq!(read.headers.baggage.as_deref(), Some("a=1"));
    for fields in [
        &[][..],
        &[("a", "b")],
        &[(":status", "")],
        &[(":status", "20")],
        &[(":status", "2000")],
        &[(":status", "abc")],
        &[(":status", "+20")],
        &[(":status", "099")],
        &[(":status", "101")],
        &[(":status", "200"), (":status", "200")],
        &[(":status", "200"), (":path", "/")],
        &[("a", "b"), (":status", "200")],
    ] {
        assert!(
            matches!(response(fields), Err(Fault::Malformed(_))),
            "{fields:?}"
        );
    }
}

#[test]
fn trailers_have_no_pseudo_headers() {
    for (name, sound) in [("checksum", true), (":status", false), ("A", false)] {
        let mut trailers = Trailers::new(1000);
        trailers.field(name.as_bytes(), b"1");
        assert_eq!(trailers.finish().is_ok(), sound, "{name}");
    }
}

#[test]
fn a_list_is_too_large_by_bytes_and_by_number() {
    let with = |n: usize, limit| {
        let mut collector = Request::new(limit, false);
        for (name, value) in CONNECT {
            collector.field(name.as_bytes(), value.as_bytes());
        }
        for _ in 0..n {
            collector.field(b"x", b"y");
        }
        collector.finish().map(|_| ())
    };
    let two = 7 + 7 + 32 + 10 + 11 + 32;
    assert_eq!(with(0, two), Ok(()));
    assert_eq!(with(0, two - 1), Err(Fault::TooLarge));
    assert_eq!(with(1, two + 33), Err(Fault::TooLarge));
    assert_eq!(with(1, two + 34), Ok(()));
    assert_eq!(with(254, u32::MAX), Ok(()));
    assert_eq!(with(255, u32::MAX), Err(Fault::TooLarge));
}
