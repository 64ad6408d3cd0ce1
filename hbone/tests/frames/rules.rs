//! The rules of RFC 9113, one line each.

use hbone::{
    Refusal, ResponseHeaders,
    frames::{Code, Event, Method, Mux, NotOpened, Settings, StreamId, flag, hpack, kind},
};

use super::support::{
    PREFACE, Side, acknowledgement, block, connect, frame, get, headers, parse, reset, settings, to,
};

const OPEN: StreamId = StreamId(1);

/// What is wrong, the bytes, and what the peer is told.
type Case = (&'static str, Vec<u8>, Code);

#[test]
fn both_sides_say_hello_with_the_figures_of_the_wire_contract() {
    let mut client = Mux::client(&Settings::client());
    let out = client.out().split_off(0);
    assert!(out.starts_with(PREFACE));
    let [first, second] = parse(&out[PREFACE.len()..]).try_into().unwrap();
    let expected = settings(&[(1, 0), (2, 0), (4, 4 << 20), (5, 1 << 20), (6, 16 << 10)]);
    assert_eq!(parse(&expected), [first]);
    assert_eq!(second.number(), (16 << 20) - 65_535);

    let mut server = Mux::server(&Settings::server());
    let [first, second] = parse(server.out()).try_into().unwrap();
    let expected = settings(&[(1, 0), (3, 200), (4, 4 << 20), (5, 1 << 20), (6, 64 << 10)]);
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

/// What ends the connection of a server with a tunnel on stream 1.
pub(crate) fn of_connections() -> Vec<Case> {
    use Code as C;
    let huge = frame(kind::DATA, 0, 1, &vec![0; (1 << 20) + 1]);
    let half = || frame(kind::HEADERS, 0, 3, &connect());
    vec![
        (
            "DATA on the connection",
            frame(kind::DATA, 0, 0, b"x"),
            C::PROTOCOL_ERROR,
        ),
        (
            "DATA on an idle stream",
            frame(kind::DATA, 0, 3, b"x"),
            C::PROTOCOL_ERROR,
        ),
        (
            "DATA of a server's stream",
            frame(kind::DATA, 0, 2, b"x"),
            C::PROTOCOL_ERROR,
        ),
        (
            "all padding and more",
            frame(kind::DATA, flag::PADDED, 1, b"\x01"),
            C::PROTOCOL_ERROR,
        ),
        (
            "padding without its length",
            frame(kind::DATA, flag::PADDED, 1, b""),
            C::PROTOCOL_ERROR,
        ),
        ("a frame beyond the limit", huge, C::FRAME_SIZE_ERROR),
        (
            "HEADERS on the connection",
            headers(0, 0, &connect()),
            C::PROTOCOL_ERROR,
        ),
        (
            "HEADERS of a server's stream",
            headers(2, 0, &connect()),
            C::PROTOCOL_ERROR,
        ),
        (
            "HEADERS that are all padding",
            headers(3, flag::PADDED, b"\x01"),
            C::PROTOCOL_ERROR,
        ),
        (
            "HEADERS without their priority",
            headers(3, flag::PRIORITY, b"\0\0\0\0"),
            C::PROTOCOL_ERROR,
        ),
        (
            "a block that is none",
            headers(3, 0, b"\x80"),
            C::COMPRESSION_ERROR,
        ),
        (
            "a reference to what was never remembered",
            headers(3, 0, b"\xbe"),
            C::COMPRESSION_ERROR,
        ),
        (
            "CONTINUATION of nothing",
            frame(kind::CONTINUATION, 4, 1, b""),
            C::PROTOCOL_ERROR,
        ),
        (
            "CONTINUATION elsewhere",
            [half(), frame(kind::CONTINUATION, 4, 1, b"")].concat(),
            C::PROTOCOL_ERROR,
        ),
        (
            "an interrupted block",
            [half(), frame(kind::PING, 0, 0, &[0; 8])].concat(),
            C::PROTOCOL_ERROR,
        ),
        (
            "a block interrupted by an unknown frame",
            [half(), frame(0xbb, 0, 0, b"")].concat(),
            C::PROTOCOL_ERROR,
        ),
        (
            "PUSH_PROMISE",
            frame(kind::PUSH_PROMISE, 4, 1, &[0; 4]),
            C::PROTOCOL_ERROR,
        ),
        (
            "PRIORITY on the connection",
            frame(kind::PRIORITY, 0, 0, &[0; 5]),
            C::PROTOCOL_ERROR,
        ),
        (
            "RST_STREAM on the connection",
            frame(kind::RST_STREAM, 0, 0, &[0; 4]),
            C::PROTOCOL_ERROR,
        ),
        (
            "RST_STREAM on an idle stream",
            frame(kind::RST_STREAM, 0, 3, &[0; 4]),
            C::PROTOCOL_ERROR,
        ),
        (
            "a short RST_STREAM",
            frame(kind::RST_STREAM, 0, 1, &[0; 3]),
            C::FRAME_SIZE_ERROR,
        ),
        (
            "SETTINGS on a stream",
            frame(kind::SETTINGS, 0, 1, &[]),
            C::PROTOCOL_ERROR,
        ),
        (
            "a part of a setting",
            frame(kind::SETTINGS, 0, 0, &[0; 5]),
            C::FRAME_SIZE_ERROR,
        ),
        (
            "an acknowledgement that says more",
            frame(kind::SETTINGS, flag::ACK, 0, &[0; 6]),
            C::FRAME_SIZE_ERROR,
        ),
        (
            "an acknowledgement too many",
            acknowledgement(),
            C::PROTOCOL_ERROR,
        ),
        (
            "SETTINGS of absurd length",
            settings(&[(9, 9); 65]),
            C::ENHANCE_YOUR_CALM,
        ),
        (
            "PING on a stream",
            frame(kind::PING, 0, 1, &[0; 8]),
            C::PROTOCOL_ERROR,
        ),
        (
            "a short PING",
            frame(kind::PING, 0, 0, &[0; 7]),
            C::FRAME_SIZE_ERROR,
        ),
        (
            "GOAWAY on a stream",
            frame(kind::GOAWAY, 0, 1, &[0; 8]),
            C::PROTOCOL_ERROR,
        ),
        (
            "a short GOAWAY",
            frame(kind::GOAWAY, 0, 0, &[0; 7]),
            C::FRAME_SIZE_ERROR,
        ),
        (
            "credit of nothing",
            frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4]),
            C::PROTOCOL_ERROR,
        ),
        (
            "credit beyond all",
            frame(kind::WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]),
            C::FLOW_CONTROL_ERROR,
        ),
        (
            "credit for an idle stream",
            frame(kind::WINDOW_UPDATE, 0, 3, &[0, 0, 0, 1]),
            C::PROTOCOL_ERROR,
        ),
        (
            "credit of odd size",
            frame(kind::WINDOW_UPDATE, 0, 1, &[0; 5]),
            C::FRAME_SIZE_ERROR,
        ),
        (
            "a window made too large",
            [
                frame(kind::WINDOW_UPDATE, 0, 1, &[0x7f, 255, 0, 0]),
                settings(&[(4, 0x7fff_ffff)]),
            ]
            .concat(),
            C::FLOW_CONTROL_ERROR,
        ),
    ]
}

