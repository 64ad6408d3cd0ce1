//! What the rules do to connections: running ones go on, new ones go to ztunnel, nobody gets around it,
//! and a pod that leaves is as it was.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use lab::Place;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::support::agent::Agent;
use crate::support::net::{Asked, place};
use crate::support::ztunnel::Ztunnel;
use crate::support::{PATIENCE, eventually, pause};

const POD: [&str; 2] = ["10.30.0.2", "fd00:30::2"];
const PEER: [&str; 2] = ["10.30.0.1", "fd00:30::1"];

/// A pod with an application and someone who plays ztunnel's listeners, and a peer outside.
struct World {
    agent: Agent,
    _ztunnel: Ztunnel,
    pod: Place,
    peer: Place,
}

/// Greets every connection with `name`, then echoes.
fn serve(netns: &Place, port: u16, name: &'static str) {
    let listener = netns
        .within(|| TcpListener::bind(("::", port)).unwrap())
        .unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let _ = stream.write_all(name.as_bytes());
                let mut buffer = [0; 64];
                while let Ok(n) = stream.read(&mut buffer) {
                    if n == 0 || stream.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

impl World {
    fn new() -> Self {
        Self::with_drain("3600")
    }

    /// `drain`: seconds that connections have when the pod leaves.
    fn with_drain(drain: &str) -> Self {
        let agent = Agent::start(&["--release-drain", drain]);
        let ztunnel = agent.ztunnel();
        ztunnel.snapshot();
        let (pod, peer) = (place("pod"), place("peer"));
        pod.cable("eth0", &peer).unwrap();
        for (netns, [v4, v6]) in [(&pod, POD), (&peer, PEER)] {
            netns
                .ip(&format!(
                    "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n"
                ))
                .unwrap();
        }
        serve(&pod, 8080, "app");
        serve(&pod, 15001, "out");
        serve(&pod, 15006, "in.");
        serve(&pod, 15008, "hbo");
        serve(&peer, 9090, "far");
        Self {
            agent,
            _ztunnel: ztunnel,
            pod,
            peer,
        }
    }

    fn enrol(&self) {
        self.agent.plain_pod("pod");
        assert_eq!(
            self.agent.cmdadd("pod", &self.pod.path(), &POD),
            (200, String::new())
        );
    }

    fn release(&self) {
        self.agent.pod(
            "pod",
            json!({ "labels": { "istio.io/dataplane-mode": "none" } }),
            json!({}),
        );
        self.agent.await_redirection("pod", None);
    }

    fn is_restored(&self) -> bool {
        self.pod.ruleset().is_empty() && !self.pod.says(["ip", "rule"]).contains("0x111")
    }
}

/// A connection out of `netns`, and who greeted it.
fn greeted(netns: &Place, to: (&str, u16)) -> (TcpStream, String) {
    let address = SocketAddr::new(to.0.parse().unwrap(), to.1);
    let mut stream = netns
        .within(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap())
        .unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut name = [0; 3];
    stream.read_exact(&mut name).unwrap();
    (stream, String::from_utf8(name.to_vec()).unwrap())
}

fn who(netns: &Place, to: (&str, u16)) -> String {
    greeted(netns, to).1
}

fn echoes(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 4];
    stream.write_all(b"ping").is_ok()
        && stream.read_exact(&mut buffer).is_ok()
        && &buffer == b"ping"
}

#[test]
fn a_ztunnel_that_comes_while_the_last_connections_of_a_pod_end_is_not_told_of_it() {
    let world = World::new();
    world.enrol();
    let (open, name) = greeted(&world.pod, (PEER[0], 9090));
    assert_eq!(name, "out");
    world.release();
    // It is let go of a moment after its annotation, and this connection has an hour.
    eventually("a ztunnel that comes now hears of no pod", || {
        world.agent.ztunnel().snapshot().len() == 1
    });
    assert!(!world.is_restored(), "it has not left yet");
    drop(open);
    eventually("the pod is as it was", || world.is_restored());
}

#[test]
fn enrolling_a_running_pod_cuts_nothing_and_captures_what_comes_after() {
    let world = World::new();
    let mut before = Vec::new();
    for (pod, peer) in POD.into_iter().zip(PEER) {
        for (from, to, name) in [
            (&world.peer, (pod, 8080), "app"),
            (&world.pod, (peer, 9090), "far"),
        ] {
            let (stream, greeting) = greeted(from, to);
            assert_eq!(greeting, name);
            before.push(stream);
        }
    }

    world.enrol();
    assert!(before.iter_mut().all(echoes), "they go on");
    for (pod, peer) in POD.into_iter().zip(PEER) {
        assert_eq!(who(&world.peer, (pod, 8080)), "in.");
        assert_eq!(who(&world.pod, (peer, 9090)), "out");
        assert_eq!(who(&world.peer, (pod, 15008)), "hbo");
        assert_eq!(who(&world.pod, (pod, 8080)), "app", "to itself");
    }
    assert_eq!(who(&world.pod, ("127.0.0.1", 8080)), "app");
    assert_eq!(who(&world.pod, ("::1", 8080)), "app");
    assert!(before.iter_mut().all(echoes), "and on");

    drop(before);
    world.release();
    eventually("the pod is restored", || world.is_restored());
    assert_eq!(who(&world.peer, (POD[0], 8080)), "app");
    assert_eq!(who(&world.pod, (PEER[1], 9090)), "far");
}

#[test]
fn what_an_annotation_exempts_goes_its_own_way_and_all_else_to_ztunnel_also_when_it_changes() {
    let world = World::new();
    serve(&world.pod, 9000, "app");
    serve(&world.peer, 9000, "far");
    let annotated = |annotations: &[(&str, &str)]| {
        let named = annotations.iter().map(|(name, value)| {
            let name = format!("traffic.sidecar.istio.io/{name}");
            (name, json!(value))
        });
        let named: serde_json::Map<_, _> = named.collect();
        world
            .agent
            .pod("pod", json!({ "annotations": named }), json!({}));
    };
    annotated(&[
        ("excludeOutboundPorts", "9000"),
        ("excludeInboundPorts", "9000"),
    ]);
    let enrolled = world.agent.cmdadd("pod", &world.pod.path(), &POD);
    assert_eq!(enrolled, (200, String::new()));
    for (pod, peer) in POD.into_iter().zip(PEER) {
        assert_eq!(who(&world.pod, (peer, 9000)), "far");
        assert_eq!(who(&world.pod, (peer, 9090)), "out");
        assert_eq!(who(&world.peer, (pod, 9000)), "app");
        assert_eq!(who(&world.peer, (pod, 8080)), "in.");
    }

    // Ranges, of one family, in a pod that runs.
    annotated(&[("excludeOutboundIPRanges", "10.30.0.0/24")]);
    eventually("the ranges are known", || {
        who(&world.pod, (PEER[0], 9090)) == "far"
    });
    assert_eq!(who(&world.pod, (PEER[1], 9090)), "out");
    assert_eq!(who(&world.peer, (POD[0], 9000)), "in.");

    annotated(&[("includeOutboundIPRanges", "fd00:30::/64")]);
    eventually("only those are captured", || {
        who(&world.pod, (PEER[0], 9000)) == "far" && who(&world.pod, (PEER[1], 9000)) == "out"
    });

    // What cannot be read changes nothing, and is said.
    annotated(&[("excludeInboundPorts", "all")]);
    world
        .agent
        .await_log("annotation traffic.sidecar.istio.io/excludeInboundPorts");
    assert_eq!(who(&world.peer, (POD[0], 9000)), "in.");

    annotated(&[]);
    eventually("everything is captured again", || {
        who(&world.pod, (PEER[0], 9000)) == "out"
    });
}

#[test]
fn pods_may_not_exempt_anything_where_the_node_says_so() {
    let agent = Agent::start(&["--capture-exclusions", "false"]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    let pod = place("pod");
    let annotation = json!({ "traffic.sidecar.istio.io/excludeInboundPorts": "9000" });
    agent.pod("pod", json!({ "annotations": annotation }), json!({}));
    assert_eq!(agent.cmdadd("pod", &pod.path(), &[POD[0]]).0, 200);
    let rules = pod.ruleset();
    assert!(
        rules.contains("redirect to :15006") && !rules.contains("9000"),
        "{rules}"
    );
}

#[test]
fn a_pod_whose_exemptions_cannot_be_read_does_not_start() {
    let agent = Agent::start(&[]);
    let ztunnel = agent.ztunnel();
    ztunnel.snapshot();
    let pod = place("pod");
    let annotation = json!({ "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.0.0.0/99" });
    agent.pod("pod", json!({ "annotations": annotation }), json!({}));
    let (code, why) = agent.cmdadd("pod", &pod.path(), &[POD[0]]);
    assert!(
        code != 200 && why.contains("excludeOutboundIPRanges"),
        "{code} {why}"
    );
    assert_eq!(pod.ruleset(), "");
}

#[test]
fn connections_through_ztunnel_outlive_the_release() {
    let world = World::new();
    world.enrol();
    let (mut inbound, greeting) = greeted(&world.peer, (POD[0], 8080));
    assert_eq!(greeting, "in.");
    let (mut outbound, greeting) = greeted(&world.pod, (PEER[1], 9090));
    assert_eq!(greeting, "out");

    world.release();
    eventually("new connections are no longer redirected", || {
        who(&world.peer, (POD[0], 8080)) == "app"
    });
    assert_eq!(who(&world.pod, (PEER[1], 9090)), "far");
    assert!(echoes(&mut inbound) && echoes(&mut outbound));
    assert!(!world.is_restored(), "what they need is still there");
    drop(inbound);
    assert!(echoes(&mut outbound));
    drop(outbound);
    eventually("the pod is restored", || world.is_restored());
}

#[test]
fn connections_that_outlive_their_time_are_reset_at_both_ends() {
    let world = World::with_drain("1");
    world
        .pod
        .says(["ip", "route", "add", "default", "via", PEER[0]]);
    world.enrol();
    let mut kept = Vec::new();
    for (pod, peer) in POD.into_iter().zip(PEER) {
        for (from, to, name) in [
            (&world.peer, (pod, 8080), "in."),
            (&world.pod, (peer, 9090), "out"),
        ] {
            let (stream, greeting) = greeted(from, to);
            assert_eq!(greeting, name);
            kept.push(stream);
        }
    }
    let (mut to_itself, _) = greeted(&world.pod, (POD[0], 8080));
    let client = Ipv4Addr::new(192, 0, 2, 7);
    let app = SocketAddr::new(POD[0].parse().unwrap(), 8080);
    let mut borrowed = marked(&world.pod, client, app).unwrap();
    borrowed.read_exact(&mut [0; 3]).unwrap();

    world.release();
    for stream in &mut kept {
        // They only wait for the other end, and hear of the end all the same.
        let heard = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(heard.kind(), ErrorKind::ConnectionReset, "{heard}");
    }
    let heard = borrowed.read(&mut [0; 1]).unwrap_err();
    assert_eq!(heard.kind(), ErrorKind::ConnectionAborted, "{heard}");
    eventually("the pod is restored", || world.is_restored());
    let left = |netns: &Place| netns.says(["ss", "-Htn", "state", "connected"]);
    eventually("only what never went through ztunnel is left", || {
        left(&world.pod).lines().count() == 2 && left(&world.peer).is_empty()
    });
    assert!(echoes(&mut to_itself));
    eventually("the log says how many were reset", || {
        let log = world.agent.log();
        log.contains("were reset") && log.contains("connections=5")
    });
}

/// A socket with ztunnel's mark, inside the pod, in the name of a client.
fn marked(netns: &Place, from: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    netns
        .within(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_mark(0x539)?;
            socket.set_ip_transparent_v4(true)?;
            socket.bind(&SocketAddr::new(IpAddr::V4(from), 0).into())?;
            socket.connect_timeout(&to.into(), Duration::from_secs(3))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket.into())
        })
        .unwrap()
}

