//! Names inside a captured pod: the mesh's answered on the spot, the rest relayed to the name server the pod asked.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use anyhow::ensure;
use lab::{Lab, OUTSIDE_NAMES};
use support::{
    dns::{A, AAAA, NXDOMAIN, ask, ask_tcp},
    in_lab,
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
            for (kind, is_of_kind) in [
                (A, std::net::IpAddr::is_ipv4 as fn(&_) -> _),
                (AAAA, std::net::IpAddr::is_ipv6),
            ] {
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
