//! The endpoints of a service, seen from one flow: it stays with the one that it has, and when that has gone another takes over.

use super::*;

/// Two servers on node 0 in namespace `depot`, whose labels these are, behind one service.
fn behind(lab: &Lab, labels: &[(&str, &str)]) -> Result<([(Pod, Echo); 2], SocketAddr)> {
    lab.namespace("depot").labelled(labels)?;
    let start = |name: &str| {
        let pod = lab.pod(&format!("depot/{name}")).node(0);
        let pod = pod.label("app", "echo").start()?;
        let echo = Echo::start(&pod, 5353)?;
        Ok::<_, anyhow::Error>((pod, echo))
    };
    let both = [start("one")?, start("two")?];
    let service = lab.service_for("depot/echo", ("app", "echo"), &[("udp", 5300, 5353)])?;
    if !labels.is_empty() {
        until_carried(lab, &[&both[0].0, &both[1].0])?;
    }
    Ok((both, service.at(5300)))
}

#[test]
fn a_flow_stays_with_its_endpoint_and_goes_to_another_when_that_is_gone() {
    // In tunnels, and as it is.
    for labels in [&[ENABLED][..], &[]] {
        // A flow that ended because nothing was said for a moment would be another one.
        let builder = Lab::builder().ztunnel_env("AMBIT_UDP_IDLE_TIMEOUT", "12s");
        in_lab(builder, |lab| {
            let (client_pod, _) = pods(lab, &[ENABLED])?;
            until_carried(lab, &[&client_pod])?;
            let (servers, to) = behind(lab, labels)?;
            let socket = client(&client_pod)?;
            talk(&socket, to, b"whoever")?;
            for _ in 0..20 {
                talk(&socket, to, b"the same")?;
            }
            let counts = servers.each_ref().map(|(_, echo)| echo.seen().len());
            ensure!(counts.contains(&0), "one flow went to both: {counts:?}");
            let had = usize::from(counts[0] == 0);

            servers[had].0.delete()?;
            // It never falls silent, so that it would not end by itself.
            talk(&socket, to, b"whoever is left")?;
            ensure!(!servers[1 - had].1.seen().is_empty());
            let log = lab.access_log(1)?;
            let to_other = |record: &lab::AccessRecord| {
                let name = servers[1 - had].0.name();
                record.outbound()
                    && record.field("dst.workload") == name
                    && record.error().is_empty()
            };
            log.find("the flow to the other", to_other).map(drop)
        });
    }
}

#[test]
fn an_endpoint_that_cannot_be_had_is_left_for_another_before_a_datagram_is_lost_to_it() {
    in_lab(builder(), |lab| {
        let (client_pod, far) = pods(lab, &[ENABLED])?;
        let near = lab.pod("shop/near").node(1).start()?;
        until_carried(lab, &[&client_pod, &far, &near])?;
        let _echoes = [Echo::start(&far, 5353)?, Echo::start(&near, 5353)?];
        for pod in [&far, &near] {
            pod.set_label("app", "udp-echo")?;
        }
        let service = lab.service_for("shop/echo", ("app", "udp-echo"), &[("udp", 5300, 5353)])?;
        talk(&client(&client_pod)?, service.at(5300), b"whoever")?;
        lab.node(0).ztunnel()?.kill()?;
        let log = lab.access_log(1)?.from_now();
        for _ in 0..16 {
            talk(&client(&client_pod)?, service.at(5300), b"whoever is left")?;
        }
        let record = log.find("a flow that was tried again", |record| {
            record.outbound() && record.number("tries") == 2 && record.error().is_empty()
        })?;
        ensure!(record.field("dst.workload") == "near", "{record:?}");
        ensure!(record.field("note").contains("tried before"), "{record:?}");
        let retried = lab
            .metrics(1)?
            .sum("ambit_connection_retries_total", &[("outcome", "reached")]);
        ensure!(retried >= 1.0, "{retried}");
        lab.node(0).ztunnel()?.start()
    });
}
