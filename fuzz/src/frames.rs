//! 1. the first byte says who we are and whether the peer has said hello; the second how large pieces are
//! 2. the rest is what the peer says; two connections take it and do the same: answer, read, send
//! 3. one of them is handed over between any two pieces, and nothing shows it

use std::time::Instant;

use hbone::frames::{Event, HEAD, Head, Mux, Settings, StreamId, flag, kind};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// See the file's head.
pub fn frames(data: &[u8]) {
    let Some((&[first, piece], rest)) = data.split_first_chunk() else {
        return;
    };
    let now = Instant::now();
    let end = || begin(first & 1 == 0, first & 2 == 0, now);
    let (mut stays, mut moves) = (end(), end());
    for bytes in rest.chunks(usize::from(piece) + 1) {
        let here = feed(&mut stays, bytes, now);
        // Budgets begin anew on the way: a flood is none for who has just arrived.
        if here.as_ref().is_err_and(|flood| *flood) {
            return;
        }
        assert_eq!(here, feed(&mut moves, bytes, now));
        if here.is_err() {
            assert_eq!((stays.into_state(), moves.into_state()), (None, None));
            return;
        }
        let Some(state) = moves.into_state() else {
            return;
        };
        moves = Mux::from_state(&state).expect("what was written is read");
    }
    assert_eq!(stays.into_state(), moves.into_state());
}

/// A connection, if asked for with some streams and after the peer's hello.
pub(crate) fn begin(client: bool, greeted: bool, now: Instant) -> Mux {
    let settings = Settings {
        stream_window: 10_000,
        connection_window: 70_000,
        ..Settings::server()
    };
    let mut mux = match client {
        true => Mux::client(&settings),
        false => Mux::server(&settings),
    };
    if greeted {
        let head = Head {
            length: 0,
            kind: kind::SETTINGS,
            flags: 0,
            stream: StreamId::CONNECTION,
        };
        let preface = if client { &[][..] } else { PREFACE };
        let hello = [preface, &head.bytes()].concat();
        feed(&mut mux, &hello, now).expect("a sound hello");
    }
    let ask = hbone::Connect::to(
        "10.0.0.1:80"
            .parse::<hbone::Authority>()
            .expect("an address"),
    );
    while client && mux.streams() < 3 {
        mux.open(&ask).expect("the first streams");
    }
    mux
}

/// What came of the bytes and is to be sent, or the end: true for one that a budget made.
pub(crate) fn feed(mux: &mut Mux, mut bytes: &[u8], now: Instant) -> Result<String, bool> {
    let mut said = String::new();
    while !bytes.is_empty() {
        let taken = mux.take(bytes, now);
        let taken = taken.map_err(|v| v.code == hbone::frames::Code::ENHANCE_YOUR_CALM)?;
        assert!(taken.used > 0 && taken.used <= bytes.len());
        said += &format!("{taken:?}");
        match taken.event {
            Some(Event::Request { stream, .. }) => {
                said += &format!("{:?}", mux.respond(stream, 200, &Default::default(), false));
            }
            Some(Event::Data { stream, range, .. }) => {
                let bytes = &bytes[range];
                mux.consumed(stream, bytes.len());
                let n = mux.room(stream).min(bytes.len());
                said += &format!("{:?}", mux.data(stream, n, false));
                mux.wait(stream);
            }
            Some(Event::Capacity { .. }) => {
                while let Some(stream) = mux.ready() {
                    said += &format!("{stream} {}", mux.room(stream));
                    assert!(mux.room(stream) > 0);
                }
            }
            Some(_) => {}
            None => assert_eq!(taken.used, bytes.len()),
        }
        bytes = &bytes[taken.used..];
    }
    let out = std::mem::take(mux.out());
    whole_frames(&out);
    Ok(format!("{said} {out:?}"))
}

/// What we send is made of whole frames that we know, on streams that clients open.
fn whole_frames(mut out: &[u8]) {
    out = out.strip_prefix(PREFACE).unwrap_or(out);
    while let Some((head, rest)) = out.split_first_chunk::<HEAD>() {
        let head = Head::parse(head);
        assert!(head.kind <= kind::CONTINUATION && head.kind != kind::PUSH_PROMISE);
        assert!(head.stream == StreamId::CONNECTION || head.stream.0 % 2 == 1);
        assert!(head.kind != kind::HEADERS || head.has(flag::END_HEADERS));
        out = &rest[head.length as usize..];
    }
    assert!(out.is_empty(), "half a frame");
}
