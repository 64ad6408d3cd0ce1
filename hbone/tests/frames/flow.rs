//! Credit: given on receipt for the connection, on consumption for a stream; kept to when sending.

use hbone::frames::{Code, Event, Mux, Settings, StreamId, flag, kind};

use super::support::{Side, connect, frame, headers, reset, settings};

const KIB: usize = 1 << 10;
const ONE: StreamId = StreamId(1);

fn data(stream: u32, n: usize) -> Vec<u8> {
    frame(kind::DATA, 0, stream, &vec![7; n])
}

fn update(stream: u32, n: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &n.to_be_bytes())
}

/// Streams 1, 3, … are open and answered; windows are small.
fn small(streams: u32) -> Side {
    let figures = Settings {
        stream_window: 128 * KIB as u32,
        grown_stream_window: 128 * KIB as u32,
        connection_window: 256 * KIB as u32,
        ..Settings::server()
    };
    let mut side = Side::server(&figures);
    for n in 0..streams {
        side.feed(&headers(2 * n + 1, 0, &connect())).unwrap();
        let stream = StreamId(2 * n + 1);
        side.mux
            .respond(stream, 200, &Default::default(), false)
            .unwrap();
    }
    side.events.clear();
    side.mux.out().clear();
    side
}

#[test]
fn a_stream_that_nobody_reads_holds_up_only_itself() {
    let mut side = small(3);
    side.mux.grow(512 * KIB as u32);
    side.feed(&data(1, 128 * KIB)).unwrap();
    side.feed(&data(3, 128 * KIB)).unwrap();
    let said = side.said();
    assert!(said.iter().all(|(_, stream, _)| *stream == 0), "{said:?}");
    let credit: u32 = said.iter().map(|(.., n)| n).sum();
    assert_eq!(credit, 256 << 10, "all of it came back at once");
    side.feed(&data(5, 64 * KIB)).unwrap();
    side.mux.consumed(StreamId(5), 64 * KIB);
    let said = side.said();
    assert!(
        said.contains(&(kind::WINDOW_UPDATE, 5, 64 << 10)),
        "{said:?}"
    );
    side.feed(&data(1, 1)).unwrap();
    assert_eq!(side.said(), [reset(1, Code::FLOW_CONTROL_ERROR)]);
}

/// Streams 1, 3, … whose windows may grow from 128 KiB to 1 MiB, within what the connection's allows.
fn growing(streams: u32, connection_window: u32) -> Side {
    let figures = Settings {
        stream_window: 128 * KIB as u32,
        grown_stream_window: 1024 * KIB as u32,
        connection_window,
        ..Settings::server()
    };
    let mut side = Side::server(&figures);
    for stream in (0..streams).map(|n| 2 * n + 1) {
        side.feed(&headers(stream, 0, &connect())).unwrap();
        side.mux
            .respond(StreamId(stream), 200, &Default::default(), false)
            .unwrap();
    }
    side.events.clear();
    side.mux.out().clear();
    side
}

/// Sends half of the first window and reads it, so many times; what credit the stream is given.
fn prompt(side: &mut Side, stream: u32, times: u32) -> u32 {
    for _ in 0..times {
        side.feed(&data(stream, 64 * KIB)).unwrap();
        side.mux.consumed(StreamId(stream), 64 * KIB);
    }
    let said = side.said();
    let of_stream = said.iter().filter(|(_, of, _)| *of == stream);
    of_stream.map(|(.., n)| n).sum()
}

#[test]
fn a_window_grows_once_when_a_reader_has_kept_up_for_all_of_it() {
    let mut side = growing(1, 1 << 30);
    let mut credit = Vec::new();
    for _ in 0..4 {
        side.feed(&data(1, 64 * KIB)).unwrap();
        side.mux.consumed(ONE, 64 * KIB);
        credit.extend(side.said());
    }
    let update = |kib: u32| (kind::WINDOW_UPDATE, 1, kib << 10);
    assert_eq!(credit, [update(64), update(64 + 1024 - 128)]);
    // From then on it is given back by halves of what it is now, and no more.
    side.feed(&data(1, 896 * KIB)).unwrap();
    side.mux.consumed(ONE, 896 * KIB);
    assert_eq!(side.said(), [update(1024)]);
    side.feed(&data(1, 1024 * KIB)).unwrap();
    side.feed(&data(1, 1)).unwrap();
    assert_eq!(side.said(), [reset(1, Code::FLOW_CONTROL_ERROR)]);
}

#[test]
fn the_window_of_a_reader_that_lags_behind_stays_as_it_is() {
    let mut side = growing(1, 1 << 30);
    side.feed(&data(1, 128 * KIB)).unwrap();
    for _ in 0..50 {
        // Half a window is always waiting.
        side.mux.consumed(ONE, 64 * KIB);
        assert_eq!(side.said(), [(kind::WINDOW_UPDATE, 1, 64 << 10)]);
        side.feed(&data(1, 64 * KIB)).unwrap();
    }
    side.feed(&data(1, 1)).unwrap();
    assert_eq!(side.said(), [reset(1, Code::FLOW_CONTROL_ERROR)]);
}

