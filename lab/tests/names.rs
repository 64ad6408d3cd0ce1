//! Names inside a captured pod: the mesh's answered on the spot, the rest relayed to the name server the pod asked.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod examples;
mod support;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use lab::{
    Lab, OUTSIDE_NAMES, Pod,
    wait::{self, Probe},
};
use nix::sys::signal::Signal;
use support::{
    SOON, Server,
    dns::{A, AAAA, NXDOMAIN, ask, ask_tcp},
    in_lab, talk_soon,
};

#[test]
fn mesh_names_are_answered_in_the_pod_and_others_relayed() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        lab.pod("shop/web").start()?;
        let client = lab.pod("shop/client").start()?;
        let service = lab.service("shop/web", &[(80, 8080)])?;
        let server = lab.name_server_address();

        for ask in [ask, ask_tcp] {
            for (kind, is_of_kind) in [(A, IpAddr::is_ipv4 as fn(&_) -> _), (AAAA, IpAddr::is_ipv6)]
            {
                let answer = ask(&client, server, &service.host, kind)?;
                let wanted: Vec<_> = service
                    .addresses
                    .iter()
                    .copied()
                    .filter(is_of_kind)
                    .collect();
                ensure!(answer.code == 0 && answer.addresses == wanted, "{answer:?}");
                let relayed = ask(&client, server, OUTSIDE_NAMES[0], kind)?;
                let wanted: Vec<_> = lab
                    .outside_addresses()
                    .into_iter()
                    .filter(is_of_kind)
                    .collect();
                ensure!(
                    relayed.code == 0 && relayed.addresses == wanted,
                    "{relayed:?}"
                );
            }
            ensure!(ask(&client, server, "nowhere.example.net", A)?.code == NXDOMAIN);
        }
        let upstream = lab.name_server().process()?.log();
        ensure!(upstream.contains(OUTSIDE_NAMES[0]), "{upstream}");
        ensure!(
            !upstream.contains(&service.host),
            "a mesh name was asked of the outside world:\n{upstream}"
        );
        Ok(())
    });
}

#[test]
fn a_program_finds_a_service_by_its_short_name() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        lab.pod("shop/web").start()?;
        let client = lab.pod("shop/client").start()?;
        let service = lab.service("shop/web", &[(80, 8080)])?;
        for name in ["web", "web.shop", "web.shop.svc", &service.host] {
            let found = client.exec(["getent", "ahosts", name])?.success()?;
            for address in &service.addresses {
                ensure!(found.contains(&address.to_string()), "{name}: {found}");
            }
        }
        ensure!(
            !client
                .exec(["getent", "ahosts", "web.nowhere"])?
                .succeeded()
        );
        Ok(())
    });
}

#[test]
fn a_pod_of_a_headless_service_is_found_by_its_own_name_which_nobody_else_is_asked_for() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        let db = lab.pod("shop/db-0").label("app", "db").start()?;
        let client = lab.pod("shop/client").start()?;
        let service = "apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\n\
            spec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp, port: 5432}], ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv4, IPv6]}\n";
        lab.apply_yaml("db", service)?;
        let host = "db.shop.svc.cluster.local";
        lab.until_all_dumps("the service and its pod", |dump| {
            let mut services = dump["services"].as_array().into_iter().flatten();
            let endpoints =
                |it: &serde_json::Value| it["endpoints"].as_object().map_or(0, |all| all.len());
            services.any(|it| it["hostname"] == host && endpoints(it) == 1)
        })?;
        for name in ["db-0.db", "db-0.db.shop", &format!("db-0.{host}")] {
            let found = client.exec(["getent", "ahosts", name])?.success()?;
            for address in db.addresses() {
                ensure!(found.contains(&address.to_string()), "{name}: {found}");
            }
        }
        let upstream = lab.name_server().process()?.log();
        ensure!(!upstream.contains("db-0"), "{upstream}");
        Ok(())
    });
}

