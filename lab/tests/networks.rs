//! Two networks, each a mesh of its own under one root of trust: who is in the one is reached from the other through its
//! gateway only, and is asked for by who really asks.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

#[path = "support/authority.rs"]
#[allow(dead_code)] // others sign by it
mod authority;
mod support;

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use authority::Ca;
use lab::{Lab, Pod, WaypointPod, wait};
use support::{SOON, Server, ends, in_lab, refused, talk, talk_soon, turn};

/// What a test has to do with.
struct Networks {
    one: Lab,
    two: Lab,
    client: Pod,
    friend: Pod,
    server: Pod,
    echo: Server,
    door: WaypointPod,
    /// The service, as network one knows it.
    at: SocketAddr,
}

impl Networks {
    /// A client and a friend in network one, a server on node 1 of network two, its gateway on node 0.
    fn start(ca: &Ca) -> Result<Self> {
        let one = Lab::builder().nodes(1).network(0, "one").signer(ca.dir());
        let two = Lab::builder().nodes(2).network(1, "two").signer(ca.dir());
        let (one, two) = (one.start()?, two.start()?);
        two.namespace("shop").ambient()?;
        let server = two.pod("shop/web").node(1).service_account("web").start()?;
        let echo = Server::echo(&server, 8080)?;
        two.service("shop/web", &[(80, 8080)])?;
        let door = two.east_west("istio-system/door", 0)?;
        one.namespace("shop").ambient()?;
        let pod = |name: &str| {
            one.pod(&format!("shop/{name}"))
                .service_account(name)
                .start()
        };
        let (client, friend) = (pod("client")?, pod("friend")?);
        one.way_to(&two, door.pod())?;
        one.apply_yaml("two", &elsewhere(door.pod()))?;
        let at = one.service("shop/web", &[(80, 8080)])?.at(80);
        one.until_all_dumps("that the service vouches for the other network's", |dump| {
            let services = dump["services"].as_array().into_iter().flatten();
            services.into_iter().any(|service| {
                service["hostname"] == "web.shop.svc.cluster.local"
                    && service["subjectAltNames"][0] == WEB
                    && service["endpoints"]
                        .as_object()
                        .is_some_and(|all| !all.is_empty())
            })
        })?;
        Ok(Self {
            one,
            two,
            client,
            friend,
            server,
            echo,
            door,
            at,
        })
    }

    /// Expects that the server's node refuses `client`, and says why.
    fn refused_because(&self, client: &Pod, reason: &str) -> Result<()> {
        let there = self.two.access_log(1)?.from_now();
        let here = self.one.access_log(0)?.from_now();
        refused(client, self.at)?;
        let record = there.find("the refusal", |it| it.inbound() && !it.error().is_empty())?;
        ensure!(record.error().contains(reason), "{record:?}");
        ensure!(
            record.field("src.identity") == identity(client),
            "{record:?}"
        );
        let record = here.find("what the client's node says", |it| {
            !it.inbound() && it.field("src.workload") == client.name()
        })?;
        ensure!(record.error().contains("401"), "{record:?}");
        Ok(())
    }
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn identity(pod: &Pod) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{}", pod.name())
}

/// What network one is told of network two: its gateway, and that somebody there serves `shop/web`.
fn elsewhere(door: &Pod) -> String {
    elsewhere_as(door, "web")
}

/// The same of whoever runs as `account`.
fn elsewhere_as(door: &Pod, account: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: two\n  namespace: istio-system\n  labels: {{topology.istio.io/network: two}}\n  \
         annotations: {{gateway.istio.io/service-account: door}}\nspec:\n  gatewayClassName: istio-remote\n  addresses: [{{type: IPAddress, value: {}}}]\n  \
         listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]\n---\n\
         apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: web-two\n  namespace: shop\nspec:\n  network: two\n  serviceAccount: {account}\n  \
         labels: {{app: web, networking.istio.io/tunnel: http}}\n",
        door.ip()
    )
}

/// An AuthorizationPolicy of namespace shop for pods with label app=web.
fn policy(name: &str, action: &str, principal: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         selector: {{matchLabels: {{app: web}}}}\n  action: {action}\n  rules:\n  - from: [{{source: {{principals: [{principal}]}}}}]\n"
    )
}

fn in_two_networks(test: impl FnOnce(&Networks) -> Result<()>) {
    let _turn = turn();
    let ca = Ca::new().unwrap();
    let networks = Networks::start(&ca).unwrap_or_else(|error| panic!("{error:#}"));
    if let Err(error) = test(&networks) {
        let dirs = [networks.one.dir(), networks.two.dir()];
        // The panic keeps the logs.
        panic!("{error:?}\nlogs: {dirs:?}");
    }
    let Networks { one, two, .. } = networks;
    one.stop().unwrap_or_else(|error| panic!("{error:#}"));
    two.stop().unwrap_or_else(|error| panic!("{error:#}"));
}

