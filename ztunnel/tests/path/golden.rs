//! Every recorded exchange with the tunnel port of Istio's ztunnel, against a pod of ours: the same TLS facts or
//! alert, the same answer or reset, and the same line in the access log. Where our words are others on purpose,
//! they stand here and in `testdata/DEVIATIONS.md`.

use std::time::Duration;

use api::workload as wire;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::ca::Ca;
use crate::log;
use crate::peers::raw;
use crate::world::{At, PATIENCE, World, WorldPod};

/// The scripted client's part, shared with the tests of the tunnel itself.
#[path = "../../../hbone/tests/common/recorded.rs"]
#[allow(unreachable_pub, reason = "each test uses its own part")]
mod recorded;

/// The recorded pods.
const CLIENT: &str = "10.99.0.2";
const SERVER: &str = "10.99.0.3";

/// What we say where the recorded log has the words of its TLS library: whose fault, and what it is.
const HANDSHAKES: [(&str, &str); 7] = [
    ("no client certificate", "the peer presented no certificate"),
    (
        "certificate of an unknown CA",
        "the peer's certificate is not signed by a trusted root",
    ),
    (
        "expired certificate",
        "the peer's certificate is expired or not valid yet",
    ),
    (
        "other trust domain",
        "the peer's identity spiffe://other.domain/ns/default/sa/client is of a trust domain that is not accepted",
    ),
    (
        "identity that is not SPIFFE",
        "the peer's certificate is not a SPIFFE identity",
    ),
    ("ALPN http/1.1", "TLS failed"),
    ("TLS 1.2 only", "TLS failed"),
];

