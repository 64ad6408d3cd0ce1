//! A connection that goes on elsewhere goes on as if nothing had been.

use std::{collections::BTreeMap, time::Instant};

use hbone::frames::{Code, Event, Mux, Settings, StreamId, flag, kind};
use proptest::prelude::*;

use super::{
    random::deed,
    support::{
        PREFACE, Side, acknowledgement, block, connect, frame, get, hand_over, headers, settings,
        to,
    },
};

/// What one of both sides does.
#[derive(Debug, Clone)]
enum Step {
    /// The peer does anything.
    Comes(Vec<u8>),
    /// The peer asks on its next stream (server).
    Asks {
        end: bool,
        block: Vec<u8>,
    },
    Open,
    Respond {
        stream: u32,
        end: bool,
    },
    Send {
        stream: u32,
        n: usize,
        end: bool,
    },
    Ready,
    /// The first of what lies unread.
    Read {
        stream: u32,
        n: usize,
    },
    Reset(u32),
    Ping,
    GoAway,
    Grow(u32),
    /// So much of what is to be sent has been.
    Written(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let stream = prop::sample::select(vec![1u32, 3, 5, 7]);
    let request = prop_oneof![
        3 => Just(connect()),
        1 => Just(get(&[("content-length", "50")])),
        2 => (0u16..4).prop_map(|n| remembered(&format!("10.0.0.1:{n}"))),
        2 => (0xbeu8..0xc2).prop_map(|index| [b"\x02\x07CONNECT", &[index][..]].concat()),
        1 => Just(b"\x3f\x40\x02\x07CONNECT\x41\x03a:1".to_vec()),
    ];
    let data = (stream.clone(), 0u8..2, 0usize..3000)
        .prop_map(|(s, end, n)| frame(kind::DATA, end, s, &vec![7; n]));
    let padded = (stream.clone(), 1u8..200).prop_map(|(s, n)| {
        let padding = vec![0; n.into()];
        frame(
            kind::DATA,
            flag::PADDED,
            s,
            &[&[n], &b"some"[..], &padding].concat(),
        )
    });
    let window = (stream.clone(), 1u32..90_000)
        .prop_map(|(s, n)| frame(kind::WINDOW_UPDATE, 0, s, &n.to_be_bytes()));
    let room = (1u32..90_000).prop_map(|n| frame(kind::WINDOW_UPDATE, 0, 0, &n.to_be_bytes()));
    let resized = (0u32..100_000).prop_map(|n| settings(&[(1, 0), (4, n)]));
    let answered = stream.clone().prop_map(|s| headers(s, 0, &[0x88]));
    let away = prop::sample::select(vec![3u8, 5, 99]).prop_map(|last| {
        frame(
            kind::GOAWAY,
            0,
            0,
            &[&[0, 0, 0, last][..], &[0; 9]].concat(),
        )
    });
    let last_call = Just(frame(kind::PING, flag::ACK, 0, b"lastcall"));
    let in_pieces = stream.clone().prop_map(|s| {
        let first = frame(kind::HEADERS, 0, s, &connect()[..5]);
        [
            first,
            frame(kind::CONTINUATION, flag::END_HEADERS, s, &connect()[5..]),
        ]
        .concat()
    });
    let reset = stream
        .clone()
        .prop_map(|s| frame(kind::RST_STREAM, 0, s, &[0, 0, 0, 8]));
    let comes = prop_oneof![
        12 => data, 3 => padded, 3 => window, 3 => room, 2 => resized, 6 => answered, 1 => away,
        1 => last_call, 1 => in_pieces, 2 => reset, 1 => Just(acknowledgement()),
        1 => Just(frame(0xbb, 1, 0, &[1; 50])),
        1 => deed(),
    ];
    prop_oneof![
        14 => comes.prop_map(Step::Comes),
        4 => (prop::bool::weighted(0.1), request).prop_map(|(end, block)| Step::Asks { end, block }),
        3 => Just(Step::Open),
        5 => (stream.clone(), prop::bool::weighted(0.1)).prop_map(|(stream, end)| Step::Respond { stream, end }),
        8 => (stream.clone(), 0usize..60_000, prop::bool::weighted(0.1))
            .prop_map(|(stream, n, end)| Step::Send { stream, n, end }),
        2 => Just(Step::Ready),
        4 => (stream.clone(), 1usize..3000).prop_map(|(stream, n)| Step::Read { stream, n }),
        1 => stream.prop_map(Step::Reset),
        1 => Just(Step::Ping),
        1 => Just(Step::GoAway),
        1 => (0u32..90_000).prop_map(Step::Grow),
        2 => (0usize..100).prop_map(Step::Written),
    ]
}

/// A connection, and what the caller of a [`Mux`] remembers.
struct End {
    mux: Mux,
    unread: BTreeMap<StreamId, usize>,
    next: u32,
    now: Instant,
}

impl End {
    fn new(client: bool, now: Instant) -> Self {
        let settings = Settings {
            stream_window: 9000,
            connection_window: 80_000,
            frame: 16_384,
            streams: 6,
            ..Settings::server()
        };
        Self {
            mux: match client {
                true => Mux::client(&settings),
                false => Mux::server(&settings),
            },
            unread: BTreeMap::new(),
            next: 1,
            now,
        }
    }