#[test]
fn a_window_that_has_grown_stays_so_in_another_process() {
    let mut side = growing(1, 1 << 30);
    for _ in 0..2 {
        side.feed(&data(1, 64 * KIB)).unwrap();
        side.mux.consumed(ONE, 64 * KIB);
    }
    side.mux.out().clear();
    let state = side.mux.into_state().unwrap();
    let mut side = Side::new(Mux::from_state(&state).unwrap());
    side.feed(&data(1, 1024 * KIB)).unwrap();
    assert!(side.said().is_empty());
    side.feed(&data(1, 1)).unwrap();
    assert_eq!(side.said(), [reset(1, Code::FLOW_CONTROL_ERROR)]);
}

#[test]
fn windows_grow_only_while_there_is_room_for_all() {
    const WINDOW: u32 = 128 << 10;
    const GROWS: u32 = (1024 - 128) << 10;
    let mut side = growing(3, 2 << 20);
    assert_eq!(prompt(&mut side, 1, 2), WINDOW + GROWS);
    // Another one would leave nothing to a stream that begins.
    assert_eq!(prompt(&mut side, 3, 10), 5 * WINDOW);
    // Nor in another process.
    let state = side.mux.into_state().unwrap();
    let mut side = Side::new(Mux::from_state(&state).unwrap());
    assert_eq!(prompt(&mut side, 3, 1), WINDOW / 2);
    side.mux.grow((2 << 20) + WINDOW);
    assert_eq!(prompt(&mut side, 3, 1), WINDOW / 2, "not yet");
    side.mux.grow(3 << 20);
    assert_eq!(prompt(&mut side, 3, 1), WINDOW / 2 + GROWS);
    assert_eq!(prompt(&mut side, 5, 10), 5 * WINDOW);
    // What one leaves is there for another.
    side.mux.reset(ONE, Code::CANCEL);
    side.mux.out().clear();
    assert_eq!(prompt(&mut side, 5, 1), WINDOW / 2 + GROWS);
}

#[test]
fn memory_is_bounded_when_nobody_reads_anything() {
    let mut side = small(4);
    side.feed(&data(1, 128 * KIB)).unwrap();
    side.feed(&data(3, 128 * KIB)).unwrap();
    assert!(side.sent().is_empty(), "as much lies unread as may");
    let error = side.feed(&data(5, 1)).unwrap_err();
    assert_eq!(error.code, Code::FLOW_CONTROL_ERROR);
}

#[test]
fn what_a_dead_stream_left_behind_is_given_back_too() {
    let mut side = small(3);
    side.feed(&data(1, 128 * KIB)).unwrap();
    side.feed(&data(3, 128 * KIB)).unwrap();
    side.mux.reset(ONE, Code::CANCEL);
    side.feed(&frame(kind::RST_STREAM, 0, 3, &[0, 0, 0, 8]))
        .unwrap();
    side.sent();
    side.mux.consumed(ONE, 128 * KIB);
    side.mux.consumed(StreamId(3), 128 * KIB);
    let credit: u32 = side.said().iter().map(|(.., n)| n).sum();
    assert_eq!(credit, 256 << 10);
}

#[test]
fn a_stream_reset_in_the_middle_of_a_frame_leaks_no_credit() {
    let mut side = small(2);
    for _ in 0..20 {
        // Never completes: only what is unread could hold back the connection's credit.
        let mut side = small(1);
        let bytes = data(1, 100 * KIB);
        side.feed(&bytes[..50 * KIB]).unwrap();
        side.mux.reset(ONE, Code::CANCEL);
        side.feed(&bytes[50 * KIB..]).unwrap();
        assert_eq!(side.data[&1].len(), 50 * KIB - 9);
        side.mux.consumed(ONE, 50 * KIB - 9);
        side.sent();
        side.feed(&headers(3, 0, &connect())).unwrap();
        side.feed(&data(3, 128 * KIB)).unwrap();
        let credit: u32 = side.said().iter().map(|(.., n)| n).sum();
        assert!(credit >= 100 << 10, "{credit}");
    }
    side.feed(&data(1, 1)).unwrap();
}

#[test]
fn padding_costs_the_sender_nothing_but_its_window() {
    let mut side = small(1);
    let mut payload = vec![200];
    payload.extend(vec![7; 100 + 200]);
    for _ in 0..1000 {
        // Three times the stream's window.
        side.feed(&frame(kind::DATA, flag::PADDED, 1, &payload))
            .unwrap();
        side.mux.consumed(ONE, 100);
    }
    assert_eq!(side.data[&1].len(), 100_000);
    side.feed(&frame(
        kind::DATA,
        flag::PADDED | flag::END_STREAM,
        1,
        &payload,
    ))
    .unwrap();
    assert_eq!(
        side.events,
        [Event::Data {
            stream: ONE,
            range: 0..0,
            end: true
        }]
    );
}

