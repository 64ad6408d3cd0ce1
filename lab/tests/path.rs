//! One connection through the whole mesh: encrypted between nodes, joined on one, from the client's own address, unharmed.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;
mod udp;

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener},
    thread,
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, wait};
use nix::sys::signal::Signal;
use support::{Pair, SOON, Server, between, in_lab, logs_from_now, refused, talk, talk_soon};

#[test]
fn bytes_between_nodes_are_encrypted() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let marker = "in-the-mesh-nobody-reads-this";
        let capture = lab.capture(0)?;
        talk(&pair.client, pair.at(), marker)?;
        let meshed = capture.stop()?;
        ensure!(
            meshed.count("tcp port 15008")? > 0,
            "nothing went through a tunnel"
        );
        ensure!(!meshed.shows(marker));

        // The same capture finds what is not in the mesh, so the search above can fail.
        lab.namespace("old").plain()?;
        let outsider = lab.pod("old/outsider").node(1).start()?;
        let capture = lab.capture(0)?;
        talk(&outsider, pair.at(), marker)?;
        ensure!(capture.stop()?.shows(marker));
        Ok(())
    });
}

#[test]
fn the_server_sees_the_clients_own_address_in_both_families_and_on_both_paths() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let near = lab.pod("shop/near").node(0).start()?;
        for client in [&pair.client, &near] {
            for (to, from) in [
                (pair.server.ip(), client.ip()),
                (pair.server.ip6()?, client.ip6()?),
            ] {
                talk(client, SocketAddr::new(to, 8080), "who am I?")?;
                let seen = pair.echo.peers().pop().context("nobody came")?;
                ensure!(
                    seen.ip() == from,
                    "{} came from {seen}, not from {from}",
                    client.name()
                );
            }
        }
        Ok(())
    });
}

#[test]
fn both_ends_report_a_tunnelled_connection_with_both_identities_and_equal_bytes() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let logs = logs_from_now(lab)?;
        drop(talk(&pair.client, pair.at(), "0123456789")?);
        for (log, direction) in [(&logs[1], "outbound"), (&logs[0], "inbound")] {
            let record = log.find(direction, between("client", "web"))?;
            ensure!(record.field("direction") == direction, "{record:?}");
            ensure!(
                record.field("src.identity") == pair.client.identity(),
                "{record:?}"
            );
            ensure!(
                record.field("dst.identity") == pair.server.identity(),
                "{record:?}"
            );
            ensure!(
                record.field("dst.hbone_addr") == pair.at().to_string(),
                "{record:?}"
            );
            ensure!(
                (record.number("bytes_sent"), record.number("bytes_recv")) == (10, 10),
                "{record:?}"
            );
            ensure!(record.error().is_empty(), "{record:?}");
        }
        let labels = [
            (
                "source_principal",
                "spiffe://cluster.local/ns/shop/sa/client",
            ),
            ("connection_security_policy", "mutual_tls"),
        ];
        for (node, reporter) in [(1, "source"), (0, "destination")] {
            wait::until(&format!("node {node} to count it"), SOON, || {
                let counted = lab.metrics(node)?.sum(
                    "istio_tcp_connections_closed_total",
                    &[&labels[..], &[("reporter", reporter)]].concat(),
                );
                Ok(if counted == 1.0 {
                    wait::Probe::Ready(())
                } else {
                    wait::Probe::NotYet(format!("it counted {counted}"))
                })
            })?;
        }
        Ok(())
    });
}

