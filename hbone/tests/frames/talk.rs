//! What two sides say to each other when both keep to the rules.

use hbone::{
    ResponseHeaders,
    frames::{Code, Event, Method, Mux, NotOpened, Settings, StreamId, flag, hpack, kind},
};

use super::support::{
    PREFACE, Side, acknowledgement, block, connect, frame, headers, parse, reset, settings, to,
};

const OPEN: StreamId = StreamId(1);

#[test]
fn both_sides_say_hello_with_the_figures_of_the_wire_contract_but_for_a_first_window() {
    let mut client = Mux::client(&Settings::client());
    let out = client.out().split_off(0);
    assert!(out.starts_with(PREFACE));
    let [first, second] = parse(&out[PREFACE.len()..]).try_into().unwrap();
    let expected = settings(&[(1, 0), (2, 0), (4, 512 << 10), (5, 1 << 20), (6, 16 << 10)]);
    assert_eq!(parse(&expected), [first]);
    assert_eq!(second.number(), (16 << 20) - 65_535);

    let mut server = Mux::server(&Settings::server());
    let [first, second] = parse(server.out()).try_into().unwrap();
    let expected = settings(&[
        (1, 0),
        (3, 200),
        (4, 512 << 10),
        (5, 1 << 20),
        (6, 64 << 10),
    ]);
    assert_eq!(parse(&expected), [first]);
    assert_eq!(second.number(), (16 << 20) - 65_535);
}

#[test]
fn a_request_is_answered_and_bytes_flow_until_both_have_ended() {
    let mut side = Side::server(&Settings::server());
    side.feed(&headers(1, 0, &connect())).unwrap();
    let Event::Request { stream, head, end } = side.events.remove(0) else {
        panic!("{:?}", side.events)
    };
    assert_eq!((stream, end, head.method), (OPEN, false, Method::Connect));
    assert_eq!(&*head.authority, "10.0.0.1:80");
    assert_eq!(side.mux.data(OPEN, 1, false), None, "not before the answer");
    let said = ResponseHeaders {
        baggage: Some("a=1".into()),
    };
    side.mux.respond(OPEN, 200, &said, false).unwrap();
    assert!(side.mux.respond(OPEN, 200, &said, false).is_err(), "once");
    let answer = side.sent().remove(0);
    assert_eq!(answer.head.flags, flag::END_HEADERS);
    assert_eq!(
        answer.payload,
        [&[0x88][..], &block(&[("baggage", "a=1")])].concat()
    );

    side.feed(&frame(kind::DATA, flag::END_STREAM, 1, b"ping"))
        .unwrap();
    assert_eq!(side.data[&1], b"ping");
    assert_eq!(
        side.events,
        [Event::Data {
            stream,
            range: 0..0,
            end: true
        }]
    );
    assert_eq!(
        side.mux.data(OPEN, 4, false),
        Some([0, 0, 4, 0, 0, 0, 0, 0, 1])
    );
    assert_eq!(
        side.mux.data(OPEN, 0, true),
        Some([0, 0, 0, 0, 1, 0, 0, 0, 1])
    );
    assert_eq!(side.mux.data(OPEN, 0, true), None);
    assert_eq!(side.mux.streams(), 0);
}

#[test]
fn a_client_asks_and_is_answered() {
    let mut side = Side::client(&Settings::client());
    let mut ask = to("10.0.0.1:80");
    ask.baggage = Some("a=1".into());
    ask.forwarded = Some("for=\"1.2.3.4:5\"".into());
    assert_eq!(side.mux.open(&ask), Ok(OPEN));
    assert_eq!(side.mux.open(&ask), Ok(StreamId(3)));
    let request = side.sent().remove(0);
    assert_eq!(
        (request.head.kind, request.head.flags),
        (kind::HEADERS, flag::END_HEADERS)
    );
    let mut fields = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    hpack::Decoder::default()
        .decode(&request.payload, |n, v| fields.push((text(n), text(v))))
        .unwrap();
    let expected = [
        (":method", "CONNECT"),
        (":authority", "10.0.0.1:80"),
        ("baggage", "a=1"),
        ("forwarded", "for=\"1.2.3.4:5\""),
    ];
    assert_eq!(fields, expected.map(|(n, v)| (n.to_owned(), v.to_owned())));

    side.feed(&headers(1, 0, &block(&[(":status", "103")])))
        .unwrap();
    assert_eq!(side.events, [], "1xx is not the answer");
    side.feed(&headers(1, 0, &[0x88])).unwrap();
    side.feed(&headers(
        3,
        flag::END_STREAM,
        &block(&[(":status", "503"), ("baggage", "b=2")]),
    ))
    .unwrap();
    let answers = side.events.drain(..).map(|event| match event {
        Event::Response { stream, head, end } => (stream.0, head.status, head.headers.baggage, end),
        other => panic!("{other:?}"),
    });
    let answers: Vec<_> = answers.collect();
    assert_eq!(
        answers,
        [(1, 200, None, false), (3, 503, Some("b=2".into()), true)]
    );

    ask.baggage = Some("new\nline".into());
    assert_eq!(side.mux.open(&ask), Err(NotOpened::Malformed("baggage")));
}

#[test]
fn a_long_header_goes_out_in_pieces() {
    let mut side = Side::client(&Settings::client());
    let mut ask = to("10.0.0.1:80");
    ask.baggage = Some("x".repeat(40_000));
    side.mux.open(&ask).unwrap();
    let sent: Vec<_> = side
        .sent()
        .iter()
        .map(|f| (f.head.kind, f.head.flags, f.head.length))
        .collect();
    assert_eq!(
        sent[..2],
        [(kind::HEADERS, 0, 16_384), (kind::CONTINUATION, 0, 16_384)]
    );
    assert_eq!(
        (sent[2].0, sent[2].1),
        (kind::CONTINUATION, flag::END_HEADERS)
    );
}