#[test]
fn what_breaks_the_connection() {
    for (what, bytes, code) in of_connections() {
        let mut side = Side::serving();
        let violation = side.feed(&bytes).expect_err(what);
        assert_eq!(violation.code, code, "{what}: {violation}");
        let goaway = side.sent().pop().unwrap();
        assert_eq!(
            (goaway.head.kind, goaway.number()),
            (kind::GOAWAY, code.0),
            "{what}"
        );
        assert_eq!(
            side.feed(b"anything"),
            Err(violation),
            "{what}: and nothing else"
        );
        assert!(side.sent().is_empty(), "{what}: said once");
        assert!(side.mux.done());
    }
}

/// What ends a tunnel on stream 1, and leaves the connection.
pub(crate) fn of_streams() -> Vec<Case> {
    let ended = frame(kind::DATA, flag::END_STREAM, 1, b"");
    vec![
        (
            "credit of nothing",
            frame(kind::WINDOW_UPDATE, 0, 1, &[0; 4]),
            Code::PROTOCOL_ERROR,
        ),
        (
            "credit beyond all",
            frame(kind::WINDOW_UPDATE, 0, 1, &[0x7f, 255, 255, 255]),
            Code::FLOW_CONTROL_ERROR,
        ),
        (
            "DATA behind the end",
            [ended.clone(), frame(kind::DATA, 0, 1, b"x")].concat(),
            Code::STREAM_CLOSED,
        ),
        (
            "an end behind the end",
            [ended.clone(), ended.clone()].concat(),
            Code::STREAM_CLOSED,
        ),
        (
            "HEADERS behind the end",
            [ended, headers(1, flag::END_STREAM, b"")].concat(),
            Code::STREAM_CLOSED,
        ),
        (
            "trailers in a tunnel",
            headers(1, flag::END_STREAM, b""),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a second request",
            headers(1, 0, &connect()),
            Code::PROTOCOL_ERROR,
        ),
        (
            "a short PRIORITY",
            frame(kind::PRIORITY, 0, 1, &[0; 4]),
            Code::FRAME_SIZE_ERROR,
        ),
        (
            "dependence on itself",
            frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 1, 0]),
            Code::PROTOCOL_ERROR,
        ),
    ]
}

