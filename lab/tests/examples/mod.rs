//! The YAML of `docs/layer4.md`, as it stands there, applied and tried.

use std::net::{IpAddr, SocketAddr, TcpListener};

use anyhow::{Context, Result, ensure};
use lab::{Lab, OUTSIDE_NAMES, Pod};

use crate::support::{
    Server,
    dns::{A, ask},
    echo, in_lab, refused, talk, talk_soon,
};

const PAGE: &str = include_str!("../../../docs/layer4.md");
const VALUES: &str = include_str!("../../../manifests/charts/ambit/values.yaml");

/// The first block of that language below a heading.
fn block(heading: &str, language: &str) -> Result<&'static str> {
    let (_, below) = PAGE
        .split_once(&format!("\n## {heading}\n"))
        .with_context(|| format!("no heading {heading}"))?;
    let (_, block) = below
        .split_once(&format!("\n```{language}\n"))
        .with_context(|| format!("no {language} below {heading}"))?;
    Ok(block.split_once("```").context("a block without end")?.0)
}

fn yaml(heading: &str) -> Result<&'static str> {
    block(heading, "yaml")
}

fn until_known(lab: &Lab, host: &str) -> Result<()> {
    lab.until_all_dumps(host, |dump| {
        let mut services = dump["services"].as_array().into_iter().flatten();
        services.any(|it| it["hostname"] == host)
    })
}

/// The address that the mesh gave a host.
fn address_of(lab: &Lab, client: &Pod, host: &str) -> Result<IpAddr> {
    let answer = ask(client, lab.name_server_address(), host, A)?;
    let first = answer.addresses.first();
    first
        .copied()
        .with_context(|| format!("{host}: {answer:?}"))
}

#[test]
fn a_dead_server_costs_nobody_a_connection() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        lab.namespace("machines").plain()?;
        let ledger = lab.pod("machines/ledger").start()?;
        // Nobody listens there.
        let gone = lab.pod("machines/gone").start()?;
        let client = lab.pod("shop/client").start()?;
        let _echo = Server::echo(&ledger, 8080)?;
        let example = yaml("A server that goes, and one that is dead")?
            .replace("203.0.113.7", &gone.ip().to_string())
            .replace("203.0.113.8", &ledger.ip().to_string());
        lab.apply_yaml("ledger", &example)?;
        let host = "ledger.shop.example";
        until_known(lab, host)?;
        let to = SocketAddr::new(address_of(lab, &client, host)?, 80);
        talk_soon(&client, to)?;
        for _ in 0..20 {
            talk(&client, to, "kept in the books")?;
        }
        let reached = [("outcome", "reached")];
        let reached = lab
            .metrics(0)?
            .sum("ambit_connection_retries_total", &reached);
        ensure!(reached > 0.0, "the dead one was never tried");
        Ok(())
    });
}

#[test]
fn only_whom_the_list_names_is_called_from_a_namespace_that_refuses() {
    in_lab(Lab::builder().nodes(1), |lab| {
        let heading = "Who may call out";
        let mut command = block(heading, "sh")?.split_whitespace().skip(3);
        let namespace = command.next().context("a namespace")?;
        let label = command.next().and_then(|label| label.split_once('='));
        lab.namespace(namespace)
            .labelled(&[label.context("a label")?])?;
        let held = lab.pod(&format!("{namespace}/app")).start()?;
        let outside = |port| -> Result<Server> {
            let listener = lab.outside().within(|| TcpListener::bind(("::", port)))??;
            Ok(Server::over(listener, echo))
        };
        let (_partner, _office) = (outside(8000)?, outside(7000)?);
        let address = lab.outside_addresses()[0];
        let office = SocketAddr::new(address, 7000);
        refused(&held, office)?;

        let example = yaml(heading)?
            .replace("203.0.113.0/24", &format!("{address}/32"))
            .replace("number: 80,", "number: 8000,");
        lab.apply_yaml("list", &example)?;
        let partner = OUTSIDE_NAMES[0];
        ensure!(
            example.contains(partner),
            "another name than the outside has"
        );
        for host in [partner, "office.example"] {
            until_known(lab, host)?;
        }
        talk_soon(&held, office)?;
        let partner = address_of(lab, &held, partner)?;
        ensure!(partner != address, "an address of the mesh is given");
        talk_soon(&held, SocketAddr::new(partner, 8000))?;
        refused(&held, SocketAddr::new(address, 8000))?;
        // Not on the list: the same host's other address.
        let other = lab.outside_addresses()[1];
        let log = lab.access_log(0)?.from_now();
        refused(&held, SocketAddr::new(other, 7000))?;
        log.find("the refusal", |record| {
            record
                .error()
                .starts_with("egress refused by label ambit.io/egress")
        })?;
        Ok(())
    });
}

