//! Bytes that are no state of a connection are refused, each for its reason.

use hbone::frames::{Code, Mux, Settings, StateError, StreamId, flag, kind};

use super::{
    handover::remembered,
    support::{PREFACE, Side, frame, get, headers, settings},
};

/// A connection in the middle of everything: streams in all states, one queued, one that ended just
/// now, a field in the header table, half a frame, and something to be sent.
fn busy() -> Mux {
    let ours = Settings {
        stream_window: 512 << 10,
        ..Settings::server()
    };
    let mut side = Side::new(Mux::server(&ours));
    let request = remembered("10.0.0.1:80");
    let requests = [1, 3, 5].map(|s| headers(s, 0, &request)).concat();
    let hello = [PREFACE, &settings(&[(1, 0)]), &requests].concat();
    side.feed(&hello).unwrap();
    side.feed(&headers(7, 0, &get(&[("content-length", "9")])))
        .unwrap();
    side.feed(&frame(kind::DATA, 0, 1, b"unread")).unwrap();
    let answer = Default::default();
    side.mux.respond(StreamId(1), 200, &answer, false).unwrap();
    side.mux.respond(StreamId(3), 200, &answer, false).unwrap();
    side.mux.data(StreamId(1), 16_384, false).unwrap();
    side.mux.wait(StreamId(1));
    side.mux.reset(StreamId(5), Code::CANCEL);
    side.mux.go_away(Code::NO_ERROR);
    side.feed(&frame(kind::GOAWAY, 0, 0, &[0; 8])).unwrap();
    side.feed(&frame(kind::DATA, 0, 3, b"half")[..11]).unwrap();
    side.mux
}

#[test]
fn a_state_that_is_cut_off_or_goes_on_is_refused() {
    let state = busy().into_state().unwrap();
    Mux::from_state(&state).unwrap();
    for n in 0..state.len() {
        let refused = Mux::from_state(&state[..n]).unwrap_err();
        assert_eq!(refused, StateError::Length, "of {n} bytes");
    }
    let more = [&state[..], &[0]].concat();
    assert_eq!(Mux::from_state(&more).unwrap_err(), StateError::Length);
    let other = [&[1], &state[1..]].concat();
    assert_eq!(Mux::from_state(&other).unwrap_err(), StateError::Version(1));
}

/// Offsets in the state of [`busy`], as the layout has them.
mod at {
    pub(super) const MARKS: usize = 1;
    pub(super) const OURS: usize = 2;
    pub(super) const THEIRS: usize = OURS + 24;
    pub(super) const NEWEST: usize = THEIRS + 12;
    pub(super) const SEND: usize = NEWEST + 4;
    pub(super) const RECEIVE: usize = SEND + 8;
    pub(super) const EARNED: usize = RECEIVE + 12;
    pub(super) const LEAVING: usize = EARNED + 4;
    pub(super) const TOLD: usize = LEAVING + 1;
    pub(super) const STREAMS: usize = TOLD + 5 + 4;
    pub(super) const RECENT: usize = STREAMS + 3 * 21 + 2;
    pub(super) const QUEUE: usize = RECENT + 9 + 4;
    pub(super) const TABLE: usize = QUEUE + 4;
    pub(super) const BLOCK: usize = TABLE + 4 + 3 * (2 + 10 + 2 + 11);
    pub(super) const PHASE: usize = BLOCK + 1;
}