#[test]
fn a_service_of_another_network_is_reached_through_its_gateway_and_sees_who_calls() {
    in_two_networks(|networks| {
        let Networks {
            client,
            server,
            door,
            at,
            two,
            ..
        } = networks;
        let (there, between) = (two.access_log(1)?.from_now(), door.access_log().from_now());
        drop(talk(client, *at, "from one network to the other")?);
        let record = there.find("who calls", |it| it.inbound())?;
        ensure!(
            record.field("src.identity") == identity(client),
            "the gateway's is not what is seen: {record:?}"
        );
        let record = between.find("what the gateway led on", |_| true)?;
        for (field, value) in [
            ("src.identity", identity(client).as_str()),
            ("dst.service", "web.shop.svc.cluster.local"),
            ("dst.workload", "web"),
        ] {
            ensure!(record.field(field) == value, "{field}: {record:?}");
        }
        // It is the only way.
        refused(client, server.at(8080))?;
        let peers = networks.echo.peers();
        ensure!(
            peers.iter().all(|peer| peer.ip() == door.pod().ip()),
            "{peers:?}"
        );
        Ok(())
    });
}

#[test]
fn policies_there_judge_the_client_and_not_the_gateway() {
    in_two_networks(|networks| {
        let Networks {
            two,
            client,
            friend,
            at,
            ..
        } = networks;
        let deny = policy("no-clients", "DENY", "cluster.local/ns/shop/sa/client");
        two.apply_yaml("policy", &deny)?;
        two.until_policy("shop/no-clients", true)?;
        networks.refused_because(client, "explicitly denied by: shop/no-clients")?;
        talk(friend, *at, "still welcome")?;
        // Who lets the gateway in lets nobody in who comes through it.
        let allow = policy("doors", "ALLOW", "cluster.local/ns/istio-system/sa/door");
        two.apply_yaml("policy", &allow)?;
        two.until_policy("shop/doors", true)?;
        two.until_policy("shop/no-clients", false)?;
        for stranger in [client, friend] {
            networks.refused_because(stranger, "allow policies exist, but none allowed")?;
        }
        two.delete_yaml("policy")?;
        two.until_policy("shop/doors", false)?;
        talk_soon(client, *at)
    });
}

#[test]
fn a_service_that_is_behind_a_waypoint_there_is_led_to_it() {
    in_two_networks(|networks| {
        let Networks {
            one,
            two,
            client,
            door,
            at,
            ..
        } = networks;
        let waypoint = two.waypoint("shop/way", 0)?;
        two.namespace("shop").behind("way")?;
        two.until_all_dumps("the service behind its waypoint", |dump| {
            let services = dump["services"].as_array().into_iter().flatten();
            services.into_iter().any(|service| {
                service["hostname"] == "web.shop.svc.cluster.local"
                    && !service["waypoint"].is_null()
            })
        })?;
        // Who answers there is another one now, and nobody vouches for it yet.
        let log = one.access_log(0)?.from_now();
        refused(client, *at)?;
        log.find("who answered", |it| {
            it.outbound() && it.error().contains("sa/way")
        })?;
        one.apply_yaml("two", &elsewhere_as(door.pod(), "way"))?;
        talk_soon(client, *at)?;
        let log = waypoint.pod().access_log();
        let record = log.find("the client at the waypoint", |it| {
            it.field("src.identity") == identity(client) && it.field("dst.workload") == "web"
        })?;
        ensure!(
            record.field("src.workload") != "door-0",
            "the gateway is not who asks: {record:?}"
        );
        Ok(())
    });
}

#[test]
fn a_gateway_that_is_gone_is_named_and_one_that_is_back_is_used_again() {
    in_two_networks(|networks| {
        let Networks {
            one,
            client,
            door,
            at,
            ..
        } = networks;
        let open = talk(client, *at, "before")?;
        door.component().kill()?;
        ends(open, SOON)?;
        let log = one.access_log(0)?.from_now();
        refused(client, *at)?;
        let gateway = door.pod().at(15008).to_string();
        let record = log.find("that the gateway could not be reached", |it| {
            it.outbound() && it.error().contains(&gateway)
        })?;
        ensure!(
            record.field("dst.service") == "web.shop.svc.cluster.local",
            "{record:?}"
        );
        door.component().start()?;
        talk_soon(client, *at)
    });
}

/// The gateway of the other network is our own, which leads to the pods of ours: one lab is enough to see who goes by it.
#[test]
fn a_service_with_endpoints_here_and_on_another_network_is_reached_at_both() {
    in_lab(Lab::builder(), |lab| {
        lab.namespace("shop").ambient()?;
        let server = lab.pod("shop/web").node(0).service_account("web").start()?;
        let echo = Server::echo(&server, 8080)?;
        let door = lab.east_west("istio-system/door", 0)?;
        let client = lab.pod("shop/client").node(1).service_account("client");
        let client = client.start()?;
        let at = lab.service("shop/web", &[(80, 8080)])?.at(80);
        talk(&client, at, "here")?;
        lab.apply_yaml("two", &elsewhere(door.pod()))?;
        let ways = [client.ip(), door.pod().ip()];
        wait::until("connections by both ways", SOON, || {
            let before = echo.peers().len();
            for _ in 0..10 {
                talk(&client, at, "by either way")?;
            }
            let peers = echo.peers();
            let by = |ip| peers[before..].iter().any(|peer| peer.ip() == ip);
            Ok(if ways.into_iter().all(by) {
                wait::Probe::Ready(())
            } else {
                wait::Probe::NotYet(format!("{:?}", &peers[before..]))
            })
        })
    });
}