/// `XDS_ON_DEMAND`: the node of the clients asks for whom they call, the other knows everybody.
#[test]
fn a_node_that_knows_only_whom_its_pods_talk_to_carries_them_all_the_same() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let web = lab.service("shop/web", &[(80, 8080)])?.at(80);
        let other = lab.pod("shop/other").node(0).start()?;
        let _echo = Server::echo(&other, 8080)?;
        let caller = lab
            .pod("shop/caller")
            .node(0)
            .service_account("caller")
            .start()?;
        let _back = Server::echo(&pair.client, 8080)?;
        lab.service("shop/idle", &[(80, 8080)])?;
        let waypoint = lab.waypoint("shop/way", 0)?;
        lab.apply_yaml("guarded", GUARDED)?;
        lab.until_all_dumps("the service behind the waypoint", |dump| {
            let mut services = dump["services"].as_array().into_iter().flatten();
            services.any(|it| it["name"] == "guarded" && !it["waypoint"].is_null())
        })?;

        let node = lab.node(1);
        for (key, value) in [
            ("XDS_ON_DEMAND", "true"),
            ("AMBIT_ON_DEMAND_WAIT", "10s"),
            ("AMBIT_ON_DEMAND_UNUSED", "20s"),
        ] {
            node.set_ztunnel_env(key, value)?;
        }
        let old = lab.surge_ztunnel(1)?;
        old.signal(Signal::SIGTERM)?;
        old.wait(SOON)?;
        lab.until_dump(1, "its own pod", |dump| knows(dump, "client"))?;
        let dump = node.config_dump()?;
        for unknown in ["web", "guarded", "idle", "other"] {
            ensure!(!knows(&dump, unknown), "nobody asked for {unknown}");
        }

        let logs = logs_from_now(lab)?;
        let open = talk(&pair.client, web, "to a service")?;
        drop(talk(
            &pair.client,
            SocketAddr::new("10.96.200.1".parse()?, 80),
            "through a waypoint",
        )?);
        waypoint
            .pod()
            .access_log()
            .find("the waypoint's record", |record| {
                record.field("src.workload") == "client" && record.error().is_empty()
            })?;
        drop(talk(&caller, pair.client.at(8080), "to its own pod")?);
        logs[1].find("who came", between("caller", "client"))?;
        let dump = node.config_dump()?;
        for known in ["web", "guarded", "way", "caller"] {
            ensure!(knows(&dump, known), "{known} was needed");
        }
        ensure!(!knows(&dump, "idle") && !knows(&dump, "other"));

        // Given up, but for whom an open connection goes to.
        lab.until_dump(1, "no more of the waypoint's service", |dump| {
            !knows(dump, "guarded")
        })?;
        ensure!(knows(&node.config_dump()?, "web"));
        drop(talk(
            &pair.client,
            SocketAddr::new("10.96.200.1".parse()?, 80),
            "once more",
        )?);

        lab.control_plane()?.kill()?;
        drop(talk(&pair.client, web, "known before")?);
        let logs = logs_from_now(lab)?;
        refused(&pair.client, other.at(8080))?;
        let record = logs[1].find("the refusal", |record| !record.error().is_empty())?;
        ensure!(
            record.error().contains("the control plane has not said"),
            "{record:?}"
        );
        lab.control_plane()?.start()?;
        talk_soon(&pair.client, other.at(8080))?;
        drop(open);
        Ok(())
    });
}

/// Whether a dump has a service or a workload of that name.
fn knows(dump: &serde_json::Value, name: &str) -> bool {
    let lists = [&dump["services"], &dump["workloads"]];
    let mut all = lists
        .into_iter()
        .flat_map(|list| list.as_array().into_iter().flatten());
    all.any(|it| it["name"] == name)
}

const GUARDED: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: guarded, namespace: shop, labels: {istio.io/use-waypoint: way}}\n\
    spec: {clusterIP: 10.96.200.1, selector: {app: web}, ports: [{name: tcp, port: 80, targetPort: 8080}]}\n";