    /// Takes bytes in pieces; before each, `between` is done. What came of it, and whether it goes on.
    fn feed(&mut self, mut bytes: &[u8], piece: usize, moves: bool, said: &mut String) -> bool {
        while !bytes.is_empty() {
            if moves {
                assert!(hand_over(&mut self.mux), "it goes on");
            }
            let (front, rest) = bytes.split_at(piece.min(bytes.len()));
            let mut front = front;
            bytes = rest;
            while !front.is_empty() {
                let taken = self.mux.take(front, self.now);
                *said += &format!("{taken:?}; ");
                let Ok(taken) = taken else {
                    return false;
                };
                if let Some(Event::Data { stream, range, .. }) = taken.event {
                    *self.unread.entry(stream).or_default() += range.len();
                }
                front = &front[taken.used..];
            }
        }
        true
    }

    fn step(&mut self, step: &Step, piece: usize, moves: bool, said: &mut String) -> bool {
        let mux = &mut self.mux;
        match step {
            Step::Comes(bytes) => return self.feed(bytes, piece, moves, said),
            Step::Asks { end, block } => {
                let bytes = headers(self.next, u8::from(*end), block);
                self.next += 2;
                return self.feed(&bytes, piece, moves, said);
            }
            Step::Open => *said += &format!("{:?}", mux.open(&to("10.0.0.1:80"))),
            Step::Respond { stream, end } => {
                let answer = mux.respond(StreamId(*stream), 200, &Default::default(), *end);
                *said += &format!("{answer:?}");
            }
            Step::Send { stream, n, end } => {
                let stream = StreamId(*stream);
                let n = mux.room(stream).min(*n);
                *said += &format!("{:?}", mux.data(stream, n, *end && n > 0));
                mux.wait(stream);
            }
            Step::Ready => *said += &format!("{:?}", mux.ready()),
            Step::Read { stream, n } => {
                let stream = StreamId(*stream);
                let unread = self.unread.entry(stream).or_default();
                let n = (*n).min(*unread);
                *unread -= n;
                mux.consumed(stream, n);
            }
            Step::Reset(stream) => mux.reset(StreamId(*stream), Code::CANCEL),
            Step::Ping => mux.ping(*b"whatever"),
            Step::GoAway => mux.go_away(Code::NO_ERROR),
            Step::Grow(unread) => mux.grow(*unread),
            Step::Written(n) => {
                let n = (*n).min(mux.out().len());
                mux.out().drain(..n);
            }
        }
        true
    }

