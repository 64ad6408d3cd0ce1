//! What costs work and carries nothing is cut off by name, and no sooner than an honest peer might.

use std::time::{Duration, Instant};

use hbone::{
    Refusal,
    frames::{Code, Event, Mux, Settings, StreamId, Violation, flag, kind},
};

use super::support::{PREFACE, Side, block, connect, frame, headers, settings};

/// Feeds the `n`th bytes until the connection ends, at most 50,000 times, within one moment. Gives how
/// many were taken.
fn flood(
    side: &mut Side,
    now: Instant,
    bytes: impl Fn(u32) -> Vec<u8>,
) -> (u32, Option<Violation>) {
    for n in 0..50_000 {
        if let Err(violation) = side.feed_at(&bytes(n), now) {
            return (n, Some(violation));
        }
        // Someone reads what we answer.
        side.mux.out().clear();
        side.events.clear();
    }
    (50_000, None)
}

#[test]
fn floods_are_cut_off_by_name() {
    let request = |n: u32| headers(2 * n + 3, 0, &connect());
    let rst = |stream: u32| frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]);
    for (what, bytes, taken, refusal) in [
        (
            "PING",
            Box::new(|_| frame(kind::PING, 0, 0, &[0; 8])) as Box<dyn Fn(u32) -> Vec<u8>>,
            1000,
            Refusal::PingFlood,
        ),
        (
            "answers to no PING",
            Box::new(|_| frame(kind::PING, flag::ACK, 0, &[0; 8])),
            1000,
            Refusal::PingFlood,
        ),
        (
            "SETTINGS",
            Box::new(|_| settings(&[(4, 65_535)])),
            48, // two were needed to say hello
            Refusal::SettingsFlood,
        ),
        (
            "a header table that comes and goes",
            Box::new(|n| settings(&[(1, n % 2 * 4096)])),
            48,
            Refusal::SettingsFlood,
        ),
        (
            "empty DATA",
            Box::new(|_| frame(kind::DATA, 0, 1, &[])),
            64,
            Refusal::EmptyDataFlood,
        ),
        (
            "DATA of nothing but padding",
            Box::new(|_| frame(kind::DATA, flag::PADDED, 1, &[1, 0])),
            64,
            Refusal::EmptyDataFlood,
        ),
        (
            "PRIORITY",
            Box::new(|_| frame(kind::PRIORITY, 0, 1, &[0; 5])),
            1000,
            Refusal::IdleFrameFlood,
        ),
        (
            "unknown frames",
            Box::new(|_| frame(0xbb, 0, 0, b"x")),
            1000,
            Refusal::IdleFrameFlood,
        ),
        (
            "goodbyes",
            Box::new(|_| frame(kind::GOAWAY, 0, 0, &[0; 8])),
            1000,
            Refusal::IdleFrameFlood,
        ),
        (
            "credit for nothing",
            Box::new(|_| frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
            1000,
            Refusal::IdleFrameFlood,
        ),
        (
            "rapid reset",
            Box::new(move |n| [request(n), rst(2 * n + 3)].concat()),
            1000,
            Refusal::ResetFlood,
        ),
        (
            "resets of what has ended",
            Box::new(move |_| rst(1)),
            20_000,
            Refusal::ResetFlood,
        ),
        (
            "made you reset, by credit",
            Box::new(move |n| {
                let credit = frame(kind::WINDOW_UPDATE, 0, 2 * n + 3, &[0; 4]);
                [request(n), credit].concat()
            }),
            1000,
            Refusal::IdleFrameFlood, // what the credits themselves are first
        ),
        (
            "made you reset, by DATA behind the end",
            Box::new(move |n| {
                let ended = headers(2 * n + 3, flag::END_STREAM, &connect());
                [ended, frame(kind::DATA, 0, 2 * n + 3, b"x")].concat()
            }),
            1000,
            Refusal::ResetFlood,
        ),
        (
            "requests that make no sense",
            Box::new(|n| headers(2 * n + 3, 0, &[])),
            1000,
            Refusal::ResetFlood,
        ),
        (
            "DATA for what has ended long ago",
            Box::new(|n| match n {
                0 => frame(kind::RST_STREAM, 0, 1, &[0; 4]),
                _ => frame(kind::DATA, 0, 1, b"x"),
            }),
            1001,
            Refusal::ResetFlood,
        ),
    ] {
        // Not after it has said hello: no time passes in which it would earn more.
        let now = Instant::now();
        let mut side = Side::serving();
        let (n, violation) = flood(&mut side, now, bytes);
        let violation = violation.expect(what);
        assert_eq!(violation.code, Code::ENHANCE_YOUR_CALM, "{what}");
        assert_eq!((n, violation.refusal), (taken, refusal), "{what}");
    }
}

#[test]
fn a_flood_of_requests_beyond_the_limit_is_cut_off() {
    let mut side = Side::server(&Settings::server());
    let request = |n: u32| headers(2 * n + 1, 0, &connect());
    let (n, violation) = flood(&mut side, Instant::now(), request);
    assert_eq!((n, violation.unwrap().refusal), (1200, Refusal::ResetFlood));
    assert_eq!(side.mux.streams(), 200);
}

