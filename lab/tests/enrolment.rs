//! Pods enter and leave the mesh while they run.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Lab, Pod, wait};
use support::{Pair, SOON, Server, in_lab, round_trip, talk};

#[test]
fn an_unenrolled_pod_is_as_if_it_had_never_been_in_the_mesh() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        lab.namespace("old").plain()?;
        // Everything it shows is what a pod shows that never was in the mesh and runs the same server.
        let untouched = lab.pod("old/untouched").node(0).start()?;
        let _same = Server::echo(&untouched, 8080)?;
        let _same_too = Server::echo(&pair.client, 8080)?;
        talk(&pair.client, pair.at(), "in the mesh")?;
        lab.namespace("shop").plain()?;
        for pod in [&pair.server, &pair.client] {
            wait::until(
                &format!("{} to leave the mesh", pod.name()),
                Duration::from_secs(60),
                || {
                    let traces = traces(pod)?;
                    Ok(if traces == self::traces(&untouched)? && !pod.enrolled()? {
                        wait::Probe::Ready(())
                    } else {
                        wait::Probe::NotYet(format!("{traces}\n{:?}", pod.mirrored_status()?))
                    })
                },
            )?;
        }
        // The tunnel of before may still say goodbye.
        wait::until("nothing in a tunnel any more", SOON, || {
            let capture = lab.capture(0)?;
            talk(&pair.client, pair.at(), "in-the-clear-again")?;
            let seen = capture.stop()?;
            ensure!(seen.shows("in-the-clear-again"));
            Ok(match seen.count("tcp port 15008")? {
                0 => wait::Probe::Ready(()),
                packets => wait::Probe::NotYet(format!("{packets} packets")),
            })
        })
    });
}

/// Everything enrolment may leave in a pod's namespace.
fn traces(pod: &Pod) -> Result<String> {
    let commands = [
        "nft list ruleset",
        "ip rule",
        "ip -6 rule",
        "ip route show table 100",
        "ip -6 route show table 100",
        "ss -Hltn",
    ];
    commands
        .iter()
        .map(|command| {
            Ok(format!(
                "{command}:\n{}",
                pod.exec(["sh", "-c", command])?.stdout
            ))
        })
        .collect()
}

#[test]
fn leaving_the_mesh_cuts_no_open_connection() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let near = lab.pod("shop/near").node(0).start()?;
        let mut tunnelled = talk(&pair.client, pair.at(), "in the mesh")?;
        let mut joined = talk(&near, pair.at(), "in the mesh")?;
        lab.namespace("shop").plain()?;
        for pod in [&pair.server, &pair.client, &near] {
            wait::until_true(&format!("{} to leave", pod.name()), SOON, || {
                pod.enrolled().is_ok_and(|yes| !yes)
            })?;
        }
        // For as long as the news takes to spread, and some time after that.
        let began = std::time::Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            round_trip(&mut tunnelled, "still in the tunnel")?;
            round_trip(&mut joined, "still joined")?;
        }
        Ok(())
    });
}

#[test]
fn a_pods_own_label_decides_before_its_namespaces() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        lab.namespace("old").plain()?;
        let mode = "istio.io/dataplane-mode";
        let out = lab.pod("shop/out").label(mode, "none").start()?;
        let also_in = lab.pod("old/in").label(mode, "ambient").start()?;
        ensure!(!out.enrolled()? && also_in.enrolled()?);
        ensure!(out.exec(["nft", "list", "ruleset"])?.success()?.is_empty());
        ensure!(
            also_in
                .exec(["nft", "list", "ruleset"])?
                .success()?
                .contains("15001")
        );
        Ok(())
    });
}

#[test]
fn a_running_pod_is_enrolled_without_cutting_what_it_does() {
    in_lab(Lab::builder(), |lab| {
        lab.namespace("shop").plain()?;
        let server = lab.pod("shop/web").node(0).start()?;
        let client = lab.pod("shop/client").node(1).start()?;
        let _echo = Server::echo(&server, 8080)?;
        let mut open = talk(&client, server.at(8080), "before there was a mesh")?;
        lab.namespace("shop").ambient()?;
        for pod in [&server, &client] {
            wait::until_true(&format!("{} to be enrolled", pod.name()), SOON, || {
                pod.enrolled().is_ok_and(|yes| yes)
            })?;
        }
        lab.until_all_dumps("both as HBONE", |dump| {
            let workloads = dump["workloads"]
                .as_array()
                .map(Vec::as_slice)
                .unwrap_or_default();
            workloads
                .iter()
                .filter(|w| w["namespace"] == "shop" && w["protocol"] == "HBONE")
                .count()
                == 2
        })?;
        let capture = lab.capture(0)?;
        round_trip(&mut open, "the old connection goes on")?;
        talk(&client, server.at(8080), "the-new-one-is-encrypted")?;
        let seen = capture.stop()?;
        ensure!(
            seen.shows("the old connection goes on") && !seen.shows("the-new-one-is-encrypted")
        );
        Ok(())
    });
}

/// As when the mesh is installed beside pods that run: ztunnel is there before the control plane can tell it anything.
#[test]
fn a_running_pod_is_not_taken_in_before_its_ztunnel_knows_the_mesh() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").plain()?;
        let server = lab.pod("shop/web").start()?;
        let client = lab.pod("shop/client").start()?;
        let _echo = Server::echo(&server, 8080)?;
        lab.control_plane()?.kill()?;
        let ztunnel = lab.node(0).ztunnel()?;
        ztunnel.kill()?;
        ztunnel.launch()?;
        lab.namespace("shop").ambient()?;
        for pod in [&server, &client] {
            wait::until_true("the agent to wait for a ztunnel", SOON, || {
                let status = pod.mirrored_status().ok().flatten();
                status.is_some_and(|status| status.contains("pending"))
            })?;
        }
        talk(&client, server.at(8080), "outside")?;
        lab.control_plane()?.start()?;
        for pod in [&server, &client] {
            wait::until_true(&format!("{} to be enrolled", pod.name()), SOON, || {
                pod.enrolled().is_ok_and(|yes| yes)
            })?;
        }
        talk(&client, server.at(8080), "inside").map(drop)
    });
}
