//! What breaks, and what must not break with it. The page is docs/faults.md.
//!
//! | module | what goes wrong |
//! |---|---|
//! | here | parts that die, links that are cut |
//! | `clock` | nodes whose clocks disagree |
//! | `signer` | nobody signs certificates for longer than they last |
//! | `flapping` | the way to a control plane that tells of much is cut every second |
//! | `flood` | ten thousand policies, a hundred of which change every second |
//! | `names` | the name server of the outside world is dead or silent |

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod clock;
mod flapping;
mod flood;
mod names;
mod signer;
#[path = "../support/mod.rs"]
mod support;

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lab::{Lab, Pod, wait};
use support::{Pair, SOON, Server, ends, in_lab, refused, round_trip, talk, talk_soon};

const MODE: &str = "istio.io/dataplane-mode";
/// Longer than the short certificates of a test last.
const LONG: Duration = Duration::from_secs(120);

/// Waits until the sum of a metric over some nodes is as it should be.
fn until_metric(
    lab: &Lab,
    nodes: &[usize],
    name: &str,
    labels: &[(&str, &str)],
    fits: impl Fn(f64) -> bool,
) -> Result<()> {
    wait::until(name, LONG, || {
        let values = nodes
            .iter()
            .map(|&node| Ok(lab.metrics(node)?.sum(name, labels)));
        let value = values.sum::<Result<f64>>()?;
        Ok(if fits(value) {
            wait::Probe::Ready(())
        } else {
            wait::Probe::NotYet(format!("it is {value}"))
        })
    })
}

#[test]
fn without_the_control_plane_traffic_goes_on_and_known_identities_connect() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let near = lab
            .pod("shop/near")
            .node(0)
            .service_account("near")
            .start()?;
        let mut open = talk(&pair.client, pair.at(), "before")?;
        lab.control_plane()?.kill()?;
        round_trip(&mut open, "during")?;
        for client in [&pair.client, &near] {
            talk(client, pair.at(), "a new connection")?;
        }
        lab.control_plane()?.start()?;
        round_trip(&mut open, "after")?;
        // It is taken up again: what is new reaches the nodes.
        lab.pod("shop/late")
            .node(1)
            .service_account("late")
            .start()?;
        Ok(())
    });
}

#[test]
fn without_the_control_plane_a_pod_it_never_told_of_waits_and_then_learns_why() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        let server = lab.pod("shop/web").start()?;
        let _echo = Server::echo(&server, 8080)?;
        lab.control_plane()?.kill()?;
        // The node agent reads of it and enrols it; who it is to the mesh, ztunnel cannot know.
        let newcomer = lab
            .pod("shop/newcomer")
            .service_account("newcomer")
            .without_waiting()
            .start()?;
        ensure!(newcomer.enrolled()?);
        let reason = "the control plane has not told of this pod within 10s; is it running, and does it list the pod?";
        waits_and_is_refused(lab, &newcomer, &server, Duration::from_secs(10), |error| {
            error == reason
        })?;
        lab.control_plane()?.start()?;
        talk_soon(&newcomer, server.at(8080))
    });
}

#[test]
fn without_the_control_plane_a_new_identity_waits_and_then_learns_that_it_has_no_certificate() {
    in_lab(Lab::builder(), |lab| {
        lab.namespace("shop").ambient()?;
        let server = lab.pod("shop/web").node(1).start()?;
        let _echo = Server::echo(&server, 8080)?;
        // Known to every node while it is not in the mesh, and without a certificate for that reason.
        let newcomer = lab
            .pod("shop/newcomer")
            .service_account("newcomer")
            .label(MODE, "none")
            .start()?;
        lab.control_plane()?.kill()?;
        newcomer.set_label(MODE, "ambient")?;
        wait::until_true("the newcomer to be enrolled", SOON, || {
            newcomer.enrolled().is_ok_and(|yes| yes)
        })?;
        let reason = format!(
            "no certificate for {} yet: the certificate authority does not answer: ",
            newcomer.identity()
        );
        waits_and_is_refused(lab, &newcomer, &server, Duration::from_secs(5), |error| {
            error.starts_with(&reason) && error.len() > reason.len()
        })?;
        lab.control_plane()?.start()?;
        talk_soon(&newcomer, server.at(8080))
    });
}

