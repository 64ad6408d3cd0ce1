//! Endpoints that go, are gone, or do not answer, under callers who must not notice.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Lab, Pod};
use support::{
    Server,
    calls::{Way, calling, calls_more},
    in_lab, round_trip, talk,
};

/// A replica of `shop/web` with an echo server on port 8080.
fn replica(lab: &Lab, name: &str, node: usize) -> Result<(Pod, Server)> {
    let pod = lab
        .pod(&format!("shop/{name}"))
        .node(node)
        .label("app", "web");
    let pod = pod.service_account("web").unready().start()?;
    let server = Server::echo(&pod, 8080)?;
    pod.ready()?;
    Ok((pod, server))
}

/// What a program does that is asked to stop: it takes nothing new, and finishes what it has.
const TAKES_NOTHING_NEW: &str = "table inet stopping {
 chain in {
  type filter hook input priority 0;
  tcp dport 8080 tcp flags & (syn | ack) == syn reject with tcp reset
 }
}
";

/// A node that is gone: nobody answers, and nobody says so.
const SILENCE: &str = "table inet silence {
 chain in {
  type filter hook prerouting priority -400; policy drop;
 }
}
";

/// How many connections of a node were tried again: those that got through, and those that did not.
fn retries(lab: &Lab, node: usize) -> Result<[f64; 2]> {
    let metrics = lab.metrics(node)?;
    let tried = |outcome| metrics.sum("ambit_connection_retries_total", &[("outcome", outcome)]);
    Ok([tried("reached"), tried("failed") + tried("over_budget")])
}

#[test]
fn a_server_is_replaced_replica_by_replica_under_load_and_no_new_connection_is_lost() {
    in_lab(Lab::builder(), |lab| {
        lab.namespace("shop").ambient()?;
        let near = lab.pod("shop/near").node(0).start()?;
        let far = lab.pod("shop/far").node(1).start()?;
        let mut old = Vec::new();
        for n in 0..3 {
            old.push(replica(lab, &format!("web-a{n}"), n % 2)?);
        }
        let service = lab.service("shop/web", &[(80, 8080)])?;
        let ways = [
            Way::new("from the one node", &near, service.at(80)),
            Way::new("from the other", &far, service.at(80)),
        ];
        // Who has a connection keeps it for as long as its server finishes what it has.
        let mut kept = Vec::new();
        for (pod, _) in &old {
            kept.push(talk(&far, pod.at(8080), "before")?);
        }
        let mut new = Vec::new();
        calling(&ways, |ways| {
            for (n, ((pod, server), mut kept)) in old.into_iter().zip(kept).enumerate() {
                new.push(replica(lab, &format!("web-b{n}"), n % 2)?);
                calls_more(ways)?;
                // It stops before anybody has been told, is told of, and goes.
                pod.netns().nft(TAKES_NOTHING_NEW)?;
                calls_more(ways)?;
                pod.terminating()?;
                calls_more(ways)?;
                round_trip(&mut kept, "still here")?;
                drop((kept, server));
                pod.delete()?;
                calls_more(ways)?;
            }
            Ok(())
        })?;
        for node in [0, 1] {
            let [reached, lost] = retries(lab, node)?;
            ensure!(reached > 0.0, "node {node} never had to try again");
            ensure!(lost == 0.0, "node {node}");
        }
        Ok(())
    });
}

#[test]
fn of_three_endpoints_one_refuses_and_one_is_mute_and_every_connection_gets_through() {
    in_lab(Lab::builder(), |lab| {
        lab.namespace("shop").ambient()?;
        let client = lab.pod("shop/client").node(0).start()?;
        let (_well, _server) = replica(lab, "web-0", 1)?;
        let (refuses, mute) = (replica(lab, "web-1", 1)?, replica(lab, "web-2", 1)?);
        let service = lab.service("shop/web", &[(80, 8080)])?;
        // Also who is known, and whose tunnels are open.
        for _ in 0..12 {
            talk(&client, service.at(80), "while all is well")?;
        }
        refuses.0.netns().nft(TAKES_NOTHING_NEW)?;
        mute.0.netns().nft(SILENCE)?;
        // Within half a second of its last word a peer counts as being there and is sent an app's first bytes with
        // the request; such a request, unanswered, is not made again.
        #[allow(clippy::disallowed_methods)] // no runtime in this test
        std::thread::sleep(Duration::from_millis(700));
        let log = lab.access_log(0)?.from_now();
        for n in 0..30 {
            talk(&client, service.at(80), &format!("call {n}"))?;
        }
        let record = log.find("a connection that was tried again", |record| {
            record.number("tries") > 1
        })?;
        ensure!(
            record.error().is_empty() && record.field("note").contains("tried before: "),
            "{record:?}"
        );
        // The mute one is left for another long before it would be given up.
        for record in log.records() {
            let before = record.field("note");
            ensure!(
                !before.contains("within") && !before.contains("timed out"),
                "{record:?}"
            );
        }
        let [reached, lost] = retries(lab, 0)?;
        ensure!(
            (1.0..20.0).contains(&reached),
            "{reached} of 30 were tried again: the dead were not avoided"
        );
        ensure!(lost == 0.0, "{lost} were not tried again, or in vain");
        Ok(())
    });
}