#[test]
fn what_no_connection_can_be_in_is_refused() {
    const MANY: &[u8] = &[0x80, 0, 0, 0];
    let stream = |n: usize| at::STREAMS + 21 * n;
    let cases: &[(usize, &[u8], &str)] = &[
        (at::MARKS, &[0x22], "a mark that no connection has"),
        (at::MARKS, &[0x08], "heard of a peer that said nothing"),
        (at::MARKS, &[0x12], "a table nobody asked for"),
        (at::OURS, MANY, "a window of ours is too large"),
        (at::OURS + 4, MANY, "a window of ours is too large"),
        (at::OURS + 4, &[0; 4], "a stream's window becomes smaller"),
        (at::OURS + 8, MANY, "a window of ours is too large"),
        (
            at::OURS + 12,
            &[0, 0, 0x3f, 0xff],
            "our largest frame is none",
        ),
        (
            at::OURS + 20,
            &[0, 0, 0, 2],
            "more streams than may be open",
        ),
        (at::THEIRS + 4, MANY, "the peer's window is too large"),
        (
            at::THEIRS + 8,
            &[1, 0, 0, 0],
            "the peer's largest frame is none",
        ),
        (at::NEWEST, MANY, "a stream's number of 32 bits"),
        (
            at::NEWEST,
            &[0, 0, 0, 8],
            "the newest stream is none of a client",
        ),
        (at::NEWEST, &[0, 0, 0, 5], "streams out of order"),
        (
            at::SEND,
            &[0, 1, 0, 0],
            "a connection window of the peer's is too large",
        ),
        (
            at::SEND + 4,
            MANY,
            "a connection window of the peer's is too large",
        ),
        (
            at::RECEIVE,
            &[1, 0, 0, 1],
            "a connection window beyond what may lie unread",
        ),
        (
            at::RECEIVE + 4,
            &[1, 0, 0, 1],
            "a connection window beyond what may lie unread",
        ),
        (
            at::RECEIVE + 8,
            &[0; 4],
            "a connection window beyond what may lie unread",
        ),
        (at::RECEIVE + 4, &[0; 4], "DATA that cannot have begun"),
        (
            at::EARNED,
            &[0, 0x10, 0, 1],
            "more credits than can be in hand",
        ),
        (at::LEAVING, &[3], "we go in a way that is none"),
        (at::TOLD, &[2], "neither yes nor no"),
        (stream(0), &[0, 0, 0, 3], "streams out of order"),
        (stream(0), &[0, 0, 0, 2], "streams out of order"),
        (stream(2), &[0, 0, 0, 9], "streams out of order"),
        (
            stream(0) + 8,
            &[0, 0x40, 0, 1],
            "a stream's window is beyond what was announced",
        ),
        (stream(0) + 16, &[0; 4], "a tunnel declares content"),
        (
            stream(0) + 8,
            &[0, 0x08, 0, 1],
            "a stream's window is beyond what was announced",
        ),
        (stream(0) + 20, &[0x1c | 0x20], "a mark that no stream has"),
        (
            stream(0) + 20,
            &[0x1c | 0xc0],
            "a stream that has grown grows again",
        ),
        (stream(0) + 20, &[0x1f], "a stream that has ended is open"),
        (
            stream(0) + 20,
            &[0x1a],
            "a stream went on before it was answered",
        ),
        (stream(2) + 20, &[0x01], "content ended too soon"),
        (
            stream(0) + 20,
            &[0x0c],
            "a stream is queued that does not wait",
        ),
        (stream(1) + 20, &[0x1c], "a stream waits and is not queued"),
        (
            stream(1) + 20,
            &[0x0d],
            "DATA on a stream that may have none",
        ),
        (at::RECENT - 2, &[1, 1], "too many streams that ended"),
        (at::RECENT, &[0, 0, 0, 3], "a stream that never ended"),
        (at::RECENT, &[0, 0, 0, 9], "a stream that never ended"),
        (
            at::RECENT + 4,
            &[0, 0x40, 0, 1],
            "a stream's window was beyond what was announced",
        ),
        (at::RECENT + 8, &[2], "neither yes nor no"),
        (
            at::QUEUE,
            &[0, 0, 0, 5],
            "a stream is queued that does not wait",
        ),
        (
            at::TABLE,
            &[0x10, 1],
            "a header table is larger than allowed",
        ),
        (at::TABLE, &[0, 150], "more in a header table than fits"),
        (at::BLOCK, &[2], "neither yes nor no"),
        (at::PHASE, &[6], "the next byte belongs to nothing"),
        (at::PHASE + 1, &[0, 0, 0, 9], "DATA that cannot have begun"),
        (at::PHASE + 5, &[0; 4], "DATA that cannot have begun"),
        (at::PHASE + 10, &[2], "neither yes nor no"),
    ];
    let state = busy().into_state().unwrap();
    for (at, bytes, what) in cases {
        let mut state = state.clone();
        state[*at..*at + bytes.len()].copy_from_slice(bytes);
        let refused = Mux::from_state(&state).unwrap_err();
        assert_eq!(refused, StateError::Impossible(what), "{bytes:x?} at {at}");
    }
}

