//! Two networks, each a mesh of its own under one root of trust: who is in the one is reached from the other through its
//! gateway only, and is asked for by who really asks.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

#[path = "support/authority.rs"]
#[allow(dead_code)] // others sign by it
mod authority;
mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use authority::Ca;
use lab::{AccessRecord, Lab, Pod, Service, Waypoint, WaypointPod, wait};
use support::{SOON, Server, ends, in_lab, refused, refused_until, talk, talk_soon, turn};

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
    /// The same, to be labelled.
    web: Service,
    /// The same in network two.
    web_there: Service,
}

impl Networks {
    /// A client and a friend in network one, a server on node 1 of network two, its gateway on node 0.
    fn start(ca: &Ca) -> Result<Self> {
        let lab = |nodes| {
            let lab = Lab::builder().nodes(nodes).signer(ca.dir());
            // It is not there at first: nobody is revoked.
            lab.waypoint_env("CRL_PATH", &revoked(ca).to_string_lossy())
        };
        let (one, two) = (lab(1).network(0, "one"), lab(2).network(1, "two"));
        let (one, two) = (one.start()?, two.start()?);
        two.namespace("shop").ambient()?;
        let server = two.pod("shop/web").node(1).service_account("web").start()?;
        let echo = Server::echo(&server, 8080)?;
        let web_there = two.service_with("shop/web", APP, &PORTS, GLOBAL)?;
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
        let web = one.service_with("shop/web", APP, &PORTS, GLOBAL)?;
        until_shared(&one, true)?;
        let at = web.at(80);
        Ok(Self {
            one,
            two,
            client,
            friend,
            server,
            echo,
            door,
            at,
            web,
            web_there,
        })
    }

    /// Expects that the server's node refuses `client`, and says why.
    fn refused_because(&self, client: &Pod, reason: &str) -> Result<()> {
        let there = self.two.access_log(1)?.from_now();
        let here = self.one.access_log(0)?.from_now();
        refused(client, self.at)?;
        // Those that ended well may be told of only now.
        let record = there.find("the refusal", |it| {
            it.inbound() && it.field("src.identity") == identity(client) && !it.error().is_empty()
        })?;
        ensure!(record.error().contains(reason), "{record:?}");
        let record = here.find("what the client's node says", |it| {
            !it.inbound() && it.field("src.workload") == client.name() && !it.error().is_empty()
        })?;
        ensure!(record.error().contains("401"), "{record:?}");
        Ok(())
    }
}

/// Waits until the service of network one has an endpoint on the other network and vouches for it, or neither.
fn until_shared(one: &Lab, shared: bool) -> Result<()> {
    let what = "what the service has of the other network";
    one.until_all_dumps(what, |dump| {
        let services = dump["services"].as_array().into_iter().flatten();
        services.into_iter().any(|service| {
            let endpoints = service["endpoints"].as_object();
            service["hostname"] == "web.shop.svc.cluster.local"
                && (service["subjectAltNames"][0] == WEB) == shared
                && endpoints.is_some_and(|all| !all.is_empty()) == shared
        })
    })
}

/// Labels of a service that other networks may call.
const GLOBAL: &[(&str, &str)] = &[("istio.io/global", "true")];
/// The pods of `shop/web`, and its ports.
const APP: (&str, &str) = ("app", "web");
const PORTS: [(&str, u16, u16); 1] = [("tcp-80", 80, 8080)];

/// Where waypoints and gateways read who is revoked.
fn revoked(ca: &Ca) -> PathBuf {
    ca.dir().join("revoked.pem")
}

/// Serial number of the certificate that a pod of node 0 has now.
fn serial(lab: &Lab, pod: &Pod) -> Result<u128> {
    let dump = lab.node(0).config_dump()?;
    let mut all = dump["certificates"].as_array().into_iter().flatten();
    let own = all.find(|it| it["identity"] == identity(pod));
    let number = own.context("no certificate")?["certChain"][0]["serialNumber"].clone();
    Ok(number.as_str().context("a serial number")?.parse()?)
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn identity(pod: &Pod) -> String {
    format!("spiffe://cluster.local/ns/shop/sa/{}", pod.name())
}

/// Puts `shop` of a network behind a waypoint of its own.
fn behind_a_waypoint(lab: &Lab) -> Result<Waypoint> {
    let waypoint = lab.waypoint("shop/way", 0)?;
    lab.namespace("shop").behind("way")?;
    lab.until_all_dumps("the service behind its waypoint", |dump| {
        let services = dump["services"].as_array().into_iter().flatten();
        services.into_iter().any(|service| {
            service["hostname"] == "web.shop.svc.cluster.local" && !service["waypoint"].is_null()
        })
    })?;
    Ok(waypoint)
}

/// The waypoint's, in either network.
const WAY: &str = "spiffe://cluster.local/ns/shop/sa/way";

/// An app that answers requests.
fn page(mut stream: &TcpStream) {
    let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        head.extend_from_slice(&buffer[..n]);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            if stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npage")
                .is_err()
            {
                return;
            }
        }
    }
}

