use clap::Parser;

use super::*;

fn most(flags: &[&str], descriptors: u64, memory: Option<u64>) -> Most {
    let config = Config::try_parse_from([&["ztunnel"], flags].concat()).unwrap();
    Most::of(&config, descriptors, memory)
}

/// Of a small node in bytes: enough for the connections that it may have.
const MEMORY: u64 = 1 << 20;

fn small() -> Bounds {
    Bounds::within(Most {
        connections: 10,
        connections_of_one: 5,
        handshakes: 4,
        descriptors: 100,
        memory: MEMORY,
    })
}

#[test]
fn bounds_are_what_the_operator_says_else_what_descriptors_and_memory_allow() {
    let all = [
        "--max-connections",
        "1000",
        "--max-connections-per-workload",
        "900",
        "--max-handshakes",
        "7",
        "--max-memory",
        "5000000",
    ];
    for (found, expected) in [
        (
            most(&[], 1 << 20, None),
            (522_240, 261_120, 4096, 1_044_480, u64::MAX),
        ),
        (
            most(&[], 1 << 20, Some(1 << 30)),
            (29_491, 14_746, 4096, 1_044_480, 966_367_638),
        ),
        (most(&[], 1024, None), (480, 240, 120, 960, u64::MAX)),
        (most(&[], 64, None), (24, 12, 6, 48, u64::MAX)),
        (most(&[], 8, Some(1)), (2, 1, 1, 1, 0)),
        (most(&all, 64, None), (1000, 900, 7, 48, 5_000_000)),
    ] {
        let Most {
            connections,
            connections_of_one,
            handshakes,
            descriptors,
            memory,
        } = found;
        let found = (
            connections,
            connections_of_one,
            handshakes,
            descriptors,
            memory,
        );
        assert_eq!(found, expected);
    }
}

#[test]
fn one_pod_at_its_bound_leaves_the_others_theirs_and_room_comes_back() {
    let (bounds, one, other) = (small(), Arc::default(), Arc::default());
    let mut kept: Vec<_> = (0..5)
        .map(|_| bounds.connection(&one, Some(50)).unwrap())
        .collect();
    assert_eq!(bounds.connection(&one, None).unwrap_err(), Full::OfOne(5));
    kept.extend((0..5).map(|_| bounds.connection(&other, None).unwrap()));
    let third = Arc::default();
    assert_eq!(
        bounds.connection(&third, None).unwrap_err(),
        Full::Connections(10)
    );
    kept.push(bounds.adopted(&one)); // that was open elsewhere
    drop(kept);
    assert_eq!((one.connections.now(), bounds.0.connections.now()), (0, 0));
    assert!(bounds.connection(&third, None).is_ok());
}

#[test]
fn handshakes_descriptors_and_memory_have_bounds_of_their_own() {
    let (bounds, one, other) = (small(), Arc::default(), Arc::default());
    let kept = [(); 2].map(|()| bounds.handshake(&one).unwrap());
    assert_eq!(
        bounds.handshake(&one).unwrap_err(),
        Full::HandshakesOfOne(2)
    );
    let kept = (kept, [(); 2].map(|()| bounds.handshake(&other).unwrap()));
    let third = Arc::default();
    assert_eq!(bounds.handshake(&third).unwrap_err(), Full::Handshakes(4));
    drop(kept);
    assert!(bounds.handshake(&one).is_ok());

    assert!(bounds.connection(&one, Some(99)).is_ok());
    assert_eq!(
        bounds.connection(&one, Some(100)).unwrap_err(),
        Full::Descriptors(100)
    );
    bounds.measured(MEMORY + 1);
    assert_eq!(
        bounds.connection(&one, None).unwrap_err(),
        Full::Memory(MEMORY + 1)
    );
    bounds.measured(MEMORY);
    assert!(bounds.connection(&one, None).is_ok());
    let refused = bounds.0.refused.each_ref().map(|count| count.load(Relaxed));
    assert_eq!(refused, [0, 0, 1, 1, 1, 1]);
}

#[test]
fn what_came_since_memory_was_measured_counts_before_it_is_measured_again() {
    let (bounds, one) = (small(), Arc::default());
    bounds.measured(MEMORY - 2 * BYTES_PER_CONNECTION);
    let kept = [(); 3].map(|()| bounds.connection(&one, None).unwrap());
    let beyond = MEMORY + BYTES_PER_CONNECTION;
    assert_eq!(
        bounds.connection(&one, None).unwrap_err(),
        Full::Memory(beyond)
    );
    // They turned out to need less.
    bounds.measured(MEMORY / 2);
    assert!(bounds.connection(&one, None).is_ok());
    drop(kept);
    bounds.measured(MEMORY);
    assert!(bounds.connection(&one, None).is_ok());
}

#[test]
fn that_there_is_nearly_too_much_is_said_once_until_there_was_less() {
    let said = AtomicBool::new(false);
    let heard = [89, 90, 100, 95, 80, 95, 75, 89, 91, 92].map(|now| is_news(&said, now, 100));
    let expected = [
        false, true, false, false, false, false, false, false, true, false,
    ];
    assert_eq!(heard, expected);
    assert!(!is_news(&AtomicBool::new(false), u64::MAX / 2, u64::MAX));
}