#[test]
fn after_the_peers_end_its_window_is_left_alone() {
    let mut side = small(1);
    side.feed(&frame(kind::DATA, flag::END_STREAM, 1, &vec![0; 128 * KIB]))
        .unwrap();
    side.sent();
    side.mux.consumed(ONE, 128 * KIB);
    assert!(side.said().iter().all(|(_, stream, _)| *stream == 0));
}

#[test]
fn what_arrives_for_a_stream_we_reset_is_bounded_by_its_window() {
    let mut side = small(1);
    side.mux.grow(1 << 30);
    side.mux.reset(ONE, Code::CANCEL);
    side.feed(&data(1, 128 * KIB)).unwrap();
    let error = side.feed(&data(1, 1)).unwrap_err();
    assert_eq!(error.code, Code::FLOW_CONTROL_ERROR);
}

#[test]
fn no_more_is_sent_than_stream_connection_and_frame_allow() {
    let mut side = Side::serving();
    assert_eq!(side.mux.room(ONE), 16_384, "the peer's largest frame");
    side.feed(&settings(&[(5, 1 << 20), (4, 20_000)])).unwrap();
    assert_eq!(side.mux.room(ONE), 20_000, "the stream's window");
    side.feed(&update(1, 100_000)).unwrap();
    assert_eq!(side.mux.room(ONE), 65_535, "the connection's window");
    assert_eq!(side.mux.data(ONE, 65_536, false), None);
    assert!(!side.mux.stalled());
    assert!(side.mux.data(ONE, 65_535, false).is_some());
    assert_eq!(side.mux.room(ONE), 0);
    assert!(side.mux.stalled());
    assert_eq!(side.mux.data(ONE, 1, false), None);
    side.feed(&update(0, 10)).unwrap();
    assert_eq!(side.mux.room(ONE), 10);
    side.feed(&settings(&[(4, 0)])).unwrap();
    side.feed(&update(0, 100_000)).unwrap();
    assert_eq!(side.mux.room(ONE), 120_000 - 65_535 - 20_000);
    side.feed(&settings(&[(4, 0)])).unwrap();
    assert!(side.mux.data(ONE, 30_000, false).is_some());
    assert_eq!(side.mux.room(StreamId(3)), 0);
    assert!(
        side.mux.data(ONE, 0, true).is_some(),
        "an end needs no room"
    );
}

#[test]
fn a_window_may_be_below_zero_and_comes_back() {
    let mut side = Side::serving();
    assert!(side.mux.data(ONE, 16_384, false).is_some());
    side.feed(&settings(&[(4, 0)])).unwrap();
    assert_eq!(side.mux.room(ONE), 0);
    side.mux.wait(ONE);
    side.feed(&update(1, 16_384)).unwrap();
    assert_eq!(side.mux.ready(), None, "only back at zero");
    assert_eq!(side.events, []);
    side.feed(&update(1, 1)).unwrap();
    assert_eq!(side.events, [Event::Capacity { stream: ONE }]);
    assert_eq!(side.mux.ready(), Some(ONE));
    assert_eq!(side.mux.ready(), None);
}

#[test]
fn streams_that_wait_are_served_in_turn() {
    let mut side = small(3);
    side.feed(&settings(&[(4, 1 << 20), (5, 1 << 20)])).unwrap();
    assert!(side.mux.data(ONE, 65_535, false).is_some());
    for stream in [1, 3, 5, 1, 3] {
        side.mux.wait(StreamId(stream));
    }
    assert_eq!(side.mux.ready(), None, "the connection's window is used up");
    side.feed(&update(0, 10)).unwrap();
    let connection = StreamId::CONNECTION;
    assert_eq!(side.events, [Event::Capacity { stream: connection }]);
    let next = |side: &mut Side| side.mux.ready().map(|s| s.0);
    assert_eq!(next(&mut side), Some(1));
    side.mux.wait(ONE);
    assert_eq!(next(&mut side), Some(3));
    side.mux.reset(StreamId(5), Code::CANCEL);
    assert_eq!(next(&mut side), Some(1), "a dead stream loses its turn");
    assert_eq!(next(&mut side), None);
}

#[test]
fn settings_that_open_windows_wake_those_that_wait() {
    let mut side = Side::server(&Settings::server());
    side.feed(&settings(&[(4, 0)])).unwrap();
    side.feed(&headers(1, 0, &connect())).unwrap();
    side.mux
        .respond(ONE, 200, &Default::default(), false)
        .unwrap();
    side.events.clear();
    assert_eq!(side.mux.room(ONE), 0);
    side.mux.wait(ONE);
    assert_eq!(side.mux.ready(), None);
    side.feed(&settings(&[(4, 5)])).unwrap();
    assert_eq!(
        side.events,
        [Event::Capacity {
            stream: StreamId::CONNECTION
        }]
    );
    assert_eq!(side.mux.ready(), Some(ONE));
    assert_eq!(side.mux.room(ONE), 5);
}