    /// All that can be seen from outside.
    fn seen(&mut self, said: &mut String) {
        let mux = &self.mux;
        let rooms = [1, 3, 5, 7, 9].map(|s| mux.room(StreamId(s)));
        let numbers = (
            mux.streams(),
            mux.most(),
            mux.stalled(),
            mux.going_away(),
            mux.done(),
        );
        *said += &format!("{rooms:?} {numbers:?} {:?}", self.mux.out());
    }
}

/// The beginning of a connection: four streams, of which two are answered.
fn hello_of(client: bool) -> Vec<Step> {
    let stream = |nth: u32| 2 * nth + 1;
    let hello = settings(&[(3, 4)]);
    let comes = Step::Comes;
    if client {
        let opened = (0..4).map(|_| Step::Open);
        let answered = (0..2).map(|nth| comes(headers(stream(nth), 0, &[0x88])));
        return [comes(hello)]
            .into_iter()
            .chain(opened)
            .chain(answered)
            .collect();
    }
    let asked = (0..4).map(|_| Step::Asks {
        end: false,
        block: remembered("10.0.0.1:80"),
    });
    let answered = (0..2).map(|nth| Step::Respond {
        stream: stream(nth),
        end: false,
    });
    let hello = comes([PREFACE, &hello].concat());
    [hello].into_iter().chain(asked).chain(answered).collect()
}

/// A request of a peer that has us remember fields, as many do before they hear that we remember none.
pub(crate) fn remembered(authority: &str) -> Vec<u8> {
    let front = [&b"\x02\x07CONNECT\x41"[..], &[authority.len() as u8]].concat();
    [&front, authority.as_bytes()].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_connection_goes_on_elsewhere_as_if_nothing_had_been(
        client: bool,
        steps in prop::collection::vec((step(), 1usize..400, prop::bool::weighted(0.7)), 1..40),
        hello in (1usize..40, any::<bool>()),
    ) {
        let now = Instant::now();
        let (mut stays, mut moves) = (End::new(client, now), End::new(client, now));
        let hello = hello_of(client).into_iter().map(|step| (step, hello.0, hello.1));
        let steps = hello.chain(steps);
        for (step, piece, moved) in steps {
            if moved {
                prop_assert!(hand_over(&mut moves.mux), "it goes on");
            }
            let (mut here, mut there) = (String::new(), String::new());
            let goes_on = stays.step(&step, piece, false, &mut here);
            moves.step(&step, piece, moved, &mut there);
            stays.seen(&mut here);
            moves.seen(&mut there);
            prop_assert_eq!(here, there, "{:?}", step);
            if !goes_on {
                break;
            }
        }
        prop_assert_eq!(stays.mux.into_state(), moves.mux.into_state());
    }

    /// Whatever the bytes: refused, or one of the states there are, which has one way to be written, and
    /// nothing that follows is a surprise.
    #[test]
    fn a_state_with_changed_bytes_is_refused_or_is_another_state(
        client: bool,
        steps in prop::collection::vec((step(), 1usize..400), 1..30),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        after in prop::collection::vec(step(), 1..20),
    ) {
        let mut end = End::new(client, Instant::now());
        let mut said = String::new();
        let steps = hello_of(client).into_iter().map(|step| (step, 100)).chain(steps);
        for (step, piece) in steps {
            if !end.step(&step, piece, false, &mut said) {
                return Ok(());
            }
        }
        let mut state = end.mux.into_state().unwrap();
        for (index, byte) in changes {
            *index.get_mut(&mut state) = byte;
        }
        let Ok(mux) = Mux::from_state(&state) else {
            return Ok(());
        };
        let again = mux.into_state();
        prop_assert_eq!(again.as_ref(), Some(&state));
        end.mux = Mux::from_state(&state).unwrap();
        end.unread.clear();
        for step in after {
            if !end.step(&step, 50, false, &mut said) {
                return Ok(());
            }
            end.seen(&mut said);
            prop_assert!(hand_over(&mut end.mux), "it goes on");
        }
    }

    #[test]
    fn no_bytes_for_a_state_panic(version in 0u8..3, bytes: Vec<u8>) {
        let _ = Mux::from_state(&[&[version][..], &bytes].concat());
    }
}

/// What one of both says, from hello to goodbye.
fn conversation(client: bool) -> Vec<u8> {
    let continued = [
        frame(kind::HEADERS, 0, 9, &connect()[..5]),
        frame(kind::CONTINUATION, 0, 9, &connect()[5..9]),
        frame(kind::CONTINUATION, flag::END_HEADERS, 9, &connect()[9..]),
    ];
    let of_client = [
        PREFACE.to_vec(),
        settings(&[(1, 0), (3, 9)]),
        headers(1, 0, &remembered("10.0.0.1:80")),
        headers(3, 0, &remembered("10.0.0.2:80")),
        // The older of both.
        headers(7, 0, b"\x02\x07CONNECT\xbf"),
        continued.concat(),
    ];
    let of_server = [
        settings(&[(3, 9)]),
        headers(1, 0, &[0x88]),
        headers(3, 0, &block(&[(":status", "200"), ("baggage", "a=1")])),
        headers(5, flag::END_STREAM, &block(&[(":status", "503")])),
    ];
    let padded = frame(kind::DATA, flag::PADDED, 1, b"\x05padded\0\0\0\0\0");
    let of_both = [
        acknowledgement(),
        padded,
        frame(kind::DATA, 0, 3, b"some bytes"),
        frame(kind::PING, 0, 0, &[1; 8]),
        frame(kind::PRIORITY, 0, 3, &[0; 5]),
        frame(0xbb, 0, 0, b"unknown"),
        frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 1, 0]),
        frame(kind::DATA, flag::END_STREAM, 1, b"the end"),
        frame(kind::RST_STREAM, 0, 3, &[0; 4]),
        frame(kind::GOAWAY, 0, 0, &[0; 20]),
    ];
    let first = if client {
        of_server.concat()
    } else {
        of_client.concat()
    };
    [first, of_both.concat()].concat()
}

