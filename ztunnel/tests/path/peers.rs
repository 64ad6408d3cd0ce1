//! Peers at the tunnel port that are proven, or say they are, and then misbehave: each leaves exactly one line that
//! names what it did, is counted under that name, and disturbs nobody.

use std::time::{Duration, SystemTime};

use hbone::{Limits, tls::crypto_provider};
use tokio::io::AsyncReadExt;

use crate::on_demand::eventually;
use crate::world::{At, CLIENT, PATIENCE, SERVER, World, echo, greeting};
use crate::{ca::Ca, log};

/// The scripted client, shared with the tests of the tunnel itself.
#[path = "../../../hbone/tests/common/raw.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test uses its own part")]
pub(crate) mod raw;

/// What a peer does.
enum Deed {
    /// Says these bytes after TLS, then waits.
    Once(Vec<u8>),
    /// After a proper beginning says these bytes until it is cut off.
    Flood(Vec<u8>),
    /// Hangs up before TLS.
    HangUp,
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_misbehaves_leaves_one_line_that_says_how() {
    let limits = Limits {
        handshake: Duration::from_secs(6),
        ..Default::default()
    };
    let mut world = World::with(&[], &limits);
    let client = world.pod("client-aa", At::Node(0), &CLIENT).await;
    let stranger = world.pod("stranger-aa", At::Nowhere, &["10.77.0.9"]).await;
    let server = world.pod("server-aa", At::Node(1), &SERVER).await;
    server.serve(9000);
    let mut open = client.connect(server.at(0, 9000)).await;
    greeting(&mut open).await.unwrap();
    let begun = [raw::PREFACE, &raw::frame(raw::SETTINGS, 0, 0, &[])].concat();
    let then = |frame: Vec<u8>| Deed::Once([begun.clone(), frame].concat());
    let window = [0, 4, 0, 0, 0xff, 0xff];
    let mut sources = Vec::new();
    for (deed, reason, flag, said) in [
        (
            Deed::HangUp,
            "tls",
            "TLS_FAILURE",
            "the connection ended during the handshake",
        ),
        (
            Deed::Once(vec![]),
            "slow_handshake",
            "TLS_FAILURE",
            "the handshake took longer than 6s",
        ),
        (
            Deed::Once(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec()),
            "preface",
            "H2_HANDSHAKE_FAILURE",
            "no HTTP/2 after TLS",
        ),
        (
            then(raw::frame(raw::DATA, 0, 0, b"x")),
            "protocol",
            "CONNECT",
            "the peer violated HTTP/2",
        ),
        (
            Deed::Flood(raw::frame(raw::PING, 0, 0, &[0; 8])),
            "ping_flood",
            "CONNECT",
            "the peer was cut off: ping_flood",
        ),
        (
            Deed::Flood(raw::frame(raw::SETTINGS, 0, 0, &window)),
            "settings_flood",
            "CONNECT",
            "the peer was cut off: settings_flood",
        ),
        (
            Deed::Flood(raw::frame(0xbb, 0, 0, b"whatever")),
            "idle_frame_flood",
            "CONNECT",
            "the peer was cut off: idle_frame_flood",
        ),
    ] {
        let failed = failures(&world, flag);
        let socket = stranger.connect(server.at(0, 15008)).await;
        let source = format!("src.addr={} ", socket.local_addr().unwrap());
        misbehave(&world.ca, socket, &deed).await;
        let line = log::line(&[&source]).await;
        assert!(
            line.starts_with("warn\taccess\tconnection failed") && line.contains(said),
            "{reason}: {line}"
        );
        assert!(
            line.contains("dst.workload=\"server-aa\""),
            "{reason}: {line}"
        );
        let refused = [&*format!("reason=\"{reason}\"")];
        world.nodes[1]
            .counts("ambit_tunnel_refusals_total", &refused, 1)
            .await;
        eventually(reason, || failures(&world, flag) == failed + 1).await;
        sources.push((reason, source));
    }
    echo(open, b"undisturbed").await;
    let pod = server.pod.as_ref().unwrap();
    pod.stop(&world.nodes[1].node, PATIENCE).await;
    for (reason, source) in sources {
        let lines = log::lines(&[&source]);
        assert_eq!(lines.len(), 1, "{reason}: {lines:#?}");
    }
}

/// Failed connections that the destination counted under a flag.
fn failures(world: &World, flag: &str) -> u64 {
    let flag = format!("response_flags=\"{flag}\"");
    let metrics = world.nodes[1].metrics();
    let counted = metrics
        .lines()
        .filter(|line| {
            line.starts_with("istio_tcp_connections_failed_total") && line.contains(&flag)
        })
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap());
    counted.sum()
}

async fn misbehave(ca: &Ca, socket: tokio::net::TcpStream, deed: &Deed) {
    if let Deed::HangUp = deed {
        return;
    }
    let soon = SystemTime::now() + Duration::from_secs(3600);
    let badge = raw::badge(ca, &["spiffe://cluster.local/ns/default/sa/stranger"], soon);
    let mut peer = raw::Raw::connect(socket, raw::tls_client(Some(badge), &["h2"]))
        .await
        .unwrap();
    match deed {
        Deed::HangUp => {}
        Deed::Once(bytes) => peer.send(bytes).await.unwrap(),
        Deed::Flood(frame) => {
            peer.hello().await.unwrap();
            let batch = frame.repeat(16);
            for _ in 0..2_000 {
                let sent = tokio::time::timeout(PATIENCE, peer.send(&batch)).await;
                if sent.expect("it is neither read nor cut off").is_err() {
                    break;
                }
            }
        }
    }
    // Until it is hung up on; whether in order or with a reset is not the point here.
    let _ = tokio::time::timeout(PATIENCE, peer.io.read_to_end(&mut Vec::new()))
        .await
        .unwrap();
}
