//! Any pieces, any bytes.

use std::time::Instant;

use hbone::frames::{Event, Mux, Settings, StreamId, flag, kind};
use proptest::prelude::*;

use super::support::{
    PREFACE, Side, acknowledgement, block, connect, frame, get, headers, settings, to,
};

/// One thing that a client may do, rightly or wrongly.
pub(crate) fn deed() -> impl Strategy<Value = Vec<u8>> {
    let stream = 0u32..9;
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        5 => (stream.clone(), any::<bool>()).prop_map(|(s, end)| headers(s, u8::from(end), &connect())),
        1 => stream.clone().prop_map(|s| headers(s, 0, &get(&[("content-length", "9")]))),
        1 => (stream.clone(), 0usize..60).prop_map(|(s, cut)| {
            let list = connect();
            let cut = cut.min(list.len());
            let first = frame(kind::HEADERS, 0, s, &list[..cut]);
            [first, frame(kind::CONTINUATION, flag::END_HEADERS, s, &list[cut..])].concat()
        }),
        8 => (stream.clone(), 0u8..16, payload.clone()).prop_map(|(s, flags, p)| frame(kind::DATA, flags, s, &p)),
        2 => stream.clone().prop_map(|s| frame(kind::RST_STREAM, 0, s, &[0, 0, 0, 8])),
        2 => (stream.clone(), any::<u32>()).prop_map(|(s, n)| frame(kind::WINDOW_UPDATE, 0, s, &n.to_be_bytes())),
        1 => (1u16..8, any::<u32>()).prop_map(|(name, value)| settings(&[(name, value)])),
        1 => Just(frame(kind::PING, 0, 0, &[7; 8])),
        1 => Just(frame(kind::GOAWAY, 0, 0, &[0; 20])),
        1 => Just(acknowledgement()),
        1 => stream.clone().prop_map(|s| headers(s, 0, &block(&[("a", "b")]))),
        1 => (any::<u8>(), any::<u8>(), stream, payload).prop_map(|(k, f, s, p)| frame(k, f, s, &p)),
    ]
}

/// What came of it: events with DATA put together, what was answered, the end.
type Outcome = (Vec<Event>, Vec<(u32, Vec<u8>)>, Vec<u8>, Option<u32>);

fn run(mut side: Side, bytes: &[u8], pieces: &[usize]) -> Outcome {
    let (mut rest, mut pieces, mut end) = (bytes, pieces.iter().cycle(), None);
    let now = Instant::now();
    while !rest.is_empty() && end.is_none() {
        let n = pieces
            .next()
            .map_or(rest.len(), |n| *n)
            .clamp(1, rest.len());
        end = side.feed_at(&rest[..n], now).err().map(|v| v.code.0);
        rest = &rest[n..];
    }
    let data = side.data.into_iter().filter(|(_, bytes)| !bytes.is_empty());
    (
        side.events,
        data.collect(),
        std::mem::take(side.mux.out()),
        end,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn pieces_of_any_size_mean_the_same(
        deeds in prop::collection::vec(deed(), 1..20),
        pieces in prop::collection::vec(1usize..30, 1..20),
    ) {
        let bytes = [PREFACE.to_vec(), settings(&[]), deeds.concat()].concat();
        let server = || Side::new(Mux::server(&Settings::server()));
        prop_assert_eq!(run(server(), &bytes, &[]), run(server(), &bytes, &pieces));
    }

    #[test]
    fn answers_in_pieces_of_any_size_mean_the_same(
        deeds in prop::collection::vec(deed(), 1..20),
        pieces in prop::collection::vec(1usize..30, 1..20),
    ) {
        let client = || {
            let mut side = Side::client(&Settings::client());
            for _ in 0..3 {
                side.mux.open(&to("a:1")).unwrap();
            }
            side
        };
        let answer = headers(3, 0, &[0x88]);
        let bytes = [answer, deeds.concat()].concat();
        prop_assert_eq!(run(client(), &bytes, &[]), run(client(), &bytes, &pieces));
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, greeted: bool, client: bool) {
        let mut side = match (client, greeted) {
            (true, false) => Side::new(Mux::client(&Settings::client())),
            (true, true) => Side::client(&Settings::client()),
            (false, false) => Side::new(Mux::server(&Settings::server())),
            (false, true) => Side::serving(),
        };
        let _ = side.feed(&bytes);
    }

    /// Whatever the peer does, we keep to its windows and every frame of ours is whole.
    #[test]
    fn whatever_comes_what_we_send_is_sound(
        deeds in prop::collection::vec(deed(), 1..30),
        sizes in prop::collection::vec(0usize..70_000, 1..30),
    ) {
        let mut side = Side::serving();
        for (deed, n) in deeds.iter().zip(sizes) {
            if side.feed(deed).is_err() {
                break;
            }
            for stream in [1, 3, 5, 7].map(StreamId) {
                let room = side.mux.room(stream);
                let _ = side.mux.respond(stream, 200, &Default::default(), false);
                let sent = side.mux.data(stream, n, false);
                prop_assert!(sent.is_none() || n <= room);
                prop_assert!(side.mux.room(stream) <= room);
                side.mux.wait(stream);
            }
            while let Some(stream) = side.mux.ready() {
                prop_assert!(side.mux.room(stream) > 0);
            }
        }
        side.sent();
    }
}