#[test]
fn pods_on_one_node_are_joined_in_process_and_reported_at_both_ends() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        let server = lab.pod("shop/web").service_account("web").start()?;
        let client = lab.pod("shop/client").service_account("client").start()?;
        let _echo = Server::echo(&server, 8080)?;
        let log = lab.access_log(0)?.from_now();
        drop(talk(&client, server.at(8080), "0123456789")?);
        for direction in ["outbound", "inbound"] {
            let record = log.find(direction, |r| {
                between("client", "web")(r) && r.field("direction") == direction
            })?;
            ensure!(record.field("path") == "in-process", "{record:?}");
            ensure!(
                record.field("src.identity") == client.identity(),
                "{record:?}"
            );
            ensure!(
                record.field("dst.identity") == server.identity(),
                "{record:?}"
            );
            ensure!(
                (record.number("bytes_sent"), record.number("bytes_recv")) == (10, 10),
                "{record:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn the_tunnel_can_be_forced_for_pods_on_one_node() {
    in_lab(
        Lab::builder()
            .nodes(1)
            .ztunnel_env("AMBIT_FORCE_TUNNEL", "true"),
        |lab| {
            lab.namespace("shop").ambient()?;
            let server = lab.pod("shop/web").start()?;
            let client = lab.pod("shop/client").start()?;
            let echo = Server::echo(&server, 8080)?;
            let log = lab.access_log(0)?.from_now();
            drop(talk(&client, server.at(8080), "there and back")?);
            let record = log.find("the client's report", |r| {
                between("client", "web")(r) && r.outbound()
            })?;
            ensure!(
                record.field("path").is_empty() && !record.field("dst.hbone_addr").is_empty(),
                "{record:?}"
            );
            ensure!(echo.peers().pop().context("nobody came")?.ip() == client.ip());
            Ok(())
        },
    );
}

#[test]
fn a_service_address_leads_to_its_pods_on_either_node() {
    in_lab(Lab::builder(), |lab| {
        lab.namespace("shop").ambient()?;
        let pods = [0, 1].map(|node| {
            lab.pod(&format!("shop/web-{node}"))
                .node(node)
                .label("app", "web")
                .start()
                .unwrap()
        });
        let echoes = [0, 1].map(|n| Server::echo(&pods[n], 8080).unwrap());
        let client = lab.pod("shop/client").node(1).start()?;
        let service = lab.service("shop/web", &[(80, 8080)])?;
        let addresses = &service.addresses;
        wait::until_true("both pods to be chosen", SOON, || {
            addresses
                .iter()
                .all(|vip| talk(&client, SocketAddr::new(*vip, 80), "hello").is_ok())
                && echoes.iter().all(|echo| !echo.peers().is_empty())
        })?;
        // A port the service does not have is no way to a pod.
        refused(&client, service.at(8080))
    });
}

#[test]
fn each_direction_ends_on_its_own() {
    in_lab(Lab::builder(), |lab| {
        lab.namespace("shop").ambient()?;
        let server = lab.pod("shop/web").node(0).start()?;
        // Answers only once the client has said all it has to say.
        let _late = Server::start(&server, 8080, |mut stream| {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
            let _ = stream.write_all(&all);
        })?;
        for node in [0, 1] {
            let client = lab.pod(&format!("shop/client-{node}")).node(node).start()?;
            let mut stream = client.connect(server.at(8080))?;
            stream.write_all(b"that is all")?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            ensure!(answer == "that is all", "node {node}: {answer:?}");
        }
        Ok(())
    });
}

#[test]
fn sixty_four_megabytes_arrive_in_order_both_ways() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let near = lab.pod("shop/near").node(0).start()?;
        let block: Vec<u8> = (0..1 << 20)
            .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        for client in [&pair.client, &near] {
            let mut stream = client.connect(pair.at())?;
            let (mut writer, expected) = (stream.try_clone()?, block.clone());
            let sends = thread::spawn(move || -> Result<()> {
                (0..64).try_for_each(|_| writer.write_all(&expected))?;
                Ok(writer.shutdown(Shutdown::Write)?)
            });
            let mut back = vec![0; block.len()];
            for number in 0..64 {
                stream
                    .read_exact(&mut back)
                    .with_context(|| format!("megabyte {number} for {}", client.name()))?;
                ensure!(
                    back == block,
                    "megabyte {number} for {} is damaged",
                    client.name()
                );
            }
            ensure!(stream.read(&mut back)? == 0);
            sends.join().unwrap()?;
        }
        Ok(())
    });
}

#[test]
fn what_the_mesh_does_not_know_passes_through_untouched() {
    in_lab(Lab::builder(), |lab| {
        lab.namespace("shop").ambient()?;
        lab.namespace("old").plain()?;
        let client = lab.pod("shop/client").node(1).start()?;
        let old = lab.pod("old/server").node(0).start()?;
        let unmeshed = Server::echo(&old, 8080)?;
        let listener = lab.outside().within(|| TcpListener::bind(("::", 9000)))??;
        let outside = Server::over(listener, support::echo);
        let log = lab.access_log(1)?.from_now();
        for (to, server) in [
            (old.at(8080), &unmeshed),
            (SocketAddr::new(lab.outside_addresses()[0], 9000), &outside),
        ] {
            drop(talk(&client, to, "hello out there")?);
            ensure!(server.peers().pop().context("nobody came")?.ip() == client.ip());
            let record = log.find("the report", |r| r.field("dst.addr") == to.to_string())?;
            ensure!(
                record.field("dst.hbone_addr").is_empty() && record.error().is_empty(),
                "{record:?}"
            );
        }
        Ok(())
    });
}

#[test]
fn a_refused_port_is_told_to_the_client_and_in_the_log() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let log = lab.access_log(0)?.from_now();
        refused(&pair.client, pair.server.at(8081))?;
        let record = log.find("the server side's report", |r| {
            r.inbound() && !r.error().is_empty()
        })?;
        ensure!(record.error().contains("refused"), "{record:?}");
        Ok(())
    });
}

#[test]
fn datagrams_are_left_alone() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let server = pair
            .server
            .netns()
            .within(|| std::net::UdpSocket::bind(("0.0.0.0", 5000)))??;
        let client = pair
            .client
            .netns()
            .within(|| std::net::UdpSocket::bind(("0.0.0.0", 0)))??;
        server.set_read_timeout(Some(SOON / 60))?;
        let mut buffer = [0; 64];
        // It may be lost.
        let (n, from) = wait::until("a datagram", SOON, || {
            client.send_to(b"datagram", pair.server.at(5000))?;
            Ok(match server.recv_from(&mut buffer) {
                Ok(came) => wait::Probe::Ready(came),
                Err(error) => wait::Probe::NotYet(error.to_string()),
            })
        })?;
        ensure!(&buffer[..n] == b"datagram" && from.ip() == pair.client.ip());
        Ok(())
    });
}
