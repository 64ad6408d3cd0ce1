//! UDP of namespaces that opted in: carried between nodes as connections are, under the same policies, and told of.

mod asked;
mod endpoints;
mod machines;
mod on_demand;

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{Builder, Lab, Netns, Pod, wait};

use crate::support::{SOON, between, in_lab, logs_from_now, with_engines};

const ENABLED: (&str, &str) = ("ambit.io/udp", "enabled");
/// A datagram may be lost while something settles; it is sent again after so long.
const PATIENCE: Duration = Duration::from_millis(500);

fn socket_in(netns: &Netns, ip: IpAddr, port: u16) -> Result<UdpSocket> {
    let socket = netns.within(|| UdpSocket::bind((ip, port)))?;
    let socket = socket.with_context(|| format!("{} at {ip}:{port}", netns.name()))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A socket of a client.
fn client(pod: &Pod) -> Result<UdpSocket> {
    socket_in(pod.netns(), Ipv4Addr::UNSPECIFIED.into(), 0)
}

/// Sends back what it gets, and remembers from whom.
struct Echo {
    seen: Arc<Mutex<Vec<SocketAddr>>>,
}

impl Echo {
    /// At one address, so that its answers come from there.
    fn start(pod: &Pod, port: u16) -> Result<Self> {
        Self::within(pod.netns(), pod.ip(), port)
    }

    fn within(netns: &Netns, ip: IpAddr, port: u16) -> Result<Self> {
        let socket = socket_in(netns, ip, port)?;
        socket.set_read_timeout(None)?;
        let seen = Arc::<Mutex<Vec<SocketAddr>>>::default();
        let peers = seen.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            loop {
                // What the socket says of an answer that went nowhere is no end.
                if let Ok((n, peer)) = socket.recv_from(&mut buffer) {
                    peers.lock().unwrap().push(peer);
                    let _ = socket.send_to(&buffer[..n], peer);
                }
            }
        });
        Ok(Self { seen })
    }

    fn seen(&self) -> Vec<SocketAddr> {
        self.seen.lock().unwrap().clone()
    }
}

/// One datagram there and back, from whom it was sent to.
fn once(socket: &UdpSocket, to: SocketAddr, payload: &[u8]) -> Result<()> {
    socket.send_to(payload, to)?;
    let mut buffer = vec![0; 65_536];
    let (n, from) = socket.recv_from(&mut buffer)?;
    ensure!(from == to, "the answer came from {from}, not from {to}");
    ensure!(
        buffer[..n] == *payload,
        "other bytes came back, {n} of them"
    );
    Ok(())
}

/// [`once`], until it works: datagrams may be lost.
fn talk(socket: &UdpSocket, to: SocketAddr, payload: &[u8]) -> Result<()> {
    wait::until(&format!("an answer from {to}"), SOON, || {
        // Answers to what was sent before.
        drain(socket)?;
        Ok(match once(socket, to, payload) {
            Ok(()) => wait::Probe::Ready(()),
            Err(error) => wait::Probe::NotYet(format!("{error:#}")),
        })
    })
}

fn drain(socket: &UdpSocket) -> Result<()> {
    socket.set_nonblocking(true)?;
    let mut buffer = vec![0; 65_536];
    while socket.recv_from(&mut buffer).is_ok() {}
    socket.set_nonblocking(false)?;
    Ok(())
}

/// Said to whom no answer is expected from, and to nobody else.
const ANYONE: &[u8] = b"is there anyone at all?";

/// Nothing comes back of several. Other bytes are late answers to what was sent before.
fn unanswered(socket: &UdpSocket, to: SocketAddr) -> Result<()> {
    drain(socket)?;
    let mut buffer = vec![0; 65_536];
    for _ in 0..3 {
        let mut heard = socket.send_to(ANYONE, to).map(drop);
        while heard.is_ok() {
            heard = match socket.recv_from(&mut buffer) {
                Ok((n, from)) => {
                    ensure!(buffer[..n] != *ANYONE, "{from} answered");
                    Ok(())
                }
                Err(error) => Err(error),
            };
        }
        let kind = heard.as_ref().err().map(std::io::Error::kind);
        let silence = [
            ErrorKind::WouldBlock,
            ErrorKind::TimedOut,
            ErrorKind::ConnectionRefused,
        ];
        ensure!(kind.is_some_and(|it| silence.contains(&it)), "{heard:?}");
    }
    Ok(())
}

/// A client on node 1 and a server on node 0 of namespace shop, which has these labels.
fn pods(lab: &Lab, labels: &[(&str, &str)]) -> Result<(Pod, Pod)> {
    lab.namespace("shop").labelled(labels)?;
    let start = |name: &str, node| {
        let pod = lab.pod(&format!("shop/{name}")).node(node);
        pod.service_account(name).start()
    };
    Ok((start("client", 1)?, start("web", 0)?))
}

