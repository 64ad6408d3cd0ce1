//! Nodes that know only whom their pods talk to.

use lab::{AccessLog, AccessRecord};
use nix::sys::signal::Signal;

use super::*;

fn on_demand(lab: &Lab, node: usize) -> Result<()> {
    for (key, value) in [("XDS_ON_DEMAND", "true"), ("AMBIT_ON_DEMAND_WAIT", "2s")] {
        lab.node(node).set_ztunnel_env(key, value)?;
    }
    let old = lab.surge_ztunnel(node)?;
    old.signal(Signal::SIGTERM)?;
    old.wait(SOON)?;
    Ok(())
}

fn knows(dump: &serde_json::Value, name: &str) -> bool {
    let mut workloads = dump["workloads"].as_array().into_iter().flatten();
    workloads.any(|it| it["name"] == name)
}

/// What is said of datagrams that go on coming.
fn while_sending(
    socket: &UdpSocket,
    to: SocketAddr,
    log: &AccessLog,
    fits: impl Fn(&AccessRecord) -> bool,
) -> Result<AccessRecord> {
    wait::until(&format!("what is said of datagrams to {to}"), SOON, || {
        let _ = socket.send_to(b"anyone?", to);
        let records = log.records();
        Ok(match records.iter().find(|record| fits(record)) {
            Some(found) => wait::Probe::Ready(found.clone()),
            None => wait::Probe::NotYet(format!("{records:#?}")),
        })
    })
}

#[test]
fn who_sends_datagrams_is_asked_for_where_they_arrive_and_whom_nobody_tells_of_is_not_sent_any() {
    in_lab(builder(), |lab| {
        let (client_pod, server) = pods(lab, &[ENABLED])?;
        lab.namespace("old").plain()?;
        let outsider = lab.pod("old/outsider").node(1).start()?;
        let other = lab.pod("shop/other").node(0).start()?;
        until_carried(lab, &[&client_pod, &server, &other])?;
        let _echoes = [Echo::start(&server, 5353)?, Echo::start(&other, 5353)?];
        for node in [0, 1] {
            on_demand(lab, node)?;
        }
        lab.until_dump(0, "its own pod", |dump| knows(dump, "web"))?;
        lab.until_dump(1, "its own pod", |dump| knows(dump, "client"))?;
        for (node, stranger) in [(0, "client"), (0, "outsider"), (1, "web"), (1, "other")] {
            let dump = lab.node(node).config_dump()?;
            ensure!(
                !knows(&dump, stranger),
                "nobody asked node {node} for {stranger}"
            );
        }

        let logs = logs_from_now(lab)?;
        let socket = client(&client_pod)?;
        talk(&socket, server.at(5353), b"in a tunnel")?;
        talk(&client(&outsider)?, server.at(5353), b"in the clear")?;
        // Each end knew both when it wrote this.
        for log in &logs {
            let record = log.find("the flow", |record| {
                between("client", "web")(record) && record.error().is_empty()
            })?;
            ensure!(
                record.field("src.identity") == client_pod.identity(),
                "{record:?}"
            );
        }
        logs[0].find("the flow in the clear", between("outsider", "web"))?;
        ensure!(flows(lab, 1, "tunnel")? >= 1.0 && flows(lab, 0, "arrived")? >= 1.0);

        // A policy judges the stranger that was asked for as any.
        let log = lab.access_log(0)?.from_now();
        lab.apply_yaml("deny", DENY)?;
        let record = while_sending(&socket, server.at(5353), &log, |record| {
            record.inbound()
                && record
                    .error()
                    .contains("explicitly denied by: shop/no-clients")
        })?;
        ensure!(record.field("src.workload") == "client", "{record:?}");
        lab.delete_yaml("deny")?;
        talk(&client(&client_pod)?, server.at(5353), b"welcome again")?;

        lab.control_plane()?.kill()?;
        talk(&client(&client_pod)?, server.at(5353), b"known before")?;
        let log = lab.access_log(1)?.from_now();
        let fresh = client(&client_pod)?;
        let record = while_sending(&fresh, other.at(5353), &log, |record| {
            record.outbound() && record.error().contains("the control plane has not said")
        })?;
        ensure!(record.field("protocol") == "udp", "{record:?}");
        unanswered(&fresh, other.at(5353))?;
        lab.control_plane()?.start()?;
        talk(&client(&client_pod)?, other.at(5353), b"now")
    });
}
