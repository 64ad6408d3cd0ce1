//! Whatever apps say arrives as it was said, however often its owner changes.

use std::time::Duration;

use hbone::Engine;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    runtime::{Builder, Runtime},
    task::JoinSet,
};

use crate::world::{Decision, LONG, Says, World, hear, joined, pattern, say};

const PAIRS: [(Engine, Engine); 3] = [
    (Engine::Own, Engine::Own),
    (Engine::Own, Engine::H2),
    (Engine::H2, Engine::Own),
];

/// What two apps say to each other.
#[derive(Debug, Clone)]
struct Talk {
    near: Says,
    far: Says,
    slowly: (bool, bool),
}

/// What an app heard: how much, and whether that ended in order. One that resets does not wait to hear.
type Heard = Option<(usize, bool)>;

async fn app(socket: TcpStream, says: Says, slowly: bool) -> Heard {
    let (read, write) = socket.into_split();
    if says.ends {
        let (said, (heard, in_order)) = tokio::join!(say(write, says), hear(read, slowly));
        // A reset is told once: whoever hears of it when writing reads an end.
        return Some((heard, in_order && said.is_some()));
    }
    let mut saying = std::pin::pin!(say(write, says));
    tokio::select! {
        biased;
        _ = &mut saying => None,
        heard = hear(read, slowly) => {
            saying.await;
            Some(heard)
        }
    }
}

/// Both apps talk. What became of it at each end.
async fn talk((near, far): (TcpStream, TcpStream), talk: Talk) -> [Heard; 2] {
    let at_near = app(near, talk.near, talk.slowly.0);
    let at_far = app(far, talk.far, talk.slowly.1);
    tokio::join!(at_near, at_far).into()
}

/// Checks that both heard each other out, or that whoever was cut off knows.
fn check(talk: &Talk, heard: [Heard; 2]) {
    let [at_near, at_far] = heard;
    if talk.near.ends && talk.far.ends {
        let all = [(talk.far.len(), true), (talk.near.len(), true)];
        assert_eq!(heard, all.map(Some), "{talk:?}");
    }
    let complete = |heard: Heard| heard.is_some_and(|(_, in_order)| in_order);
    let what = "cut-off data looks complete";
    assert!(
        talk.near.ends || !complete(at_far),
        "{what}: {heard:?} {talk:?}"
    );
    assert!(
        talk.far.ends || !complete(at_near),
        "{what}: {heard:?} {talk:?}"
    );
}

