//! The rules of RFC 9113, one line each: what breaks them, and what that breaks.

use hbone::{
    Refusal,
    frames::{Code, Event, Mux, Settings, StreamId, flag, kind},
};

use super::support::{
    PREFACE, Side, acknowledgement, block, connect, frame, get, headers, reset, settings, to,
};

const OPEN: StreamId = StreamId(1);

/// What is wrong, the bytes, and what the peer is told.
type Case = (&'static str, Vec<u8>, Code);

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