/// Cases in which the client goes away without ending what it began. The recorded log calls that complete.
const HANGS_UP: [&str; 2] = ["with forwarded and baggage", "no ALPN"];

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_case_is_answered_and_logged_as_recorded() {
    let mut world = World::new(&[]);
    let (client, server) = recorded_pods(&mut world).await;
    tokio::spawn(echo(server.listen(9000)));
    let mut lines = include_str!("../../testdata/admin/access-log-server-node.txt").lines();
    let mut quiet_cases = Vec::new();
    let mut seen = Vec::new();
    for case in recorded::cases()
        .iter()
        .filter(|case| !recorded::is_silence(case))
    {
        let name = recorded::name(case);
        let socket = client.connect(server.at(0, 15008)).await;
        let source = format!("src.addr={} ", socket.local_addr().unwrap());
        let played = tokio::time::timeout(PATIENCE, recorded::play(case, &world.ca, socket)).await;
        recorded::check(case, played.unwrap());
        if is_reset_by_the_engine(case) {
            quiet_cases.push((name.to_owned(), source));
            continue;
        }
        let line = log::line(&[&source]).await;
        compare(name, lines.next().unwrap(), &line);
        seen.push((name.to_owned(), source));
    }
    assert_eq!(lines.count(), 1, "traffic after the recorded cases");
    world.quiet().await;
    for (name, source) in seen {
        let lines = log::lines(&[&source]);
        assert_eq!(lines.len(), 1, "{name}: {lines:#?}");
    }
    assert_eq!(quiet_cases.len(), 3);
    for (reason, count) in [
        ("malformed_stream", 3),
        ("not_connect", 1),
        ("authority", 2),
        ("tls", 7),
    ] {
        let refused = [&*format!("reason=\"{reason}\"")];
        world.nodes[1]
            .counts("ambit_tunnel_refusals_total", &refused, count)
            .await;
    }
    for (name, source) in quiet_cases {
        assert_eq!(
            log::lines(&[&source]),
            [""; 0],
            "{name}: nor did the recorded one say a word"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_is_asked_whether_it_lives_and_leaves_no_line() {
    let limits = hbone::Limits {
        ping_every: Duration::from_millis(50),
        ..Default::default()
    };
    let mut world = World::with(&[], &limits);
    let (client, server) = recorded_pods(&mut world).await;
    let cases = recorded::cases();
    let case = cases
        .iter()
        .find(|case| recorded::is_silence(case))
        .unwrap();
    let socket = client.connect(server.at(0, 15008)).await;
    let source = format!("src.addr={} ", socket.local_addr().unwrap());
    let played = tokio::time::timeout(PATIENCE, recorded::play(case, &world.ca, socket)).await;
    recorded::check(case, played.unwrap());
    // The pod's end waits for its connections: what this one had to say has been said then.
    let pod = server.pod.as_ref().unwrap();
    pod.stop(&world.nodes[1].node, PATIENCE).await;
    assert_eq!(log::lines(&[&source]), [""; 0]);
}

/// The client's address belongs to a workload, but nothing captures what it sends.
async fn recorded_pods(world: &mut World) -> (WorldPod, WorldPod) {
    let client = world.pod("client", At::Nowhere, &[CLIENT]).await;
    let server = world.pod("server", At::Node(1), &[SERVER]).await;
    world.deny_port("deny-9999", 9999);
    let known = wire::Workload {
        uid: "Kubernetes//Pod/default/client".into(),
        name: "client".into(),
        addresses: vec![client.address(0)],
        service_account: "client".into(),
        ..world.workload("server")
    };
    world.tell(|update| update.set_workload(known.clone()));
    (client, server)
}

async fn echo(listener: TcpListener) {
    while let Ok((mut tcp, _)) = listener.accept().await {
        tokio::spawn(async move {
            let (mut read, mut write) = tcp.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
    }
}

/// The HTTP/2 engine resets what is no request at all, and nobody hears of it.
fn is_reset_by_the_engine(case: &Value) -> bool {
    let events = case["events"].as_array();
    events.is_some_and(|events| {
        let reset = |event: &Value| event["event"] == "StreamReset" && event["error_code"] == 1;
        events.iter().any(reset)
    })
}

/// Level, message and error must be the recorded ones; so must all fields that the recorded line has, except for
/// numbers that depend on the moment.
fn compare(name: &str, recorded: &str, ours: &str) {
    let recorded = recorded.split_once('\t').unwrap().1; // the time
    let hangs_up = HANGS_UP.contains(&name);
    let recorded = if hangs_up {
        &recorded.replacen("info", "error", 1)
    } else {
        recorded
    };
    let head = |line: &str| line.split('\t').take(3).collect::<Vec<_>>().join(" ");
    assert_eq!(head(ours), head(recorded), "{name}: {ours}");
    for (key, value) in fields(recorded) {
        let said = fields(ours).into_iter().find(|(k, _)| *k == key);
        let (_, said) = said.unwrap_or_else(|| panic!("{name}: no {key} in {ours}"));
        match key {
            "src.addr" | "duration" => {}
            "error" if value.starts_with("\"tls handshake error") => {
                let (_, words) = HANDSHAKES.iter().find(|(case, _)| *case == name).unwrap();
                assert!(said.starts_with(&format!("\"{words}")), "{name}: {ours}");
            }
            _ => assert_eq!(said, value, "{name}: {key}"),
        }
    }
    let error = fields(ours).into_iter().find(|(key, _)| *key == "error");
    if hangs_up {
        let (_, words) = error.unwrap();
        assert!(
            words.contains("the peer hung up without saying so"),
            "{name}: {words}"
        );
    } else {
        assert_eq!(
            error.is_some(),
            recorded.contains(" error="),
            "{name}: {ours}"
        );
    }
}

/// `key=value` pairs, of which the error is the last and may hold anything.
fn fields(line: &str) -> Vec<(&str, &str)> {
    let fields = line.rsplit('\t').next().unwrap();
    let (fields, error) = match fields.split_once(" error=") {
        Some((fields, error)) => (fields, Some(error)),
        None => (fields, None),
    };
    let mut all: Vec<_> = fields
        .split(' ')
        .filter_map(|word| word.split_once('='))
        .collect();
    all.extend(error.map(|error| ("error", error)));
    all
}