#[test]
fn replies_to_a_client_in_whose_name_ztunnel_speaks_come_back_to_ztunnel() {
    let world = World::new();
    let client = Ipv4Addr::new(192, 0, 2, 7);
    let app = SocketAddr::new(POD[0].parse().unwrap(), 8080);
    world
        .pod
        .says(["ip", "route", "add", "default", "via", PEER[0]]);
    let without = marked(&world.pod, client, app);
    assert!(
        without.is_err(),
        "without the marks the reply has nowhere to go"
    );
    world.enrol();
    let mut stream = marked(&world.pod, client, app).unwrap();
    let mut name = [0; 3];
    stream.read_exact(&mut name).unwrap();
    assert_eq!(
        &name, b"app",
        "ztunnel's own connections are not redirected"
    );
    assert!(echoes(&mut stream));

    world.release();
    eventually("redirects are out", || {
        who(&world.peer, (POD[0], 8080)) == "app"
    });
    assert!(echoes(&mut stream), "the marks outlive the redirects");
    assert!(!world.is_restored());
    drop(stream);
    eventually("the pod is restored", || world.is_restored());
}

#[test]
fn a_probe_of_the_kubelet_passes_ztunnel_by() {
    let world = World::new();
    world.enrol();
    world
        .peer
        .says(["ip", "address", "add", "169.254.7.127/32", "dev", "eth0"]);
    world
        .pod
        .says(["ip", "route", "add", "169.254.7.127/32", "dev", "eth0"]);
    let mut probe = world
        .peer
        .within(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            socket
                .bind(&SocketAddr::new("169.254.7.127".parse().unwrap(), 0).into())
                .unwrap();
            let app = SocketAddr::new(POD[0].parse().unwrap(), 8080);
            socket.connect_timeout(&app.into(), PATIENCE).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            TcpStream::from(socket)
        })
        .unwrap();
    let mut name = [0; 3];
    probe.read_exact(&mut name).unwrap();
    assert_eq!(&name, b"app");
}