#[test]
fn names_that_only_the_mesh_knows_are_found() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        let db = lab.pod("shop/db-0").label("app", "db").start()?;
        let client = lab.pod("shop/client").start()?;
        let _echo = Server::echo(&db, 8080)?;
        lab.apply_yaml("names", yaml("Names")?)?;
        for host in ["db.shop.svc.cluster.local", "*.archive.example"] {
            until_known(lab, host)?;
        }
        lab.until_all_dumps("the pod behind both", |dump| {
            let mut services = dump["services"].as_array().into_iter().flatten();
            services.all(|it| {
                it["endpoints"]
                    .as_object()
                    .is_some_and(|all| !all.is_empty())
            })
        })?;
        for name in ["db", "db.shop", "db-0.db"] {
            let found = client.exec(["getent", "ahosts", name])?.success()?;
            ensure!(found.contains(&db.ip().to_string()), "{name}: {found}");
        }
        for name in ["archive.example", "today.archive.example"] {
            let found = client.exec(["getent", "ahostsv4", name])?.success()?;
            let address: IpAddr = found
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .parse()?;
            talk_soon(&client, SocketAddr::new(address, 80))?;
        }
        Ok(())
    });
}

#[test]
fn what_a_pod_keeps_to_itself_is_not_captured() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        let annotations = yaml("What is not captured")?.lines().filter_map(|line| {
            let (key, value) = line.trim().split_once(": ")?;
            Some((key, value.trim_matches('"')))
        });
        let keeping = annotations.fold(lab.pod("shop/keeping"), |pod, (key, value)| {
            pod.annotation(key, value)
        });
        let keeping = keeping.start()?;
        let other = lab.pod("shop/other").start()?;
        let listener = lab.outside().within(|| TcpListener::bind(("::", 5432)))??;
        let _database = Server::over(listener, echo);
        let to = SocketAddr::new(lab.outside_addresses()[0], 5432);
        let log = lab.access_log(0)?.from_now();
        talk(&keeping, to, "left alone")?;
        drop(talk(&other, to, "captured")?);
        log.find("the other's call", |record| {
            record.field("src.workload") == "other"
        })?;
        let all = log.records();
        let of_keeping = |record: &lab::AccessRecord| record.field("src.workload") == "keeping";
        ensure!(!all.iter().any(of_keeping), "{all:?}");
        Ok(())
    });
}

/// That the chart takes them, and the programs read what it makes of them, `manifests/render` tries.
#[test]
fn values_that_the_page_names_are_the_charts() -> Result<()> {
    let headings = [
        "Bounds, and metrics that stay small",
        "A mesh too large to be known everywhere",
    ];
    let (_, ztunnel) = VALUES.split_once("\nztunnel:\n").context("ztunnel")?;
    let keys = |text: &'static str, indent: &'static str| {
        text.lines().filter_map(move |line| {
            let key = line.strip_prefix(indent)?.split_once(':')?.0;
            key.starts_with(|first: char| first.is_ascii_lowercase())
                .then_some(key)
        })
    };
    for heading in headings {
        let example = yaml(heading)?;
        ensure!(example.starts_with("ztunnel:\n"), "{heading}");
        for indent in ["  ", "    "] {
            for key in keys(example, indent) {
                let is_there = keys(ztunnel, indent).any(|there| there == key);
                // What is free below `resources`.
                ensure!(
                    is_there || key == "limits",
                    "{heading}: the chart has no {key}"
                );
            }
        }
    }
    Ok(())
}
