//! What an operator asks about datagrams: before, what would become of them; while they flow, which there are.

use std::process::Command;

use lab::Ran;
use serde_json::Value;

use super::*;

/// Runs `ambit` beside a node's ztunnel, which alone is asked.
fn ambit(lab: &Lab, node: usize, words: &[&str]) -> Result<Ran> {
    let mut command = Command::new(lab.bin_dir().join("ambit"));
    let proxy = format!("--proxy={}=127.0.0.1:15000", lab.node(node).name());
    command.args(words).arg(proxy);
    let pod = lab.node(node).ztunnel_pod()?;
    pod.netns().run(command, b"", SOON)
}

fn explained(lab: &Lab, node: usize, source: &str, to: SocketAddr) -> Result<Value> {
    let words = ["explain", "--udp", "-o", "json", source, &to.to_string()];
    let ran = ambit(lab, node, &words)?;
    serde_json::from_str(&ran.stdout).with_context(|| ran.stderr)
}

fn is(said: &Value, verdict: &str, goes: &str, arrives: &str) -> Result<()> {
    let decision = &said["answers"]["leaving"]["answer"]["decision"];
    let there = &said["answers"]["arriving"]["answer"];
    ensure!(said["verdict"] == verdict, "{said:#}");
    ensure!(decision["goes"] == goes, "{said:#}");
    ensure!(there["arrives"] == arrives, "{said:#}");
    Ok(())
}

#[test]
fn what_becomes_of_datagrams_is_told_before_and_flows_are_listed_as_such() {
    in_lab(builder(), |lab| {
        let (client_pod, server) = pods(lab, &[ENABLED])?;
        lab.namespace("old").labelled(&[])?;
        let other = lab.pod("old/other").node(1).start()?;
        until_carried(lab, &[&client_pod, &server])?;
        let _echo = Echo::start(&server, 5353)?;
        let to = server.at(5353);

        let said = explained(lab, 1, "shop/client", to)?;
        is(&said, "allowed", "tunnel", "tunnel")?;
        let said = explained(lab, 1, "old/other", to)?;
        is(&said, "allowed", "untouched", "plain")?;
        let said = explained(lab, 1, "shop/client", other.at(5353))?;
        is(&said, "allowed", "plain", "plain")?;
        ensure!(
            said["because"]
                .as_str()
                .is_some_and(|why| why.contains("ambit.io/udp")),
            "{said:#}"
        );

        let socket = client(&client_pod)?;
        talk(&socket, to, b"so many bytes")?;
        for (node, direction) in [(1, "outbound"), (0, "inbound")] {
            let words = |protocol| ["connections", "-o", "json", "--protocol", protocol];
            let listed = |protocol| {
                let ran = ambit(lab, node, &words(protocol))?;
                let said: Value = serde_json::from_str(&ran.stdout)?;
                Ok::<_, anyhow::Error>(said["connections"].as_array().cloned().unwrap_or_default())
            };
            wait::until_true("a flow that is listed", SOON, || {
                let _ = once(&socket, to, b"so many bytes");
                listed("udp").is_ok_and(|all| {
                    let mut all = all.iter();
                    all.any(|it| {
                        let carried = it["carried"] == "tunnel" && it["protocol"] == "udp";
                        carried
                            && it["direction"] == direction
                            && it["bytesSent"].as_u64() >= Some(13)
                    })
                })
            })?;
            ensure!(listed("tcp")?.iter().all(|it| it["protocol"] == "tcp"));
            wait::until("a flow that is counted", SOON, || {
                // It ends when nothing is said for a while.
                let _ = once(&socket, to, b"still there");
                let ran = ambit(lab, node, &["top", "--once", "--every", "1", "-o", "json"])?;
                let top: Value = serde_json::from_str(&ran.stdout)?;
                let mut rows = top["workloads"].as_array().into_iter().flatten();
                Ok(if rows.any(|row| row["flows"].as_u64() >= Some(1)) {
                    wait::Probe::Ready(())
                } else {
                    wait::Probe::NotYet(format!("{top:#}"))
                })
            })?;
        }

        lab.apply_yaml("deny", DENY)?;
        lab.until_policy("shop/no-clients", true)?;
        let said = explained(lab, 0, "shop/client", to)?;
        is(&said, "refused", "tunnel", "tunnel")?;
        ensure!(
            said["decidedAt"] == "destination" && said["flag"] == "DENY",
            "{said:#}"
        );
        let change = said["toChange"][0].as_str().unwrap_or_default();
        ensure!(
            change.contains("shop/no-clients must not match any more"),
            "{change}"
        );
        unanswered(&client(&client_pod)?, to)
    });
}
