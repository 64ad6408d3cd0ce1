//! The node agent's protocol, in all its cases.

use std::net::SocketAddr;
use std::time::Duration;

use api::workload as wire;
use api::zds;
use api::zds::workload_request::Payload;
use lab::Place;
use mesh::{Snapshot, Update};
use ops::drain::Drained;
use serde_json::Value;
use tokio::net::TcpStream;
use ztunnel::netns::{From, Netns, Options};

use crate::fixture::{Fixture, eventually, hex};
use crate::place::{HandedOver, REDIRECT, options, place};
use crate::process::PATIENCE;

const PORTS: [u16; 3] = [15001, 15006, 15008];

async fn served(place: &Place) -> bool {
    let netns = place.netns();
    for port in PORTS {
        for ip in ["127.0.0.1", "::1"] {
            let to = SocketAddr::new(ip.parse().unwrap(), port);
            if refused(netns.connect(From::Any, to).await) {
                return false;
            }
        }
    }
    true
}

/// Nobody listens. A reset is an answer of the path, which has nowhere to carry this to.
fn refused(connected: std::io::Result<TcpStream>) -> bool {
    connected.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

async fn eventually_refused(place: &Place) {
    let netns = place.netns();
    for port in PORTS {
        let to = SocketAddr::new("127.0.0.1".parse().unwrap(), port);
        let mut tries = 0;
        while !refused(netns.connect(From::Any, to).await) {
            tries += 1;
            assert!(tries < 12_000, "port {port} is still open");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn states(fixture: &Fixture) -> Vec<(String, &'static str)> {
    let mut states: Vec<_> = fixture
        .roster
        .list()
        .iter()
        .map(|pod| (pod.pod.name.clone(), pod.state))
        .collect();
    states.sort();
    states
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_served_from_add_to_del() {
    let place = place();
    let fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    assert_eq!(fixture.readiness.missing(), ["zds"]);
    assert_eq!(agent.snapshot_sent().await, "");
    eventually("ready", || fixture.readiness.missing().is_empty()).await;

    assert!(!served(&place).await);
    assert_eq!(agent.add("uid-1", "one", place.fd()).await, "");
    assert!(
        served(&place).await,
        "acknowledged means that the listeners are open"
    );
    assert_eq!(
        agent.add("uid-1", "one", place.fd()).await,
        "",
        "the same again changes nothing"
    );
    assert_eq!(
        (fixture.metrics.started.get(), fixture.metrics.active.get()),
        (1, 1)
    );
    assert_eq!(agent.del("uid-1").await, "");
    eventually_refused(&place).await;
    assert_eq!(
        agent.del("uid-1").await,
        "",
        "a pod that is not known is gone already"
    );
    eventually("nothing left", || fixture.roster.list().is_empty()).await;
    eventually("its end is counted", || {
        (fixture.metrics.stopped.get(), fixture.metrics.active.get()) == (1, 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_sandbox_of_the_same_pod_replaces_the_old_one() {
    let (old, new) = (place(), place());
    let fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    assert_eq!(agent.add("uid-1", "one", old.fd()).await, "");
    assert_eq!(agent.add("uid-1", "one", new.fd()).await, "");
    assert!(served(&new).await);
    eventually_refused(&old).await;
    assert_eq!(fixture.metrics.started.get(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_survive_the_agent_and_its_next_snapshot_is_the_truth() {
    let (kept, gone) = (place(), place());
    let fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    agent.add("uid-kept", "kept", kept.fd()).await;
    agent.add("uid-gone", "gone", gone.fd()).await;
    agent.snapshot_sent().await;
    eventually("ready", || fixture.readiness.missing().is_empty()).await;
    drop(agent);

    let agent = fixture.agent.accept().await;
    eventually("not ready without the agent", || {
        !fixture.readiness.missing().is_empty()
    })
    .await;
    assert!(
        served(&kept).await && served(&gone).await,
        "served on while the agent was away"
    );
    assert_eq!(agent.keep("uid-kept").await, "");
    assert_eq!(agent.keep("uid-never-heard-of").await, "");
    assert_eq!(agent.snapshot_sent().await, "");
    eventually_refused(&gone).await;
    assert!(served(&kept).await);
    assert_eq!(
        states(&fixture)
            .iter()
            .filter(|(_, state)| *state == "Up")
            .count(),
        1
    );
    eventually("ready again", || fixture.readiness.missing().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_del_within_the_snapshot_takes_the_pod_out_of_it() {
    let place = place();
    let fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    agent.add("uid-1", "one", place.fd()).await;
    assert_eq!(agent.del("uid-1").await, "");
    agent.snapshot_sent().await;
    eventually_refused(&place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_pod_is_reported_retried_and_stalls_nobody() {
    let (bad, good) = (place(), place());
    // Somebody else has the port, and does not share it.
    let alone = Netns::new(
        bad.fd(),
        Options {
            reuse_port: false,
            ..options()
        },
    )
    .unwrap();
    let squatter = alone.listen(15006).unwrap();
    let fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;

    let error = agent.add("uid-bad", "bad", bad.fd()).await;
    assert!(
        error.starts_with("failure to start proxy : port 15006"),
        "{error}"
    );
    let null = std::fs::File::open("/dev/null").unwrap();
    let error = agent.add("uid-null", "null", null.into()).await;
    assert!(error.starts_with("failure to start proxy : "), "{error}");
    assert_eq!(agent.add("uid-good", "good", good.fd()).await, "");
    assert_eq!(agent.snapshot_sent().await, "");
    assert!(served(&good).await);
    assert_eq!(
        fixture.readiness.missing(),
        ["zds"],
        "first attempts hold back readiness"
    );
    assert_eq!(fixture.metrics.pending.get(), 2);
    assert_eq!(
        states(&fixture),
        [
            ("bad".into(), "Pending"),
            ("good".into(), "Up"),
            ("null".into(), "Pending")
        ]
    );

    agent.del("uid-null").await;
    drop(squatter);
    eventually("the pod is served by a later attempt", || {
        states(&fixture) == [("bad".into(), "Up"), ("good".into(), "Up")]
    })
    .await;
    assert!(served(&bad).await);
    eventually("ready", || fixture.readiness.missing().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_protocol_is_named_and_ends_the_conversation() {
    let place = place();
    let fixture = Fixture::new(|_, _| None);
    let add = |info: bool| {
        let info = info.then(|| zds::WorkloadInfo {
            name: "x".into(),
            namespace: "y".into(),
            service_account: "z".into(),
        });
        zds::AddWorkload {
            uid: "uid".into(),
            workload_info: info,
        }
    };
    let request = |payload| {
        prost::Message::encode_to_vec(&zds::WorkloadRequest {
            payload: Some(payload),
        })
    };
    let cases = [
        (
            request(Payload::Add(add(true))),
            0,
            "expected 1 file descriptor(s), got 0",
        ),
        (
            request(Payload::Add(add(true))),
            2,
            "expected 1 file descriptor(s), got 2",
        ),
        (
            request(Payload::Del(zds::DelWorkload { uid: "u".into() })),
            1,
            "expected 0 file descriptor(s), got 1",
        ),
        (
            request(Payload::Add(add(false))),
            1,
            "without workload_info",
        ),
        (hex("ffff"), 0, "cannot be decoded"),
        (Vec::new(), 1, "a message without content"),
        (vec![0x0a; 2000], 0, "larger than 1024 bytes"),
        (
            request(Payload::Add(add(true))),
            9,
            "expected 1 file descriptor(s), got 9",
        ),
    ];
    for (packet, fds, expected) in cases {
        let agent = fixture.agent.accept().await;
        let answer = agent
            .exchange(packet, (0..fds).map(|_| place.fd()).collect())
            .await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.contains(expected),
            "{answer:?} does not say {expected:?}"
        );
        assert_eq!(
            agent.receive().await,
            Vec::<u8>::new(),
            "closed after: {expected}"
        );
    }
    for late in [
        Payload::Keep(zds::KeepWorkload { uid: "u".into() }),
        Payload::SnapshotSent(zds::SnapshotSent {}),
    ] {
        let agent = fixture.agent.accept().await;
        agent.snapshot_sent().await;
        assert_ne!(agent.ask(late, None).await, "");
        assert_eq!(agent.receive().await, Vec::<u8>::new());
    }
    fixture.agent.accept().await;
}

/// No descriptor of a refused or replaced pod stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn no_descriptor_is_left_behind() {
    let place = place();
    let fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    agent.snapshot_sent().await;
    let round = async |n: u32| {
        assert_eq!(agent.add(&format!("uid-{n}"), "one", place.fd()).await, "");
        agent.del(&format!("uid-{n}")).await;
        eventually("drained", || fixture.roster.list().is_empty()).await;
    };
    let open = || {
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
    };
    let namespaces = || {
        open()
            .filter(|target| target.to_string_lossy().starts_with("net:["))
            .count()
    };
    round(0).await;
    let before = namespaces();
    for n in 1..50 {
        round(n).await;
    }
    // Other tests of this process open and close theirs meanwhile; one that is left behind stays.
    eventually("hardly more descriptors of namespaces than before", || {
        namespaces() < before + 40
    })
    .await;
}

/// The recorded packets of the real agent, answered as the real ztunnel did.
#[tokio::test(flavor = "multi_thread")]
async fn recorded_conversations_are_answered_byte_for_byte() {
    for recorded in [
        include_str!("../../testdata/zds/iptables-dns.jsonl"),
        include_str!("../../testdata/zds/errors-and-restart.jsonl"),
    ] {
        let fixture = Fixture::new(|_, _| None);
        let lines: Vec<Value> = recorded
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        // The recording has a second ztunnel beside the first; each connection is played alone.
        let connections: std::collections::BTreeSet<_> = lines
            .iter()
            .map(|line| line["conn"].as_u64().unwrap_or(1))
            .collect();
        let mut replayed = 0;
        for connection in connections {
            let packets = lines.iter().filter(|line| {
                line["conn"].as_u64().unwrap_or(1) == connection && line["hex"].is_string()
            });
            let packets: Vec<_> = packets.skip(1).collect(); // the Hello is checked on accept
            let agent = fixture.agent.accept().await;
            for exchange in packets.chunks(2) {
                let [request, answer] = exchange else {
                    continue;
                };
                let place = place();
                let fds = (0..request["fds"].as_u64().unwrap())
                    .map(|_| place.fd())
                    .collect();
                let packet = with_uid(request["hex"].as_str().unwrap());
                assert_eq!(
                    agent.exchange(packet, fds).await,
                    hex(answer["hex"].as_str().unwrap()),
                    "{request}"
                );
                replayed += 1;
            }
        }
        assert!(replayed > 5);
    }
}

/// `…<36 bytes: uid-of-NAME>…` with a uid of that length in the gap.
fn with_uid(packet: &str) -> Vec<u8> {
    let Some((head, rest)) = packet.split_once("<36 bytes: ") else {
        return hex(packet);
    };
    let (name, tail) = rest.split_once('>').unwrap();
    [hex(head), format!("{name:-<36}").into_bytes(), hex(tail)].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workload_is_learned_when_the_control_plane_tells() {
    let place = place();
    let mut fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    agent.add("uid-1", "one", place.fd()).await;
    let pod = fixture.roster.up("uid-1").unwrap();
    assert!(pod.known().is_none());
    let waiting = {
        let pod = pod.clone();
        tokio::spawn(async move { pod.wait_known().await.identity.to_string() })
    };
    let mut update = Update::default();
    for (uid, node) in [("elsewhere", "node-2"), ("here", "node-1")] {
        update.set_workload(wire::Workload {
            uid: uid.into(),
            name: "one".into(),
            namespace: "app".into(),
            service_account: "default".into(),
            node: node.into(),
            ..Default::default()
        });
    }
    assert_eq!(fixture.writer.apply(update), []);
    assert_eq!(
        waiting.await.unwrap(),
        "spiffe://cluster.local/ns/app/sa/default"
    );
    assert_eq!(&*pod.workload_uid(), "here");
    eventually("its certificate is asked for", || {
        fixture.node.certificates.states().len() == 1
    })
    .await;
    eventually("it can be joined in process", || {
        fixture.node.pods.of_workload("here").is_some()
    })
    .await;

    // Forgotten by the control plane, but still running: served as it was last known, not first, though nobody has called
    // since.
    let mut update = Update::default();
    update.set_workload(wire::Workload {
        uid: "here".into(),
        name: "one".into(),
        namespace: "app".into(),
        service_account: "default".into(),
        node: "node-1".into(),
        authorization_policies: vec!["app/later".into()],
        ..Default::default()
    });
    assert_eq!(fixture.writer.apply(update), []);
    let forgotten = || pod.workload(&Snapshot::default()).unwrap();
    eventually("what was said last is known", || {
        forgotten().authorization_policies.len() == 1
    })
    .await;
    let mut update = Update::default();
    update.addresses.removed.push("here".into());
    fixture.writer.apply(update);
    let last = pod.workload(&fixture.node.mesh.load()).unwrap();
    assert_eq!(&*last.uid, "here");
    assert_eq!(&*last.authorization_policies[0], "app/later");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_proxy_closes_listeners_and_leaves_the_agent() {
    let place = place();
    let fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    agent.add("uid-1", "one", place.fd()).await;
    let open: TcpStream = place
        .netns()
        .connect(From::Any, "127.0.0.1:15008".parse().unwrap())
        .await
        .unwrap();
    fixture.drain.drain(Duration::ZERO).await;
    eventually_refused(&place).await;
    assert_eq!(
        agent.receive().await,
        Vec::<u8>::new(),
        "the agent sees us go"
    );
    let mut byte = [0];
    eventually("the open connection is cut", || !matches!(open.try_read(&mut byte), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)).await;
}

/// The kernel has made the connection, but nobody has accepted it when the end comes: closing the
/// listener would reset it.
#[tokio::test]
async fn what_stands_in_the_backlog_at_the_end_is_still_carried() {
    let place = place();
    place.nft(REDIRECT).unwrap();
    place.ip("addr add 10.9.8.7/32 dev lo\n").unwrap();
    let mut fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    agent.add("uid-1", "one", place.fd()).await;
    fixture.tell_of("one");
    let pod = fixture.roster.up("uid-1").unwrap();
    pod.wait_known().await;
    let server = place
        .netns()
        .listen_on("10.9.8.7:80".parse().unwrap())
        .unwrap();

    // One thread runs everything: nothing is accepted while this blocks it.
    let mut open = place
        .within(|| std::net::TcpStream::connect("10.9.8.7:80").unwrap())
        .unwrap();
    pod.drain.accepting().cancel();
    let accepted = tokio::time::timeout(PATIENCE, server.accept()).await;
    let (mut carried, _) = accepted.expect("it is lost").unwrap();
    std::io::Write::write_all(&mut open, b"hello").unwrap();
    let mut hello = [0; 5];
    tokio::io::AsyncReadExt::read_exact(&mut carried, &mut hello)
        .await
        .unwrap();
    assert_eq!(&hello, b"hello");
    eventually_refused(&place).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_is_held_while_connections_drain() {
    let place = place();
    let mut fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    agent.add("uid-1", "one", place.fd()).await;
    fixture.tell_of("one");
    let pod = fixture.roster.up("uid-1").unwrap();
    pod.wait_known().await;
    let connection = pod.drain.hold();
    let stopping = {
        let (pod, node) = (pod.clone(), fixture.node.clone());
        tokio::spawn(async move { pod.stop(&node, Duration::from_secs(60)).await })
    };
    eventually("it takes no more connections", || {
        fixture.node.pods.of_workload("one").is_none()
    })
    .await;
    assert_eq!(fixture.node.certificates.states().len(), 1);
    drop(connection);
    assert_eq!(stopping.await.unwrap(), Drained::Quiet);
}

/// What stood in the backlog asks for the pod's certificate after the pod was taken out of service.
#[tokio::test]
async fn what_asks_for_the_certificate_at_the_end_leaves_none_behind() {
    let place = place();
    let mut fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    assert_eq!(agent.snapshot_sent().await, "");
    agent.add("uid-1", "one", place.fd()).await;
    fixture.tell_of("one");
    let pod = fixture.roster.up("uid-1").unwrap();
    pod.wait_known().await;

    // One thread runs everything: nothing is accepted while this blocks it.
    let _open: Vec<_> = (0..3)
        .map(|_| {
            place
                .within(|| std::net::TcpStream::connect("127.0.0.1:15008").unwrap())
                .unwrap()
        })
        .collect();
    let stopping = {
        let (pod, node) = (pod.clone(), fixture.node.clone());
        tokio::spawn(async move { pod.stop(&node, Duration::from_secs(2)).await })
    };
    let drained = stopping.await.unwrap();
    assert_eq!(
        drained,
        Drained::Cut(3),
        "all three were waiting for the certificate"
    );
    drop(pod);
    assert_eq!(agent.del("uid-1").await, "");
    eventually("the certificate is forgotten", || {
        fixture.node.certificates.states().is_empty()
    })
    .await;
}

/// The control plane's word and the agent's meet: the pod is told of and removed in the same moment.
#[tokio::test]
async fn a_pod_removed_while_it_is_learned_is_not_kept() {
    let place = place();
    let mut fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    assert_eq!(agent.snapshot_sent().await, "");
    for n in 0..20 {
        let (uid, name) = (format!("uid-{n}"), format!("pod-{n}"));
        agent.add(&uid, &name, place.fd()).await;
        let pod = fixture.roster.up(&uid).unwrap();
        let gone = std::sync::Arc::downgrade(&pod);
        // One thread runs everything: the pod learns of this only once `stop` waits.
        fixture.tell_of(&name);
        pod.stop(&fixture.node, Duration::ZERO).await;
        // Before the agent's removal stops it a second time.
        assert!(fixture.node.pods.of_workload(&name).is_none(), "{name}");
        drop(pod);
        assert_eq!(agent.del(&uid).await, "");
        eventually("nothing is left of it", || gone.strong_count() == 0).await;
    }
    eventually("no certificate is left", || {
        fixture.node.certificates.states().is_empty()
    })
    .await;
}