/// The answer to a request, head and body.
fn get(client: &Pod, to: SocketAddr) -> Result<String> {
    let mut stream = client.connect(to)?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: page\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the answer")?;
    Ok(answer)
}

fn is_the_page(answer: &str) -> bool {
    answer.starts_with("HTTP/1.1 200") && answer.ends_with("page")
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
    in_two_networks_of(&Ca::new().unwrap(), test);
}

fn in_two_networks_of(ca: &Ca, test: impl FnOnce(&Networks) -> Result<()>) {
    let _turn = turn();
    let networks = Networks::start(ca).unwrap_or_else(|error| panic!("{error:#}"));
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
fn a_service_that_is_local_at_either_end_is_not_shared_and_the_gateway_says_why() {
    in_two_networks(|networks| {
        let Networks {
            one,
            two,
            client,
            door,
            at,
            web,
            web_there,
            ..
        } = networks;
        talk(client, *at, "while it is global in both")?;
        let explained = || door.ask("/explain?host=web.shop.svc.cluster.local&port=80");
        let answer = explained()?;
        ensure!(answer.contains("led on"), "{answer}");
        let log = door.access_log().from_now();
        two.label_service(web_there, &[])?;
        let what = "that the gateway leads nobody to it";
        let record = refused_until(client, *at, &log, what, |it| {
            it.field("detail").contains("service shop/web is LOCAL")
        })?;
        ensure!(
            record
                .field("detail")
                .contains("label it istio.io/global=true"),
            "{record:?}"
        );
        let answer = explained()?;
        ensure!(answer.contains("service shop/web is LOCAL"), "{answer}");
        // In its own network it is as it was.
        let near = two.pod("shop/near").service_account("near").start()?;
        talk(&near, web_there.at(80), "from next door")?;
        two.label_service(web_there, GLOBAL)?;
        talk_soon(client, *at)?;
        // Whoever calls must share it too.
        one.label_service(web, &[])?;
        until_shared(one, false)?;
        refused(client, *at)?;
        one.label_service(web, GLOBAL)?;
        until_shared(one, true)?;
        talk_soon(client, *at)
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
        let waypoint = behind_a_waypoint(two)?;
        // Who answers there is another one now, and nobody vouches for it yet.
        let log = one.access_log(0)?.from_now();
        refused_until(client, *at, &log, "who answered", |it| {
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
        let gateway = door.pod().at(15008).to_string();
        let what = "that the gateway could not be reached";
        let record = refused_until(client, *at, &log, what, |it| {
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

#[test]
fn a_waypoint_calls_through_the_gateway_of_another_network_as_itself() {
    in_two_networks(|networks| {
        let Networks {
            one,
            two,
            client,
            server,
            door,
            at,
            ..
        } = networks;
        let _pages = Server::start(server, 8081, page)?;
        let ports = [("http", 80, 8081)];
        two.service_with("shop/page", APP, &ports, GLOBAL)?;
        let pages = one.service_with("shop/page", APP, &ports, GLOBAL)?;
        let waypoint = behind_a_waypoint(one)?;
        // The waypoint may hear of it after those who lead to it.
        talk_soon(client, *at)?;
        let (there, between) = (two.access_log(1)?.from_now(), door.access_log().from_now());
        talk(client, *at, "from one network to the other")?;
        let record = waypoint.pod().access_log().find("the client", |it| {
            it.field("dst.service") == "web.shop.svc.cluster.local" && it.field("flags") == "-"
        })?;
        let gateway = door.pod().at(15008).to_string();
        for (field, value) in [
            ("src.identity", identity(client).as_str()),
            ("dst.workload", "web-two"),
            ("dst.addr", &gateway),
            ("flags", "-"),
        ] {
            ensure!(record.field(field) == value, "{field}: {record:?}");
        }
        for log in [there, between] {
            let record = log.find("who calls", |it| it.field("dst.workload") == "web")?;
            ensure!(record.field("src.identity") == WAY, "{record:?}");
        }
        wait::until("the page", SOON, || {
            Ok(match get(client, pages.at(80)) {
                Ok(answer) if is_the_page(&answer) => wait::Probe::Ready(()),
                other => wait::Probe::NotYet(format!("{other:?}")),
            })
        })?;
        // Two services behind one gateway, with the same workload for both: each is asked for by its own name.
        for _ in 0..3 {
            let answer = get(client, pages.at(80))?;
            ensure!(is_the_page(&answer), "{answer}");
            talk(client, *at, "and bytes, still")?;
        }
        // Policies there judge who calls, which is the waypoint.
        let deny = policy("no-ways", "DENY", "cluster.local/ns/shop/sa/way");
        two.apply_yaml("policy", &deny)?;
        two.until_policy("shop/no-ways", true)?;
        refused(client, *at)?;
        let answer = get(client, pages.at(80))?;
        ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        let log = waypoint.pod().access_log();
        log.find("why", |it| it.field("detail").contains("401"))?;
        Ok(())
    });
}

#[test]
fn where_a_gateway_is_gone_a_waypoint_says_so_or_finds_somebody_who_is_near() {
    in_two_networks(|networks| {
        let Networks {
            one,
            client,
            door,
            at,
            ..
        } = networks;
        let waypoint = behind_a_waypoint(one)?;
        talk_soon(client, *at)?;
        door.component().kill()?;
        let log = waypoint.pod().access_log().from_now();
        let gateway = door.pod().at(15008).to_string();
        let what = "that the gateway could not be reached";
        refused_until(client, *at, &log, what, |it| {
            it.field("flags") == "UF" && it.field("detail").contains(&gateway)
        })?;
        // From now on there is somebody in this network too.
        let near = one.pod("shop/near").label("app", "web").start()?;
        let echo = Server::echo(&near, 8080)?;
        talk_soon(client, *at)?;
        for _ in 0..10 {
            talk(client, *at, "by whichever way is open")?;
        }
        door.component().start()?;
        let before = networks.echo.peers().len();
        wait::until_true("the other network to be called again", SOON, || {
            talk(client, *at, "by either way").is_ok() && networks.echo.peers().len() > before
        })?;
        ensure!(echo.peers().len() > 10, "{:?}", echo.peers());
        Ok(())
    });
}

#[test]
fn a_waypoint_is_led_to_a_waypoint_and_that_one_to_no_third_network() {
    in_two_networks(|networks| {
        let Networks {
            one,
            two,
            client,
            door,
            at,
            ..
        } = networks;
        let (near, far) = (behind_a_waypoint(one)?, behind_a_waypoint(two)?);
        one.apply_yaml("two", &elsewhere_as(door.pod(), "way"))?;
        // To network two the service is in network one as well: were both to believe it of the other, a connection could go to
        // and fro for ever.
        let back = elsewhere_as(door.pod(), "way");
        let back = back.replace("network: two", "network: one");
        two.apply_yaml("one", &back.replace("web-two", "web-one"))?;
        wait::until_true("the other waypoint to be told of it", SOON, || {
            let talked = talk(client, *at, "are you there?").is_ok();
            let dump = far.pod().config_dump();
            talked && dump.is_ok_and(|dump| dump.to_string().contains("web-one"))
        })?;
        for _ in 0..10 {
            talk(client, *at, "by two waypoints")?;
        }
        let log = far.pod().access_log();
        let record = log.find("the first waypoint at the second", |it| {
            it.field("src.identity") == WAY && it.field("dst.workload") == "web"
        })?;
        ensure!(record.field("flags") == "-", "{record:?}");
        let sent_on = |it: &AccessRecord| it.field("dst.workload") == "web-one";
        ensure!(!log.records().iter().any(sent_on), "{:#?}", log.records());
        let log = near.pod().access_log();
        log.find("the client at the first", |it| {
            it.field("src.identity") == identity(client)
        })?;
        Ok(())
    });
}

#[test]
fn who_was_revoked_gets_through_no_gateway_and_no_waypoint() {
    let ca = Ca::new().unwrap();
    in_two_networks_of(&ca, |networks| {
        let Networks {
            one,
            client,
            friend,
            at,
            ..
        } = networks;
        for pod in [client, friend] {
            talk(pod, *at, "not yet")?;
        }
        let list = ca.revoking(serial(one, client)?)?;
        // At once: whoever reads half of a list goes on by the one before.
        let fresh = revoked(&ca).with_extension("fresh");
        std::fs::write(&fresh, list)?;
        std::fs::rename(&fresh, revoked(&ca))?;
        let is_refused = || -> Result<()> {
            let log = one.access_log(0)?.from_now();
            // Of a call whose tunnel is cut by the list's arrival nobody can say more than that.
            refused_until(client, *at, &log, "why the revoked one is refused", |it| {
                it.outbound()
                    && it.field("src.workload") == "client"
                    && it.error().contains("certificate revoked")
            })?;
            talk(friend, *at, "nobody has anything against me").map(drop)
        };
        is_refused().context("at the gateway")?;
        behind_a_waypoint(one)?;
        talk_soon(friend, *at)?;
        is_refused().context("at the waypoint")
    });
}

/// The gateway of the other network is our own, which leads to the pods of ours: one lab is enough to see who goes by it.
#[test]
fn a_service_with_endpoints_here_and_on_another_network_is_reached_at_both() {
    in_lab(Lab::builder(), |lab| {
        lab.namespace("shop").ambient()?;
        let server = lab.pod("shop/web").node(0).service_account("web").start()?;
        let echo = Server::echo(&server, 8080)?;
        // Before the gateway, which knows it when it is ready.
        let at = lab.service_with("shop/web", APP, &PORTS, GLOBAL)?.at(80);
        let door = lab.east_west("istio-system/door", 0)?;
        let client = lab.pod("shop/client").node(1).service_account("client");
        let client = client.start()?;
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