/// Both ends of the mesh know that UDP is carried.
fn until_carried(lab: &Lab, pods: &[&Pod]) -> Result<()> {
    for pod in pods {
        lab.until_all_dumps(
            &format!("{} as one whose UDP is carried", pod.name()),
            |dump| {
                let workloads = dump["workloads"].as_array();
                let workloads = workloads.map(Vec::as_slice).unwrap_or_default();
                workloads
                    .iter()
                    .any(|it| it["name"] == pod.name() && it["udp"] == true)
            },
        )?;
    }
    Ok(())
}

fn flows(lab: &Lab, node: usize, way: &str) -> Result<f64> {
    let metrics = lab.metrics(node)?;
    Ok(metrics.sum("ambit_udp_flows_total", &[("way", way)]))
}

fn builder() -> Builder {
    Lab::builder().ztunnel_env("AMBIT_UDP_IDLE_TIMEOUT", "3s")
}

#[test]
fn datagrams_go_through_a_tunnel_from_the_clients_address_and_each_end_tells_of_the_flow() {
    for engines in [["own", "own"], ["own", "h2"], ["h2", "own"]] {
        in_lab(with_engines(builder(), engines), |lab| {
            let (client_pod, server) = pods(lab, &[ENABLED])?;
            until_carried(lab, &[&client_pod, &server])?;
            let echo = Echo::start(&server, 5353)?;
            let socket = client(&client_pod)?;
            let (to, logs) = (server.at(5353), logs_from_now(lab)?);
            let capture = lab.capture(0)?;
            talk(&socket, to, b"nobody-reads-this-datagram")?;
            for n in [0, 1, 1400, 9000, 65_000] {
                let payload: Vec<u8> = (0..n).map(|i| i as u8).collect();
                talk(&socket, to, &payload).with_context(|| format!("{n} bytes"))?;
            }
            let seen = capture.stop()?;
            ensure!(seen.count("tcp port 15008")? > 0 && !seen.shows("nobody-reads-this-datagram"));
            ensure!(
                seen.count("udp port 5353")? == 0,
                "some went around the tunnel"
            );
            let own = SocketAddr::new(client_pod.ip(), socket.local_addr()?.port());
            let peers: BTreeSet<_> = echo.seen().into_iter().collect();
            ensure!(peers == [own].into(), "it saw {peers:?}, not {own}");
            // Written when the flow has been idle for a while.
            for log in &logs {
                let record = log.find("the flow", between("client", "web"))?;
                ensure!(record.field("protocol") == "udp", "{record:?}");
                ensure!(record.field("src.identity") == client_pod.identity());
                ensure!(record.field("dst.identity") == server.identity());
                ensure!(record.error().is_empty(), "{record:?}");
                // It may be more than one flow, where nothing was said for a while.
                wait::until("all of its bytes to be told of", SOON, || {
                    let records = log.records();
                    let flows = records.iter().filter(|&it| between("client", "web")(it));
                    let sent: u64 = flows.map(|it| it.number("bytes_sent")).sum();
                    Ok(if sent >= 75_401 {
                        wait::Probe::Ready(())
                    } else {
                        wait::Probe::NotYet(format!("{sent} bytes: {records:#?}"))
                    })
                })?;
            }
            ensure!(flows(lab, 1, "tunnel")? >= 1.0);
            ensure!(flows(lab, 0, "arrived")? >= 1.0);
            wait::until("no flow to be open", SOON, || {
                let open = lab.metrics(0)?.sum("ambit_udp_flows_open", &[]);
                Ok(match open {
                    0.0 => wait::Probe::Ready(()),
                    _ => wait::Probe::NotYet(format!("{open} are open")),
                })
            })?;
            // And another after it.
            talk(&socket, to, b"again")
        });
    }
}