#[test]
fn what_breaks_a_stream() {
    for (what, bytes, code) in of_streams() {
        let mut side = Side::serving();
        side.feed(&bytes).expect(what);
        assert_eq!(side.said(), [reset(1, code)], "{what}");
        let event = side.events.pop().unwrap();
        assert_eq!(
            event,
            Event::Reset {
                stream: OPEN,
                code,
                ours: true
            },
            "{what}"
        );
        assert_eq!(side.mux.streams(), 0);
        side.feed(&headers(3, 0, &connect())).expect("others go on");
    }
}

#[test]
fn a_request_that_makes_no_sense_is_reset_and_counted() {
    for (what, block) in [
        (
            "a CONNECT with a path",
            block(&[
                (":method", "CONNECT"),
                (":authority", "a:1"),
                (":path", "/"),
            ]),
        ),
        (
            "garbage for an authority",
            block(&[(":method", "CONNECT"), (":authority", "not an authority")]),
        ),
        (
            "capitals",
            block(&[
                (":method", "CONNECT"),
                (":authority", "a:1"),
                ("Upper", "x"),
            ]),
        ),
        (
            "a header of a connection",
            block(&[
                (":method", "CONNECT"),
                (":authority", "a:1"),
                ("connection", "x"),
            ]),
        ),
        ("nothing", vec![]),
    ] {
        let mut side = Side::server(&Settings::server());
        side.feed(&headers(1, 0, &block)).unwrap();
        let refused = Event::Refused {
            stream: OPEN,
            kind: Refusal::MalformedStream,
        };
        assert_eq!(side.events, [refused], "{what}");
        assert_eq!(side.said(), [reset(1, Code::PROTOCOL_ERROR)], "{what}");
        side.feed(&frame(kind::DATA, 0, 1, b"on its way")).unwrap();
        assert!(side.data.is_empty() && side.mux.out().is_empty(), "{what}");
    }
    let mut side = Side::server(&Settings::server());
    side.feed(&headers(
        1,
        flag::PRIORITY,
        &[&[0, 0, 0, 1, 0][..], &connect()].concat(),
    ))
    .unwrap();
    assert_eq!(
        side.said(),
        [reset(1, Code::PROTOCOL_ERROR)],
        "depends on itself"
    );
}

#[test]
fn other_requests_end_as_they_declared() {
    let long = &[("content-length", "4")];
    for (what, bytes, sound) in [
        (
            "as declared",
            [headers(1, 0, &get(long)), frame(0, 1, 1, b"four")].concat(),
            true,
        ),
        (
            "in pieces",
            [
                headers(1, 0, &get(long)),
                frame(0, 0, 1, b"fo"),
                frame(0, 1, 1, b"ur"),
            ]
            .concat(),
            true,
        ),
        (
            "trailers",
            [
                headers(1, 0, &get(&[])),
                headers(1, 1, &block(&[("a", "b")])),
            ]
            .concat(),
            true,
        ),
        (
            "too little",
            [headers(1, 0, &get(long)), frame(0, 1, 1, b"fou")].concat(),
            false,
        ),
        (
            "too much",
            [headers(1, 0, &get(long)), frame(0, 0, 1, b"fours")].concat(),
            false,
        ),
        ("nothing", headers(1, 1, &get(long)), false),
        (
            "trailers too soon",
            [headers(1, 0, &get(long)), headers(1, 1, &[])].concat(),
            false,
        ),
        (
            "trailers that are not the end",
            [headers(1, 0, &get(&[])), headers(1, 0, &[])].concat(),
            false,
        ),
        (
            "a status behind a body",
            [headers(1, 0, &get(&[])), headers(1, 1, &[0x88])].concat(),
            false,
        ),
    ] {
        let mut side = Side::server(&Settings::server());
        side.feed(&bytes).unwrap();
        let said = side.said();
        let expected = if sound {
            vec![]
        } else {
            vec![reset(1, Code::PROTOCOL_ERROR)]
        };
        assert_eq!(said, expected, "{what}");
    }
}