#[test]
fn a_header_block_without_end_is_cut_off_by_size_and_by_number() {
    let filler = block(&[("x-filler", &"x".repeat(1000))]);
    let begin = frame(kind::HEADERS, 0, 1, &connect());
    for (piece, most) in [(filler, 8), (vec![], 8), (vec![0; 70_000], 1)] {
        let mut side = Side::server(&Settings::server());
        side.feed(&begin).unwrap();
        let more = |_: u32| frame(kind::CONTINUATION, 0, 1, &piece);
        let (n, violation) = flood(&mut side, Instant::now(), more);
        let violation = violation.unwrap();
        assert_eq!((n, violation.refusal), (most, Refusal::Excess));
        assert_eq!(violation.code, Code::ENHANCE_YOUR_CALM);
    }
    // By its head alone: not a byte of it is kept.
    let mut side = Side::server(&Settings::server());
    let large = frame(kind::HEADERS, 0, 1, &vec![0; 200_000]);
    let error = side.feed(&large[..9]).unwrap_err();
    assert_eq!(error.refusal, Refusal::Excess);
}

#[test]
fn a_small_block_that_unfolds_into_a_large_list_is_refused_before_it_is_kept() {
    let mut side = Side::new(Mux::server(&Settings::server()));
    side.feed(PREFACE).unwrap();
    side.feed(&settings(&[])).unwrap();
    // One field of 4,000 bytes is remembered and then named 200 times.
    let mut bomb = connect();
    bomb.extend(b"\x40\x01x\x7f\xa1\x1e");
    bomb.extend(vec![b'y'; 4000]);
    bomb.extend(vec![0xbe; 200]);
    side.feed(&headers(1, 0, &bomb)).unwrap();
    assert_eq!(side.mux.streams(), 0);
    let refusal = Event::Refused {
        stream: StreamId(1),
        kind: Refusal::MalformedStream,
    };
    assert_eq!(side.events, [refusal]);
}

#[test]
fn a_block_that_has_a_name_remembered_again_and_again_ends_the_connection() {
    let mut side = Side::new(Mux::server(&Settings::server()));
    side.feed(PREFACE).unwrap();
    side.feed(&settings(&[])).unwrap();
    let mut churn = connect();
    churn.extend(b"\x40\x7f\xa1\x1e");
    churn.extend(vec![b'n'; 4000]);
    churn.push(0);
    churn.extend(b"\x7e\x00".repeat(60_000));
    let error = side.feed(&headers(1, 0, &churn)).unwrap_err();
    assert_eq!(error.code, Code::COMPRESSION_ERROR);
}

#[test]
fn an_honest_peer_may_go_on_for_ever() {
    let mut side = Side::serving();
    let start = Instant::now();
    let one = StreamId(1);
    for n in 0..20_000u32 {
        let now = start + Duration::from_millis(n.into());
        // A round trip of 64 bytes, both credits given back at once, a PING now and then.
        side.feed_at(&frame(kind::DATA, 0, 1, &[0; 64]), now)
            .unwrap();
        side.mux.consumed(one, 64);
        side.mux.data(one, 64, false).unwrap();
        for stream in [0, 1] {
            let credit = frame(kind::WINDOW_UPDATE, 0, stream, &[0, 0, 0, 64]);
            side.feed_at(&credit, now).unwrap();
        }
        if n % 20 == 0 {
            side.feed_at(&frame(kind::PING, 0, 0, &[0; 8]), now)
                .unwrap();
        }
        // A connection that its app cuts after the answer.
        let stream = 2 * n + 3;
        side.feed_at(&headers(stream, 0, &connect()), now).unwrap();
        side.mux
            .respond(StreamId(stream), 200, &Default::default(), false)
            .unwrap();
        side.feed_at(&frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]), now)
            .unwrap();
        side.mux.out().clear();
        side.data.clear();
        side.events.clear();
    }
}

#[test]
fn nobody_is_cut_off_for_the_age_of_a_connection() {
    let start = Instant::now();
    let mut side = Side::serving();
    // Of a day: each ten seconds a PING, the answer to ours, and somebody who gives up before he is answered; each minute
    // SETTINGS, and a frame that we have no use for.
    for n in 0..8640u32 {
        let now = start + Duration::from_secs(10 * u64::from(n));
        let stream = 2 * n + 3;
        let mut said = [
            frame(kind::PING, 0, 0, &[0; 8]),
            frame(kind::PING, flag::ACK, 0, &[0; 8]),
            headers(stream, 0, &connect()),
            frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]),
        ]
        .concat();
        if n % 6 == 0 {
            said.extend(settings(&[(4, 65_535)]));
            said.extend(frame(0xbb, 0, 0, b"x"));
        }
        let heard = side.feed_at(&said, now);
        assert!(heard.is_ok(), "after {} seconds: {heard:?}", 10 * n);
        side.mux.out().clear();
        side.events.clear();
    }
}