#[test]
fn one_socket_talks_to_several_and_a_service_is_shared_out_by_flow() {
    in_lab(builder(), |lab| {
        let (client_pod, server) = pods(lab, &[ENABLED])?;
        let near = lab.pod("shop/near").node(1).start()?;
        until_carried(lab, &[&client_pod, &server, &near])?;
        // Beside the client too: a tunnel to the same node.
        let echoes = [Echo::start(&server, 5353)?, Echo::start(&near, 5353)?];
        let socket = client(&client_pod)?;
        for _ in 0..3 {
            talk(&socket, server.at(5353), b"far")?;
            talk(&socket, near.at(5353), b"near")?;
        }
        for echo in &echoes {
            let peers: BTreeSet<_> = echo.seen().into_iter().map(|it| it.ip()).collect();
            ensure!(peers == [client_pod.ip()].into(), "{peers:?}");
        }
        let before = echoes.each_ref().map(|echo| echo.seen().len());
        let pods = ("app", "udp-echo");
        for pod in [&server, &near] {
            pod.set_label(pods.0, pods.1)?;
        }
        let service = lab.service_for("shop/echo", pods, &[("udp", 5300, 5353)])?;
        let sockets = (0..20).map(|_| client(&client_pod));
        let sockets = sockets.collect::<Result<Vec<_>>>()?;
        for socket in &sockets {
            talk(socket, service.at(5300), b"whoever")?;
            talk(socket, service.at(5300), b"the same")?;
        }
        for (echo, before) in echoes.iter().zip(before) {
            let new = echo.seen().split_off(before);
            ensure!(
                !new.is_empty(),
                "one of two endpoints got nothing of 20 flows"
            );
        }
        Ok(())
    });
}

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: default\n  namespace: shop\nspec:\n  \
    mtls:\n    mode: STRICT\n";