/// Tunnels of these engines are talked through while their owners change as often as `changes` says; how
/// often they did.
async fn run(
    (near, far): (Engine, Engine),
    talks: Vec<Talk>,
    changes: impl IntoIterator<Item = (bool, Decision, u64)>,
) -> usize {
    let mut world = World::new(near, far).await;
    let apps = world.tunnels(talks.len()).await;
    let mut talking = JoinSet::new();
    for (apps, says) in apps.into_iter().zip(talks.clone()) {
        talking.spawn(async move { (says.clone(), talk(apps, says).await) });
    }
    let mut changed = 0;
    for (at_near, decision, pause) in changes {
        let (side, engine) = match at_near {
            true => (&world.near, near),
            false => (&world.far, far),
        };
        tokio::time::sleep(Duration::from_micros(pause)).await;
        if engine == Engine::Own && side.becomes(decision).await {
            changed += 1;
        }
        if talking.is_empty() {
            break;
        }
        while let Some(done) = talking.try_join_next() {
            let (talk, heard) = done.unwrap();
            check(&talk, heard);
        }
    }
    while let Some(done) = talking.join_next().await {
        let (talk, heard) = done.unwrap();
        check(&talk, heard);
    }
    for finished in [&mut world.near_finished, &mut world.far_finished] {
        for _ in &talks {
            let finished = finished.recv().await.unwrap();
            let nth = (finished.stream as usize - 1) / 2;
            let whole = talks[nth].near.ends && talks[nth].far.ends;
            assert_eq!(finished.ended.clean(), whole, "{finished:?}");
        }
    }
    changed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_goes_on_through_one_owner_after_another() {
    for engines in PAIRS {
        let mut most = 0;
        // Who comes late finds that all has been said: then it is said once more.
        for _ in 0..20 {
            let talk = Talk {
                near: Says::bulk(12_000_000),
                far: Says::bulk(8_000_000),
                slowly: (false, false),
            };
            let changes = (0..40).map(|n| (n % 2 == 0, Decision::Hand, 3000));
            let run = run(engines, vec![talk; 3], changes);
            let changed = tokio::time::timeout(2 * LONG, run).await;
            most = most.max(changed.expect("somebody waits for ever"));
            if most > 3 {
                break;
            }
        }
        assert!(most > 3, "{engines:?}: {most}");
    }
}

#[tokio::test]
async fn counters_go_on() {
    let mut world = World::new(Engine::Own, Engine::Own).await;
    let (mut near, mut far) = world.tunnel().await;
    for n in 0..10 {
        near.write_all(&pattern(0, 1000 + n)).await.unwrap();
        far.read_exact(&mut vec![0; 1000 + n]).await.unwrap();
        far.write_all(&pattern(0, 10)).await.unwrap();
        near.read_exact(&mut [0; 10]).await.unwrap();
        assert!(world.near.becomes(Decision::Hand).await);
        assert!(world.far.becomes(Decision::Hand).await);
    }
    drop(near);
    drop(far);
    let [near, far] = [&mut world.near_finished, &mut world.far_finished];
    assert_eq!(near.recv().await.unwrap().moved, (10_045, 100));
    assert_eq!(far.recv().await.unwrap().moved, (100, 10_045));
}

#[tokio::test]
async fn what_nobody_reads_goes_along() {
    const WINDOW: usize = 4 << 20;
    for engines in PAIRS {
        let mut world = World::new(engines.0, engines.1).await;
        let mut apps = world.tunnels(2).await;
        let (mut near, far) = apps.pop().unwrap();
        // What the far app's socket does not take waits in the far proxy.
        let writing = tokio::spawn(async move {
            near.write_all(&pattern(0, WINDOW + (WINDOW / 2)))
                .await
                .unwrap();
            near.shutdown().await.unwrap();
            near
        });
        let (mut other_near, mut other_far) = apps.pop().unwrap();
        for n in 0..12 {
            other_near.write_all(&[n; 100]).await.unwrap();
            other_far.read_exact(&mut [0; 100]).await.unwrap();
            let (side, engine) = match n % 2 {
                0 => (&world.far, engines.1),
                _ => (&world.near, engines.0),
            };
            if engine == Engine::Own {
                assert!(side.becomes(Decision::Hand).await);
            }
        }
        let (read, _write) = far.into_split();
        let heard = tokio::time::timeout(LONG, hear(read, false)).await;
        assert_eq!(heard.unwrap(), (WINDOW + WINDOW / 2, true), "{engines:?}");
        writing.await.unwrap();
    }
}

#[tokio::test]
async fn a_direction_that_has_ended_stays_ended_and_the_other_goes_on() {
    for decision in [Decision::Hand, Decision::TakeBack, Decision::CutOff] {
        let mut world = World::new(Engine::Own, Engine::Own).await;
        let (mut near, mut far) = world.tunnel().await;
        near.write_all(b"request").await.unwrap();
        near.shutdown().await.unwrap();
        let mut request = Vec::new();
        far.read_to_end(&mut request).await.unwrap();
        assert_eq!(request, b"request");
        for _ in 0..3 {
            assert!(world.near.becomes(decision).await);
            assert!(world.far.becomes(decision).await);
            far.write_all(b"answer").await.unwrap();
            near.read_exact(&mut [0; 6]).await.unwrap();
        }
        drop(far);
        assert_eq!(near.read(&mut [0; 9]).await.unwrap(), 0);
        assert!(world.near_finished.recv().await.unwrap().ended.clean());
        assert!(world.far_finished.recv().await.unwrap().ended.clean());
    }
}

#[tokio::test]
async fn a_connection_of_another_owner_ends_in_order_with_its_last_tunnel() {
    let mut world = World::new(Engine::Own, Engine::Own).await;
    let (near, far) = world.tunnel().await;
    assert!(world.near.becomes(Decision::Hand).await);
    assert!(world.far.becomes(Decision::Hand).await);
    drop((near, far));
    let (near, far) = (world.near.clone(), world.far.clone());
    crate::common::eventually("both ends are over", || (near.over(), far.over()) == (1, 1)).await;
    assert!(!near.becomes(Decision::Hand).await);
}

fn decision() -> impl Strategy<Value = Decision> {
    prop_oneof![
        4 => Just(Decision::Hand),
        1 => Just(Decision::TakeBack),
        1 => Just(Decision::CutOff),
    ]
}

fn says() -> impl Strategy<Value = Says> {
    let size = prop_oneof![3 => 1usize..200, 2 => 1usize..20_000, 1 => 100_000usize..700_000];
    let pieces = prop::collection::vec((size, prop::bool::weighted(0.3)), 0..12);
    let ends = prop::bool::weighted(0.9);
    (pieces, ends).prop_map(|(pieces, ends)| Says { pieces, ends })
}

fn talks() -> impl Strategy<Value = Vec<Talk>> {
    let talk = (says(), says(), any::<(bool, bool)>());
    let talk = talk.prop_map(|(near, far, slowly)| Talk { near, far, slowly });
    prop::collection::vec(talk, 1..4)
}

fn changes() -> impl Strategy<Value = Vec<(bool, Decision, u64)>> {
    prop::collection::vec((any::<bool>(), decision(), 0u64..4000), 1..12)
}

/// Of two threads, or of one that writes by turns.
fn runtime(by_turns: bool) -> Runtime {
    let mut builder = match by_turns {
        true => Builder::new_current_thread(),
        false => Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    if by_turns {
        let _runtime = runtime.enter();
        hbone::write_by_turns();
    }
    runtime
}

proptest! {
    // One that stands still takes a minute to say so: it is not made much smaller.
    #![proptest_config(ProptestConfig { failure_persistence: None, max_shrink_iters: 3, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn whoever_owns_a_tunnel_apps_hear_each_other_out(
        engines in prop::sample::select(PAIRS.to_vec()), talks in talks(), changes in changes(), by_turns: bool,
    ) {
        runtime(by_turns).block_on(async {
            let run = run(engines, talks, changes);
            tokio::time::timeout(LONG, run).await.expect("somebody waits for ever")
        });
    }

    #[test]
    fn whoever_owns_a_pair_apps_hear_each_other_out(
        near in says(), far in says(), slowly: (bool, bool),
        changes in prop::collection::vec((decision(), 0u64..2000), 1..12),
    ) {
        runtime(false).block_on(async {
            let says = Talk { near, far, slowly };
            let run = async {
                let (joined, mut finished) = joined().await;
                let talking = tokio::spawn(talk((joined.near, joined.far), says.clone()));
                for (decision, pause) in changes {
                    tokio::time::sleep(Duration::from_micros(pause)).await;
                    joined.copying.becomes(decision).await;
                }
                let heard = talking.await.unwrap();
                check(&says, heard);
                let finished = finished.recv().await.unwrap();
                assert_eq!(finished.ended.clean(), says.near.ends && says.far.ends);
                if finished.ended.clean() {
                    let moved = (says.near.len() as u64, says.far.len() as u64);
                    assert_eq!(finished.moved, moved);
                }
            };
            tokio::time::timeout(LONG, run).await.expect("somebody waits for ever")
        });
    }
}

/// More of them: `HANDOVER_CASES=2000 cargo test -p hbone --test handover whoever`.
fn cases() -> u32 {
    let asked = std::env::var("HANDOVER_CASES").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(24)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_between_two_sockets_goes_on_through_one_owner_after_another() {
    let says = Talk {
        near: Says::bulk(60_000_000),
        far: Says::bulk(30_000_000),
        slowly: (false, false),
    };
    let mut most = 0;
    // Who comes late finds that all has been said: then it is said once more.
    for _ in 0..20 {
        let (joined, mut finished) = joined().await;
        let copying = joined.copying;
        let talking = tokio::spawn(talk((joined.near, joined.far), says.clone()));
        let changing = async {
            let mut changed = 0;
            while !talking.is_finished() {
                tokio::time::sleep(Duration::from_millis(2)).await;
                changed += usize::from(copying.becomes(Decision::Hand).await);
            }
            changed
        };
        let changed = tokio::time::timeout(2 * LONG, changing).await;
        most = most.max(changed.expect("somebody waits for ever"));
        check(&says, talking.await.unwrap());
        assert!(finished.recv().await.unwrap().ended.clean());
        if most > 3 {
            break;
        }
    }
    assert!(most > 3, "{most}");
}