/// The end of a state, from the header block on, of a server in mid-connection.
#[test]
fn what_no_frame_can_be_in_is_refused() {
    let mut side = Side::serving();
    side.mux.go_away(Code::NO_ERROR);
    side.mux.out().clear();
    let state = side.mux.into_state().unwrap();
    // No block, in a head of which nothing has come, nothing to be sent.
    let end = [0, 1, 0, 0, 0, 0, 0];
    assert!(state.ends_with(&end));
    let front = &state[..state.len() - end.len()];
    let whole = |head: &[u8], partial: &[u8]| {
        let length = (partial.len() as u32).to_be_bytes();
        [&[0, 4], head, &length, partial].concat()
    };
    let first = |bytes: &[u8]| <[u8; 9]>::try_from(&bytes[..9]).unwrap();
    let ping = first(&frame(kind::PING, 0, 0, &[0; 8]));
    let misplaced = first(&frame(kind::PING, 0, 1, &[0; 8]));
    let continued = first(&frame(kind::CONTINUATION, 0, 1, &[0; 8]));
    let reserved = {
        let mut head = first(&frame(kind::RST_STREAM, 0, 1, &[0; 4]));
        head[5] = 0x80;
        head
    };
    let padded = first(&frame(kind::DATA, flag::PADDED, 1, &[0; 8]));
    let plain = first(&frame(kind::DATA, 0, 1, &[0; 8]));
    let block = |stream: u8, continuations: u8, length: u32, phase: &[u8]| {
        let bytes = vec![0; length as usize];
        let head = [1, 0, 0, 0, stream, 0, 0, continuations];
        [&head[..], &length.to_be_bytes(), &bytes, phase].concat()
    };
    let between = [1, 0];
    let sound = [
        whole(&ping, &[1; 7]),
        [&[0, 2][..], &padded].concat(),
        [0, 5, 0, 0x10, 0, 0].to_vec(),
        [&[0, 1, 8][..], &[255; 8]].concat(),
        block(1, 8, 128 << 10, &between),
        block(1, 7, 0, &whole(&continued, b"")[1..]),
    ];
    for (n, end) in sound.iter().enumerate() {
        let state = [front, end, &[0; 4]].concat();
        let mux = Mux::from_state(&state).unwrap_or_else(|e| panic!("{n}: {e}"));
        assert_eq!(mux.into_state(), Some(state));
    }
    let cases: &[(Vec<u8>, &str)] = &[
        ([0, 0, 5].to_vec(), "a preface that is none"),
        ([0, 1, 9].to_vec(), "a head that is too long"),
        ([&[0, 2][..], &plain].concat(), "padding of what has none"),
        ([&[0, 2][..], &ping].concat(), "padding of what has none"),
        (
            block(1, 8, 0, &whole(&continued, b"")[1..]),
            "a frame that waits for nothing",
        ),
        (
            block(3, 7, 0, &whole(&continued, b"")[1..]),
            "a frame that waits for nothing",
        ),
        (
            block(1, 0, 0, &whole(&ping, b"")[1..]),
            "inside a frame that may not come",
        ),
        (
            block(1, 0, 0, &[5, 0, 0, 0, 1]),
            "bytes to be passed over in no frame",
        ),
        (whole(&ping, &[1; 8]), "a frame that waits for nothing"),
        (whole(&plain, &[]), "a frame that waits for nothing"),
        (whole(&misplaced, &[]), "inside a frame that may not come"),
        (whole(&continued, &[]), "inside a frame that may not come"),
        (whole(&reserved, &[]), "inside a frame that may not come"),
        (
            [0, 5, 0, 0, 0, 0].to_vec(),
            "bytes to be passed over in no frame",
        ),
        (
            [0, 5, 0, 0x10, 0, 1].to_vec(),
            "bytes to be passed over in no frame",
        ),
        (
            block(0, 0, 0, &between),
            "a header block that cannot have begun",
        ),
        (
            block(9, 9, 0, &between),
            "a header block that cannot have begun",
        ),
        (
            block(9, 0, (128 << 10) + 1, &between),
            "a header block that cannot have begun",
        ),
    ];
    for (end, what) in cases {
        let refused = Mux::from_state(&[front, end, &[0; 4]].concat()).unwrap_err();
        assert_eq!(refused, StateError::Impossible(what), "{end:x?}");
    }
}