#[test]
fn between_any_two_bytes_a_connection_may_be_handed_over() {
    for client in [false, true] {
        let run = |moves: bool| {
            let mut end = End::new(client, Instant::now());
            let mut said = String::new();
            for _ in 0..3 {
                assert!(end.step(&Step::Open, 1, false, &mut said));
            }
            assert!(
                end.feed(&conversation(client), 1, moves, &mut said),
                "{said}"
            );
            end.seen(&mut said);
            (said, end.mux.into_state())
        };
        assert_eq!(run(false), run(true), "client: {client}");
    }
}

#[test]
fn a_state_is_small() {
    let size = |mux: Mux| mux.into_state().unwrap().len();
    let mut side = Side::server(&Settings::server());
    for n in 0..100 {
        side.feed(&headers(2 * n + 1, 0, &connect())).unwrap();
    }
    side.mux.out().clear();
    let with_streams = size(side.mux);
    let without = size(Side::server(&Settings::server()).mux);
    assert_eq!((without, with_streams), (89, 89 + 100 * 21));
}

#[test]
fn what_is_over_is_not_handed_over() {
    let mut side = Side::serving();
    side.feed(&frame(kind::DATA, 0, 0, b"x")).unwrap_err();
    assert_eq!(side.mux.into_state(), None);
    let mut side = Side::serving();
    side.mux.go_away(Code::INTERNAL_ERROR);
    assert_eq!(side.mux.into_state(), None);
}

#[test]
fn the_budgets_begin_anew() {
    let flood = frame(kind::SETTINGS, 0, 0, &[]).repeat(40);
    let mut side = Side::serving();
    side.feed(&flood).unwrap();
    assert!(hand_over(&mut side.mux));
    side.feed(&flood).unwrap();
    side.feed(&flood).unwrap_err();
}