/// One bare ACK, which nobody awaits.
fn stray_ack(netns: &Place, from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    let mut segment = Vec::new();
    segment.extend(from.1.to_be_bytes());
    segment.extend(to.1.to_be_bytes());
    segment.extend(1000u32.to_be_bytes());
    segment.extend(2000u32.to_be_bytes());
    segment.extend([5 << 4, 0x10, 4, 0, 0, 0, 0, 0]);
    let pseudo = [from.0.octets(), to.0.octets(), [0, 6, 0, 20]].concat();
    let sum: u32 = pseudo
        .chunks(2)
        .chain(segment.chunks(2))
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    netns
        .within(|| {
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).unwrap();
            raw.send_to(&segment, &SockAddr::from(SocketAddr::new(to.0.into(), 0)))
                .unwrap();
        })
        .unwrap();
}

fn connect_from(netns: &Place, port: u16, to: SocketAddr) -> std::io::Result<TcpStream> {
    netns
        .within(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            socket.bind(&SocketAddr::new(PEER[0].parse().unwrap(), port).into())?;
            socket.connect_timeout(&to.into(), Duration::from_secs(3))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket.into())
        })
        .unwrap()
}

/// A packet without SYN makes conntrack remember its ports as not redirected until the pod's RST makes it
/// forget. Here the RST is held back, which makes the attacker's window as wide as it can be.
#[test]
fn a_stray_packet_does_not_open_a_way_around_ztunnel() {
    let world = World::new();
    world.enrol();
    let (from, to) = (PEER[0].parse().unwrap(), POD[0].parse().unwrap());
    let app = SocketAddr::new(IpAddr::V4(to), 8080);
    let attack = |port: u16| {
        stray_ack(&world.peer, (from, port), (to, 8080));
        pause(Duration::from_millis(50));
        let mut greeting = [0; 3];
        match connect_from(&world.peer, port, app) {
            Ok(mut stream) => stream
                .read_exact(&mut greeting)
                .map(|()| String::from_utf8_lossy(&greeting).into_owned()),
            Err(error) => Err(error),
        }
    };
    // A stray packet that is overtaken disturbs nothing: then it is tried again, from another port.
    let attacked = |first: u16| {
        let mut tries = (first..first + 20).map(&attack);
        let found = tries.find(|it| !matches!(it, Ok(name) if name == "in."));
        found.expect("one stray packet that is not overtaken")
    };
    let hold = "table inet hold {\nchain output {\ntype filter hook output priority -400;\ntcp sport 8080 tcp flags & (rst|ack) == rst drop\n}\n}\n";
    world.pod.nft(hold).unwrap();

    let refused = attacked(40001).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    assert_eq!(
        who(&world.peer, (POD[0], 8080)),
        "in.",
        "others are not disturbed"
    );

    // This is no idle worry: without the guard the same attack reaches the application.
    world
        .pod
        .nft("flush chain inet istio-ambient-mangle ambit-guard")
        .unwrap();
    assert_eq!(attacked(40101).unwrap(), "app");
}