#[test]
fn a_list_that_is_too_large_is_answered_and_the_connection_goes_on() {
    let mut side = Side::server(&Settings {
        header_list: 500,
        ..Settings::server()
    });
    let many = [("x", "y"); 15];
    side.feed(&headers(1, 0, &[connect(), block(&many)].concat()))
        .unwrap();
    assert_eq!(
        side.events,
        [Event::Refused {
            stream: OPEN,
            kind: Refusal::MalformedStream
        }]
    );
    let sent = side.sent();
    assert_eq!(sent[0].payload, b"\x08\x03431");
    assert_eq!(sent[0].head.flags, flag::END_HEADERS | flag::END_STREAM);
    assert_eq!(sent[1].head.kind, kind::RST_STREAM);
    side.events.clear();
    side.feed(&headers(3, 0, &connect())).unwrap();
    assert!(matches!(side.events[..], [Event::Request { .. }]));
}

#[test]
fn streams_beyond_the_limit_are_refused_and_the_others_stay() {
    let mut side = Side::server(&Settings {
        streams: 2,
        ..Settings::server()
    });
    for stream in [1, 3, 5] {
        side.feed(&headers(stream, 0, &connect())).unwrap();
    }
    let surplus = Event::Refused {
        stream: StreamId(5),
        kind: Refusal::SurplusStream,
    };
    assert_eq!(side.events[2], surplus);
    assert_eq!(side.said(), [reset(5, Code::REFUSED_STREAM)]);
    side.feed(&frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]))
        .unwrap();
    side.feed(&headers(7, 0, &connect())).unwrap();
    assert!(matches!(side.events.pop(), Some(Event::Request { .. })));
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
fn old_streams_are_told_from_new_ones() {
    let mut side = Side::server(&Settings::server());
    side.feed(&headers(5, 0, &connect())).unwrap();
    let error = side.feed(&headers(3, 0, &connect())).unwrap_err();
    assert_eq!(error.code, Code::PROTOCOL_ERROR, "numbers only grow");

    // Ended by the peer: it knows.
    let mut side = Side::serving();
    side.feed(&frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]))
        .unwrap();
    side.feed(&frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]))
        .unwrap();
    side.feed(&frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8]))
        .unwrap();
    assert!(side.mux.out().is_empty());
    side.feed(&frame(kind::DATA, 0, 1, b"x")).unwrap();
    assert_eq!(side.said(), [reset(1, Code::STREAM_CLOSED)]);
    side.feed(&frame(kind::PRIORITY, 0, 1, &[0; 4])).unwrap();
    assert_eq!(side.said(), [reset(1, Code::FRAME_SIZE_ERROR)]);
    let error = side.feed(&headers(1, 0, &connect())).unwrap_err();
    assert_eq!(error.code, Code::STREAM_CLOSED);

    // Ended by us: what is on its way is passed over, headers are decoded all the same.
    let mut side = Side::serving();
    side.mux.reset(OPEN, Code::CANCEL);
    side.mux.reset(OPEN, Code::CANCEL);
    assert_eq!(side.said(), [reset(1, Code::CANCEL)], "once");
    side.feed(&frame(kind::DATA, flag::END_STREAM, 1, b"x"))
        .unwrap();
    side.feed(&headers(1, flag::END_STREAM, b"")).unwrap();
    assert!(side.mux.out().is_empty() && side.events.is_empty());
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
fn no_preface_no_http2() {
    let mut side = Side::new(Mux::server(&Settings::server()));
    let error = side.feed(b"GET / HTTP/1.1\r\n").unwrap_err();
    assert_eq!(error.refusal, Refusal::Preface);
    let mut side = Side::new(Mux::server(&Settings::server()));
    side.feed(PREFACE).unwrap();
    let error = side.feed(&frame(kind::PING, 0, 0, &[0; 8])).unwrap_err();
    assert_eq!(error.code, Code::PROTOCOL_ERROR, "SETTINGS come first");
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

#[test]
fn responses_that_make_no_sense_reset_their_stream() {
    for (what, bytes) in [
        ("no status", headers(1, 0, b"")),
        (
            "an end in 1xx",
            headers(1, 1, &block(&[(":status", "100")])),
        ),
        ("101", headers(1, 0, &block(&[(":status", "101")]))),
        ("DATA before the answer", frame(kind::DATA, 0, 1, b"x")),
        (
            "trailers in a tunnel",
            [headers(1, 0, &[0x88]), headers(1, 1, b"")].concat(),
        ),
    ] {
        let mut side = Side::client(&Settings::client());
        side.mux.open(&to("a:1")).unwrap();
        side.sent();
        side.feed(&bytes).unwrap();
        assert_eq!(side.said(), [reset(1, Code::PROTOCOL_ERROR)], "{what}");
        let code = Code::PROTOCOL_ERROR;
        assert_eq!(
            side.events.pop(),
            Some(Event::Reset {
                stream: OPEN,
                code,
                ours: true
            }),
            "{what}"
        );
    }
}