/// `XDS_ON_DEMAND`: the node of the client follows nobody beforehand, so the control plane is asked for each name.
#[test]
fn a_node_that_follows_nobody_finds_every_name_of_the_mesh_by_asking_for_it() {
    in_lab(Lab::builder(), |lab| {
        lab.namespace("shop").ambient()?;
        let web = lab.pod("shop/web").node(0).start()?;
        let db = lab.pod("shop/db-0").node(0).label("app", "db").start()?;
        let client = lab.pod("shop/client").node(1).start()?;
        let _echo = Server::echo(&web, 8080)?;
        lab.apply_yaml("named", NAMED)?;
        lab.apply_yaml("partner", &partner("api.partner.example", web.ip()))?;
        let knows = |dump: &serde_json::Value, host: &str| {
            let mut services = dump["services"].as_array().into_iter().flatten();
            services.any(|it| it["hostname"] == host)
        };
        lab.until_dump(0, "the ServiceEntry", |dump| {
            knows(dump, "api.partner.example")
        })?;
        lab.node(1).set_ztunnel_env("XDS_ON_DEMAND", "true")?;
        let old = lab.surge_ztunnel(1)?;
        old.signal(Signal::SIGTERM)?;
        old.wait(SOON)?;
        lab.until_dump(1, "its own pod", |dump| {
            let mut workloads = dump["workloads"].as_array().into_iter().flatten();
            workloads.any(|it| it["name"] == "client")
        })?;
        ensure!(
            lab.node(1).config_dump()?["services"] == serde_json::json!([]),
            "nobody asked yet"
        );

        let server = lab.name_server_address();
        for ask in [ask, ask_tcp] {
            let found = found(&client, server, ask, "api.partner.example")?;
            // It is in no DNS but the mesh's, and leads to the pod.
            let vip = SocketAddr::new(found[0], 80);
            talk_soon(&client, vip)?;
        }
        let vip: IpAddr = "10.96.200.2".parse()?;
        for (name, address) in [
            ("web.shop.svc.cluster.local", vip),
            ("db.shop.svc.cluster.local", db.ip()),
            ("db-0.db.shop.svc.cluster.local", db.ip()),
        ] {
            let found = found(&client, server, ask, name)?;
            ensure!(found == [address], "{name}: {found:?}");
        }
        for (name, address) in [
            ("web", vip),
            ("web.shop", vip),
            ("db-0.db", db.ip()),
            (
                "api.partner.example",
                found(&client, server, ask, "api.partner.example")?[0],
            ),
        ] {
            let listed = client.exec(["getent", "ahosts", name])?.success()?;
            ensure!(listed.contains(&address.to_string()), "{name}: {listed}");
        }
        let upstream = lab.name_server().process()?.log();
        ensure!(!knows(
            &lab.node(1).config_dump()?,
            "idle.shop.svc.cluster.local"
        ));

        // Nobody has it: the name server is asked, and says so. Then somebody comes.
        let late = "late.partner.example";
        ensure!(!upstream.contains(late));
        ensure!(ask(&client, server, late, A)?.code == NXDOMAIN);
        let upstream = lab.name_server().process()?;
        wait::until_true("it to be asked", SOON, || upstream.log().contains(late))?;
        lab.apply_yaml("late", &partner(late, web.ip()))?;
        found(&client, server, ask, late)?;

        // Without a control plane, what is known is answered and everything else relayed.
        lab.control_plane()?.kill()?;
        ensure!(ask(&client, server, "web.shop.svc.cluster.local", A)?.addresses == [vip]);
        ensure!(ask(&client, server, OUTSIDE_NAMES[0], A)?.code == 0);
        ensure!(ask(&client, server, "new.partner.example", A)?.code == NXDOMAIN);
        lab.apply_yaml("new", &partner("new.partner.example", web.ip()))?;
        lab.control_plane()?.start()?;
        found(&client, server, ask, "new.partner.example")?;
        Ok(())
    });
}

type Ask = fn(&Pod, SocketAddr, &str, u16) -> Result<support::dns::Answer>;

/// The addresses of a name, once it has some: a question waits for a busy control plane for a moment only.
fn found(client: &Pod, server: SocketAddr, ask: Ask, name: &str) -> Result<Vec<IpAddr>> {
    wait::until(name, SOON + Duration::from_secs(10), || {
        let answer = ask(client, server, name, A)?;
        Ok(match answer.addresses.is_empty() {
            false => Probe::Ready(answer.addresses),
            true => Probe::NotYet(format!("{answer:?}")),
        })
    })
}

/// A host of its own that leads to a pod; its address is given by the control plane.
fn partner(host: &str, pod: IpAddr) -> String {
    let name = host.split('.').next().unwrap_or_default();
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}, namespace: partners}}\n\
         spec: {{hosts: [{host}], ports: [{{number: 80, name: tcp, protocol: TCP, targetPort: 8080}}], resolution: STATIC, \
         endpoints: [{{address: {pod}}}]}}\n"
    )
}

const NAMED: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
    spec: {clusterIP: 10.96.200.2, selector: {app: web}, ports: [{name: tcp, port: 80, targetPort: 8080}]}\n---\n\
    apiVersion: v1\nkind: Service\nmetadata: {name: idle, namespace: shop}\n\
    spec: {clusterIP: 10.96.200.3, selector: {app: web}, ports: [{name: tcp, port: 80, targetPort: 8080}]}\n---\n\
    apiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\n\
    spec: {clusterIP: None, selector: {app: db}, ports: [{name: tcp, port: 5432}]}\n";

#[test]
fn a_pod_outside_of_the_mesh_asks_the_name_server_itself() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("old").plain()?;
        let pod = lab.pod("old/box").start()?;
        let service = lab.service("old/box", &[(80, 8080)])?;
        ensure!(ask(&pod, lab.name_server_address(), &service.host, A)?.code == NXDOMAIN);
        Ok(())
    });
}