const DENY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: no-clients\n  namespace: shop\nspec:\n  \
    action: DENY\n  rules:\n  - from:\n    - source:\n        principals: [cluster.local/ns/shop/sa/client]\n    to:\n    - operation:\n        \
    ports: [\"5353\"]\n";

#[test]
fn policies_cut_and_refuse_flows_and_strict_takes_no_plain_datagram() {
    // No flow ends because nothing was said while a policy was on its way.
    let builder = Lab::builder().ztunnel_env("AMBIT_UDP_IDLE_TIMEOUT", "15s");
    in_lab(builder, |lab| {
        let (client_pod, server) = pods(lab, &[ENABLED])?;
        let friend = lab
            .pod("shop/friend")
            .node(1)
            .service_account("friend")
            .start()?;
        lab.namespace("old").plain()?;
        let outsider = lab.pod("old/outsider").node(1).start()?;
        until_carried(lab, &[&client_pod, &server, &friend])?;
        let (_echo, _other) = (Echo::start(&server, 5353)?, Echo::start(&server, 5354)?);
        let (socket, friends) = (client(&client_pod)?, client(&friend)?);
        let outside = client(&outsider)?;
        talk(&socket, server.at(5353), b"before")?;
        talk(&outside, server.at(5353), b"in the clear")?;

        let log = lab.access_log(0)?.from_now();
        lab.apply_yaml("deny", DENY)?;
        lab.until_policy("shop/no-clients", true)?;
        // The flow that was open is cut, and a new one is refused.
        let record = log.find("the cut", |r| {
            r.inbound() && r.field("src.workload") == "client"
        })?;
        ensure!(
            record
                .error()
                .contains("explicitly denied by: shop/no-clients"),
            "{record:?}"
        );
        ensure!(record.field("protocol") == "udp", "{record:?}");
        unanswered(&client(&client_pod)?, server.at(5353))?;
        talk(&friends, server.at(5353), b"still welcome")?;
        talk(&socket, server.at(5354), b"another port")?;
        lab.delete_yaml("deny")?;
        lab.until_policy("shop/no-clients", false)?;
        talk(&socket, server.at(5353), b"welcome again")?;

        let log = lab.access_log(0)?.from_now();
        lab.apply_yaml("strict", STRICT)?;
        let record = log.find("the refusal", |r| {
            let _ = outside.send_to(b"anyone?", server.at(5353));
            r.inbound() && r.field("src.addr").starts_with(&outsider.ip().to_string())
        })?;
        ensure!(record.error().contains("policy rejection"), "{record:?}");
        unanswered(&outside, server.at(5353))?;
        talk(&socket, server.at(5353), b"with an identity")
    });
}

#[test]
fn a_namespace_that_did_not_opt_in_sees_no_difference_and_one_that_does_is_carried_from_then_on() {
    in_lab(builder(), |lab| {
        let (client_pod, server) = pods(lab, &[])?;
        let echo = Echo::start(&server, 5353)?;
        let (socket, to) = (client(&client_pod)?, server.at(5353));
        let capture = lab.capture(0)?;
        talk(&socket, to, b"in-the-clear-as-ever")?;
        ensure!(capture.stop()?.shows("in-the-clear-as-ever"));
        let own = SocketAddr::new(client_pod.ip(), socket.local_addr()?.port());
        ensure!(echo.seen().last() == Some(&own));
        for node in [0, 1] {
            let flows = lab.metrics(node)?.sum("ambit_udp_flows_total", &[]);
            ensure!(flows == 0.0, "{flows} flows");
        }
        for pod in [&client_pod, &server] {
            let rules = pod.exec(["nft", "list", "ruleset"])?;
            ensure!(!rules.stdout.contains("tproxy"), "{}", rules.stdout);
        }

        // To one that has not, from one that has: as it is, from another port, and told of.
        client_pod.set_label(ENABLED.0, ENABLED.1)?;
        until_carried(lab, &[&client_pod])?;
        wait::until_true("its flows to be counted", SOON, || {
            let _ = once(&socket, to, b"plain");
            flows(lab, 1, "plain").is_ok_and(|n| n >= 1.0)
        })?;
        talk(&socket, to, b"plain")?;

        lab.namespace("shop").labelled(&[ENABLED])?;
        until_carried(lab, &[&client_pod, &server])?;
        let fresh = client(&client_pod)?;
        wait::until_true("a flow in a tunnel", SOON, || {
            let _ = once(&fresh, to, b"tunnel");
            let fresh = client(&client_pod).and_then(|fresh| once(&fresh, to, b"tunnel"));
            let _ = fresh;
            flows(lab, 0, "arrived").is_ok_and(|n| n >= 1.0)
        })?;
        talk(&client(&client_pod)?, to, b"carried")?;

        // And out again.
        lab.namespace("shop").labelled(&[])?;
        client_pod.set_label(ENABLED.0, "disabled")?;
        wait::until_true("the rules to go", SOON, || {
            let all = [&client_pod, &server].into_iter();
            all.map(|pod| pod.exec(["nft", "list", "ruleset"]))
                .all(|rules| rules.is_ok_and(|rules| !rules.stdout.contains("tproxy")))
        })?;
        talk(&client(&client_pod)?, to, b"in the clear again")
    });
}

/// What the kernel says to an app whose socket is connected.
#[test]
fn an_app_hears_that_nobody_listens_as_if_nothing_stood_between() {
    in_lab(builder(), |lab| {
        let (client_pod, server) = pods(lab, &[ENABLED])?;
        lab.namespace("old").plain()?;
        let old = lab.pod("old/server").node(0).start()?;
        until_carried(lab, &[&client_pod, &server])?;
        let six = SocketAddr::new(server.ip6()?, 5353);
        for (pod, to) in [
            (&server, server.at(5353)),
            (&server, six),
            (&old, old.at(5353)),
        ] {
            let any = match to.is_ipv4() {
                true => Ipv4Addr::UNSPECIFIED.into(),
                false => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = socket_in(client_pod.netns(), any, 0)?;
            socket.connect(to)?;
            let is_refused = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
            wait::until_true(&format!("the refusal of {to}"), SOON, || {
                socket.send(b"anyone?").is_err_and(is_refused)
                    || socket.recv(&mut [0; 16]).is_err_and(is_refused)
            })?;
            // And goes on when somebody does.
            let echo = Echo::within(pod.netns(), to.ip(), 5353)?;
            wait::until_true(&format!("an answer of {to}"), SOON, || {
                let _ = socket.send(b"and now?");
                socket.recv(&mut [0; 16]).is_ok()
            })?;
            ensure!(!echo.seen().is_empty());
        }
        Ok(())
    });
}

#[test]
fn a_server_that_dies_and_comes_back_is_found_again_and_outside_of_the_mesh_is_reached() {
    in_lab(builder(), |lab| {
        let (client_pod, server) = pods(lab, &[ENABLED])?;
        until_carried(lab, &[&client_pod, &server])?;
        let socket = client(&client_pod)?;
        let to = server.at(5353);
        unanswered(&socket, to)?; // nobody listens yet
        let _echo = Echo::start(&server, 5353)?;
        talk(&socket, to, b"now")?;
        lab.node(0).ztunnel()?.kill()?;
        lab.node(0).ztunnel()?.start()?;
        talk(&socket, to, b"after the other end was lost")?;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(1) {
            talk(&socket, to, b"and on")?;
        }
        // And when one follows another, at the client's.
        let old = lab.surge_ztunnel(1)?;
        old.signal(nix::sys::signal::Signal::SIGTERM)?;
        old.wait(SOON)?;
        talk(&socket, to, b"by the successor")?;
        talk(&client(&client_pod)?, to, b"and a new flow")?;
        let outside = lab.outside_addresses();
        let ip = *outside
            .iter()
            .find(|ip| ip.is_ipv4())
            .context("an address")?;
        let world = lab.outside().within(|| UdpSocket::bind((ip, 7777)))??;
        world.set_read_timeout(None)?;
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((n, peer)) = world.recv_from(&mut buffer) {
                let _ = world.send_to(&buffer[..n], peer);
            }
        });
        talk(&socket, SocketAddr::new(ip, 7777), b"out of the mesh")
    });
}