#[test]
fn a_client_keeps_to_the_servers_limit() {
    let mut side = Side::client(&Settings::client());
    side.feed(&settings(&[(3, 1)])).unwrap();
    assert_eq!(side.mux.most(), 1);
    side.mux.open(&to("a:1")).unwrap();
    assert_eq!(side.mux.open(&to("a:1")), Err(NotOpened::Full));
    side.feed(&frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 7]))
        .unwrap();
    let code = Code::REFUSED_STREAM;
    assert_eq!(
        side.events,
        [Event::Reset {
            stream: OPEN,
            code,
            ours: false
        }]
    );
    assert_eq!(side.mux.open(&to("a:1")), Ok(StreamId(3)));
}

#[test]
fn a_first_request_may_use_the_table_it_does_not_know_we_lack() {
    let mut side = Side::new(Mux::server(&Settings::server()));
    let remember = [&b"\x02\x07CONNECT\x41\x0b10.0.0.1:80"[..], b""].concat();
    let hello = [PREFACE, &settings(&[]), &headers(1, 0, &remember)].concat();
    side.feed(&hello).unwrap();
    let again = b"\x02\x07CONNECT\xbe";
    side.feed(&headers(3, 0, again)).unwrap();
    let requests = side
        .events
        .iter()
        .filter(|e| matches!(e, Event::Request { head, .. } if &*head.authority == "10.0.0.1:80"));
    assert_eq!(requests.count(), 2);
    side.feed(&acknowledgement()).unwrap();
    let error = side.feed(&headers(5, 0, again)).unwrap_err();
    assert_eq!(error.code, Code::COMPRESSION_ERROR);
}

#[test]
fn a_peer_without_a_table_is_told_that_we_use_none() {
    let mut side = Side::client(&Settings::client());
    side.feed(&settings(&[(1, 0)])).unwrap();
    side.feed(&settings(&[(1, 4096)])).unwrap();
    side.sent();
    side.mux.open(&to("a:1")).unwrap();
    side.mux.open(&to("a:1")).unwrap();
    let first: Vec<_> = side.sent().iter().map(|f| f.payload[0]).collect();
    assert_eq!(first, [0x20, 0x02], "a size of 0, once");
}

#[test]
fn pings_are_answered_and_answers_reported() {
    let mut side = Side::serving();
    side.feed(&frame(kind::PING, 0, 0, b"whatever")).unwrap();
    assert_eq!(
        side.mux.out(),
        &frame(kind::PING, flag::ACK, 0, b"whatever")
    );
    side.feed(&frame(kind::PING, flag::ACK, 0, b"thisone!"))
        .unwrap();
    let payload = *b"thisone!";
    assert_eq!(side.events, [Event::Pong { payload }]);
}

#[test]
fn a_server_goes_in_two_steps_and_loses_no_request() {
    let mut side = Side::serving();
    side.mux.go_away(Code::NO_ERROR);
    side.mux.go_away(Code::NO_ERROR);
    let [away, ping] = side.sent().try_into().unwrap();
    assert_eq!(away.payload, [0x7f, 255, 255, 255, 0, 0, 0, 0]);
    side.feed(&headers(3, 0, &connect())).unwrap();
    assert!(
        matches!(side.events.pop(), Some(Event::Request { .. })),
        "was on its way"
    );
    side.feed(&frame(kind::PING, flag::ACK, 0, &ping.payload))
        .unwrap();
    assert_eq!(side.sent().remove(0).payload, [0, 0, 0, 3, 0, 0, 0, 0]);
    side.feed(&headers(5, 0, &connect())).unwrap();
    assert_eq!(side.said(), [reset(5, Code::REFUSED_STREAM)]);
    assert!(!side.mux.done());
    for stream in [1, 3] {
        side.feed(&frame(kind::RST_STREAM, 0, stream, &[0; 4]))
            .unwrap();
    }
    assert!(side.mux.done());
}

#[test]
fn a_client_learns_what_a_leaving_server_will_not_look_at() {
    let mut side = Side::client(&Settings::client());
    for _ in 0..3 {
        side.mux.open(&to("a:1")).unwrap();
    }
    let away = |last: u32| {
        frame(
            kind::GOAWAY,
            0,
            0,
            &[&last.to_be_bytes()[..], &[0; 4], b"why"].concat(),
        )
    };
    let told = |last| Event::GoAway {
        last: StreamId(last),
        code: Code::NO_ERROR,
    };
    side.feed(&away(0x7fff_ffff)).unwrap();
    side.feed(&away(3)).unwrap();
    side.feed(&away(5)).unwrap();
    assert_eq!(side.events, [told(0x7fff_ffff), told(3), told(3)]);
    assert_eq!(side.mux.streams(), 2);
    assert_eq!(side.mux.open(&to("a:1")), Err(NotOpened::GoingAway));
    assert!(side.mux.going_away() && !side.mux.done());
}

#[test]
fn unknown_frames_are_passed_over() {
    let mut side = Side::serving();
    let unknown = [frame(0xbb, 0xff, 0, &[1; 300]), frame(0xbb, 0xff, 99, &[])].concat();
    side.feed(&[unknown, frame(kind::DATA, 0, 1, b"x")].concat())
        .unwrap();
    assert_eq!(side.data[&1], b"x");
}