/// Expects that `client` of node 0 is made to wait for `at_least`, is refused, and that its ztunnel says why.
fn waits_and_is_refused(
    lab: &Lab,
    client: &Pod,
    server: &Pod,
    at_least: Duration,
    reason: impl Fn(&str) -> bool,
) -> Result<()> {
    let log = lab.access_log(0)?.from_now();
    let began = Instant::now();
    refused(client, server.at(8080))?;
    let waited = began.elapsed();
    ensure!(waited >= at_least, "it was refused after only {waited:?}");
    let from = format!("{}:", client.ip());
    let record = log.find("the refusal", |r| r.field("src.addr").starts_with(&from))?;
    ensure!(record.outbound() && reason(record.error()), "{record:#?}");
    Ok(())
}

#[test]
fn pods_recover_when_ztunnel_dies_or_restarts() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let near = lab.pod("shop/near").node(0).start()?;
        for node in [0, 1] {
            let ztunnel = lab.node(node).ztunnel()?;
            ztunnel.restart()?;
            talk_soon(&pair.client, pair.at())?;
            talk_soon(&near, pair.at())?;
            ztunnel.kill()?;
            // Meshed pods fail closed while their proxy is away.
            let victim = if node == 0 { &near } else { &pair.client };
            refused(victim, pair.at())?;
            ztunnel.start()?;
            talk_soon(&pair.client, pair.at())?;
            talk_soon(&near, pair.at())?;
        }
        Ok(())
    });
}

#[test]
fn the_node_agent_may_die_and_return_without_a_pod_noticing() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let mut open = talk(&pair.client, pair.at(), "before")?;
        for node in [0, 1] {
            lab.node(node).agent()?.kill()?;
        }
        round_trip(&mut open, "during")?;
        talk(&pair.client, pair.at(), "a new one")?;
        // A pod that should be in the mesh may not start outside of it.
        let error = lab
            .pod("shop/early")
            .node(0)
            .without_waiting()
            .start()
            .unwrap_err();
        ensure!(format!("{error:#}").contains("istio-cni"), "{error:#}");
        for node in [0, 1] {
            lab.node(node).agent()?.start()?;
            lab.node(node).ztunnel()?.until_ready()?;
        }
        round_trip(&mut open, "after")?;
        talk(&pair.client, pair.at(), "a new one")?;
        let late = lab.pod("shop/late").node(0).start()?;
        talk_soon(&late, pair.at())
    });
}

#[test]
fn agent_and_ztunnel_together_come_back_to_the_pods_they_had() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        talk(&pair.client, pair.at(), "before")?;
        let node = lab.node(0);
        node.ztunnel()?.kill()?;
        node.agent()?.kill()?;
        node.agent()?.start()?;
        node.ztunnel()?.start()?;
        talk_soon(&pair.client, pair.at())?;
        ensure!(
            pair.server.enrolled()?,
            "{:?}",
            pair.server.mirrored_status()?
        );
        Ok(())
    });
}

#[test]
fn a_pod_deleted_in_mid_connection_ends_that_connection_only() {
    in_lab(
        Lab::builder().ztunnel_env("CONNECTION_TERMINATION_DEADLINE", "3s"),
        |lab| {
            let pair = Pair::start(lab)?;
            let doomed = lab
                .pod("shop/doomed")
                .node(0)
                .service_account("doomed")
                .start()?;
            let doomed_echo = Server::echo(&doomed, 8080)?;
            let mut kept = talk(&pair.client, pair.at(), "kept")?;
            let cut = talk(&pair.client, doomed.at(8080), "cut")?;
            let leaving = lab.pod("shop/leaving").node(1).start()?;
            let cut_too = talk(&leaving, pair.at(), "cut too")?;
            // The kubelet kills the programs first; ours live in this process.
            drop(doomed_echo);
            doomed.delete()?;
            ends(cut, SOON)?;
            leaving.delete()?;
            drop(cut_too);
            round_trip(&mut kept, "still here")?;
            talk(&pair.client, pair.at(), "and new ones too")?;
            for node in [0, 1] {
                wait::until(&format!("node {node} to forget the pods"), SOON, || {
                    let dump = lab.node(node).config_dump()?.to_string();
                    Ok(if dump.contains("doomed") || dump.contains("leaving") {
                        wait::Probe::NotYet("they are in its dump".into())
                    } else {
                        wait::Probe::Ready(())
                    })
                })?;
            }
            Ok(())
        },
    );
}

#[test]
fn a_node_whose_link_is_cut_and_restored_is_reached_again() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        talk(&pair.client, pair.at(), "before")?;
        lab.unplug(0)?;
        let mut stream = pair.client.connect(pair.at())?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"into the void")?;
        ensure!(
            !matches!(stream.read(&mut [0; 16]), Ok(1..)),
            "the plug was pulled"
        );
        lab.replug(0)?;
        talk_soon(&pair.client, pair.at())
    });
}
