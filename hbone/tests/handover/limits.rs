//! What cannot be frozen, and says so; what happens to somebody who lets go meanwhile; and bytes that
//! nobody has written.

use std::time::{Duration, Instant};

use hbone::{
    Counters, Engine, HalfEnd, Limits, Status, TcpPair,
    handover::{Kind, NotFrozen, Taken, ThawError, VERSION},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    common,
    world::{Decision, LONG, World, joined, sent},
};

const SOON: Duration = Duration::from_millis(100);

async fn round_trip(near: &mut TcpStream, far: &mut TcpStream) {
    near.write_all(b"ping").await.unwrap();
    far.read_exact(&mut [0; 4]).await.unwrap();
    far.write_all(b"pong").await.unwrap();
    near.read_exact(&mut [0; 4]).await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_frozen_says_so_and_goes_on() {
    let mut world = World::new(Engine::H2, Engine::Own).await;
    let tunnel = world.client.open().await.unwrap();
    assert_eq!(tunnel.freezer().unwrap_err(), NotFrozen::Engine);
    drop(tunnel);

    world = World::new(Engine::Own, Engine::Own).await;
    let (mut near, mut far) = world.tunnel().await;
    // Used by hand, not by a copy.
    let mut by_hand = world.client.open().await.unwrap();
    let freezer = world.near.freezer();
    assert_eq!(freezer.id(), by_hand.freezer().unwrap().id());
    assert!(freezer.is_busy());
    assert_eq!(freezer.freeze(SOON).await.unwrap_err(), NotFrozen::Busy(1));
    by_hand.send("still here".into()).await.unwrap();
    round_trip(&mut near, &mut far).await;

    let inside = by_hand.into_io();
    assert_eq!(freezer.freeze(LONG).await.unwrap_err(), NotFrozen::Inside);
    drop(inside);
    common::eventually("the other tunnel has gone", || {
        world.client.pool.stats().streams == 1 && !freezer.is_busy()
    })
    .await;

    let frozen = freezer.freeze(LONG).await.unwrap();
    assert_eq!(freezer.freeze(LONG).await.unwrap_err(), NotFrozen::Already);
    frozen.take_back();
    round_trip(&mut near, &mut far).await;

    drop((near, far));
    world.near_finished.recv().await.unwrap();
    world.client.pool.close_source(
        &world.client.destination.source,
        world.client.destination.source_ip,
    );
    let deadline = Instant::now() + LONG;
    while freezer.freeze(LONG).await.is_ok_and(|frozen| {
        frozen.take_back();
        true
    }) {
        assert!(Instant::now() < deadline, "it never ends");
    }
}

#[tokio::test]
async fn a_freeze_that_is_cancelled_has_not_been() {
    let mut world = World::new(Engine::Own, Engine::Own).await;
    let (mut near, mut far) = world.tunnel().await;
    let by_hand = world.client.open().await.unwrap();
    let freezer = world.near.freezer();
    for _ in 0..3 {
        let freezing = tokio::time::timeout(SOON, freezer.freeze(LONG)).await;
        assert!(freezing.is_err(), "it waits for the other tunnel");
        round_trip(&mut near, &mut far).await;
    }
    drop((by_hand, world.apps.recv().await));
    // And tunnels begin again.
    let (mut near, mut far) = world.tunnel().await;
    round_trip(&mut near, &mut far).await;
}

#[tokio::test]
async fn a_request_that_somebody_holds_is_waited_for_and_one_that_nobody_saw_goes_along() {
    let mut world = World::new(Engine::Own, Engine::Own).await;
    let (mut near, mut far) = world.tunnel().await;
    let mut requests = world.far.hold_requests();
    let client = world.client;
    let open = || {
        let (pool, destination) = (client.pool.clone(), client.destination.clone());
        tokio::spawn(async move {
            let to = common::to("10.0.0.1:80");
            pool.open(&destination, TcpStream::connect, to).await
        })
    };
    let first = open();
    let held = requests.recv().await.unwrap();
    let side = world.far.clone();
    let freezer = side.freezer();
    let freezing = tokio::spawn(async move { freezer.freeze(LONG).await });
    // Bytes move while it waits, and what is asked for now is not given out.
    let second = open();
    round_trip(&mut near, &mut far).await;
    assert!(requests.try_recv().is_err());
    assert!(!freezing.is_finished());

    held.refuse(Status::Unavailable);
    let frozen = freezing.await.unwrap().unwrap();
    assert!(first.await.unwrap().is_err());
    assert_eq!(
        (frozen.kind(), frozen.streams()),
        (Kind::Accepted, &[1][..])
    );
    let (bytes, descriptors) = sent(&frozen);
    let taken = Taken::read(bytes, descriptors).unwrap();
    assert_eq!(taken.peer().unwrap(), &common::identity("client"));
    frozen.forget();
    side.run(taken.thaw(&Limits::default()).unwrap());

    let request = requests.recv().await.unwrap();
    assert_eq!(request.authority.to_string(), "10.0.0.1:80");
    side.answer(request).await;
    let tunnel = second.await.unwrap().unwrap();
    round_trip(&mut near, &mut far).await;
    drop(tunnel);
}

#[tokio::test]
async fn a_copy_that_is_given_up_meanwhile_is_reset_when_it_comes_back_and_left_alone_when_not() {
    for hand in [false, true] {
        let mut world = World::new(Engine::Own, Engine::Own).await;
        let (mut near, mut far) = world.tunnel().await;
        let frozen = world.near.freezer().freeze(LONG).await.unwrap();
        world.near.cancel_copies().await;
        if hand {
            let (bytes, descriptors) = sent(&frozen);
            let taken = Taken::read(bytes, descriptors).unwrap();
            frozen.forget();
            world.near.run(taken.thaw(&Limits::default()).unwrap());
            round_trip(&mut near, &mut far).await;
            drop(near);
            assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0, "an end, no reset");
        } else {
            frozen.take_back();
            near.read_u8().await.unwrap_err();
            let error = far.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
    }
}

#[tokio::test]
async fn a_pair_that_is_given_up_meanwhile_is_reset_when_it_comes_back_and_left_alone_when_not() {
    for hand in [false, true] {
        let (mut near, a) = common::socket_pair().await;
        let (b, mut far) = common::socket_pair().await;
        let pair = TcpPair::new(a, b);
        let freezer = pair.freezer();
        let copy = tokio::spawn(async move { pair.both_ways(&Counters::default()).await });
        round_trip(&mut near, &mut far).await;
        let frozen = freezer.freeze(LONG).await.unwrap();
        copy.abort();
        let _ = copy.await;
        if hand {
            let (bytes, descriptors) = sent(&frozen);
            let taken = Taken::read(bytes, descriptors).unwrap();
            frozen.forget();
            let (world, mut finished) = joined().await;
            let Ok(hbone::handover::Thawed::Pair(pair)) = taken.thaw(&Limits::default()) else {
                panic!("it is a pair")
            };
            assert_eq!(pair.moved(), (4, 4));
            world.copying.run(pair);
            round_trip(&mut near, &mut far).await;
            drop((near, far));
            assert_eq!(finished.recv().await.unwrap().moved, (8, 8));
        } else {
            frozen.take_back();
            for app in [&mut near, &mut far] {
                let error = app.read_u8().await.unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            }
        }
    }
}

#[tokio::test]
async fn nothing_that_is_dropped_undecided_or_unread_is_ever_said() {
    let mut world = World::new(Engine::Own, Engine::Own).await;
    let (mut near, mut far) = world.tunnel().await;
    let frozen = world.far.freezer().freeze(LONG).await.unwrap();
    // Somebody reads it, and never goes on.
    for _ in 0..3 {
        let (bytes, descriptors) = sent(&frozen);
        drop(Taken::read(bytes, descriptors).unwrap());
    }
    near.write_all(b"ping").await.unwrap();
    let nothing = tokio::time::timeout(SOON, far.read_u8()).await;
    assert!(nothing.is_err(), "{nothing:?}");
    frozen.take_back();
    far.read_exact(&mut [0; 4]).await.unwrap();
    round_trip(&mut near, &mut far).await;
}

#[tokio::test]
async fn pings_begin_anew() {
    let limits = Limits {
        ping_every: Duration::from_millis(50),
        ping_answer: Duration::from_secs(5),
        ..Limits::default()
    };
    let mut world = World::with(Engine::Own, Engine::Own, limits).await;
    let (mut near, mut far) = world.tunnel().await;
    for side in [&world.far, &world.near] {
        assert!(side.becomes(Decision::Hand).await);
        // As long as it takes to be taken for dead.
        tokio::time::sleep(Duration::from_millis(5500)).await;
        round_trip(&mut near, &mut far).await;
    }
}

#[tokio::test]
async fn an_app_that_is_gone_is_reported_by_whoever_goes_on() {
    let mut world = World::new(Engine::Own, Engine::Own).await;
    let (near, mut far) = world.tunnel().await;
    let frozen = world.near.freezer().freeze(LONG).await.unwrap();
    near.set_zero_linger().unwrap();
    drop(near);
    let (bytes, descriptors) = sent(&frozen);
    let taken = Taken::read(bytes, descriptors).unwrap();
    frozen.forget();
    world.near.run(taken.thaw(&Limits::default()).unwrap());
    let error = far.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let finished = world.near_finished.recv().await.unwrap();
    assert!(
        matches!(finished.ended.sent, HalfEnd::Socket(_)),
        "{finished:?}"
    );
}

#[tokio::test]
async fn bytes_that_nobody_wrote_are_refused_or_are_another_state() {
    let mut world = World::new(Engine::Own, Engine::Own).await;
    let mut apps = world.tunnels(3).await;
    apps[1].0.shutdown().await.unwrap();
    apps[2].1.write_all(b"something").await.unwrap();
    let (joined, _finished) = joined().await;
    for freezer in [
        world.near.freezer(),
        world.far.freezer(),
        joined.copying.freezer(),
    ] {
        let frozen = freezer.freeze(LONG).await.unwrap();
        let (bytes, _) = sent(&frozen);
        let read = |bytes: &[u8]| Taken::read(bytes.to_vec(), sent(&frozen).1);
        read(&bytes).unwrap();
        for cut in 0..bytes.len() {
            assert!(read(&bytes[..cut]).is_err(), "cut off at {cut}");
        }
        assert_eq!(
            read(&[&bytes[..], &[0]].concat()).unwrap_err(),
            ThawError::Length
        );
        let mut other = bytes.clone();
        other[0] = VERSION + 1;
        assert_eq!(read(&other).unwrap_err(), ThawError::Version(VERSION + 1));
        // Whatever they are changed to, reading ends.
        for at in 1..bytes.len() {
            for change in [1, 0x80, 0xff] {
                let mut other = bytes.clone();
                other[at] ^= change;
                let _ = read(&other);
            }
        }
        let mut fewer = sent(&frozen).1;
        fewer.pop();
        let expected = frozen.descriptors().len();
        let got = expected - 1;
        let refused = Taken::read(bytes, fewer).unwrap_err();
        assert_eq!(refused, ThawError::Descriptors { expected, got });
        frozen.take_back();
    }
}
