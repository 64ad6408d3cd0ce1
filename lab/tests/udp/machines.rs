//! A machine that is no pod, whose rules capture its UDP and whose WorkloadEntry says so.

use lab::Machine;

use super::*;

/// What its operator writes.
fn entry(machine: &Machine) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: db\n  namespace: shop\n  \
         labels: {{ambit.io/udp: enabled}}\n  annotations: {{ambient.istio.io/redirection: enabled}}\n\
         spec:\n  address: {}\n  serviceAccount: db\n  labels: {{app: db}}\n",
        machine.ip()
    )
}

fn joined(lab: &Lab) -> Result<Machine> {
    let idle = [("AMBIT_UDP_IDLE_TIMEOUT", "3s")];
    let machine = lab.machine("shop/db", "db")?.with_env(&idle);
    machine.capture_with(&["up", "--udp"])?;
    lab.apply_yaml("db", &entry(&machine))?;
    let addresses = machine.addresses();
    let words = ["token", "--namespace", "shop", "--service-account", "db"];
    let rest = ["--name", "db", "--address", &addresses];
    machine.give_token(&lab.vm(&[words.as_slice(), &rest].concat())?)?;
    machine.proxy().start()?;
    Ok(machine)
}

#[test]
fn a_machine_that_opted_in_talks_by_datagrams_both_ways_under_policy() {
    in_lab(builder(), |lab| {
        let (client_pod, server) = pods(lab, &[ENABLED])?;
        lab.namespace("old").plain()?;
        let outsider = lab.pod("old/outsider").node(1).start()?;
        let machine = joined(lab)?;
        until_carried(lab, &[&client_pod, &server])?;
        lab.until_all_dumps("the machine as one whose UDP is carried", |dump| {
            let mut workloads = dump["workloads"].as_array().into_iter().flatten();
            workloads.any(|it| it["name"] == "db" && it["udp"] == true)
        })?;
        let at_machine = Echo::within(machine.netns(), machine.ip(), 5353)?;
        let _at_server = Echo::start(&server, 5353)?;

        // To it.
        let socket = client(&client_pod)?;
        let capture = lab.capture(1)?;
        talk(&socket, machine.at(5353), b"nobody-reads-this-datagram")?;
        ensure!(!capture.stop()?.shows("nobody-reads-this-datagram"));
        let own = SocketAddr::new(client_pod.ip(), socket.local_addr()?.port());
        ensure!(at_machine.seen().contains(&own), "{:?}", at_machine.seen());
        let record = machine.access_log().find("what arrived", |it| {
            it.inbound() && it.field("protocol") == "udp" && it.error().is_empty()
        })?;
        ensure!(
            record.field("src.identity") == client_pod.identity(),
            "{record:?}"
        );

        // From it.
        let log = lab.access_log(0)?.from_now();
        let unspecified = Ipv4Addr::UNSPECIFIED.into();
        let its = socket_in(machine.netns(), unspecified, 0)?;
        talk(&its, server.at(5353), b"from the machine")?;
        let record = log.find("what the machine said", |it| {
            it.inbound() && it.field("src.workload") == "db"
        })?;
        ensure!(
            record.field("src.identity") == machine.identity(),
            "{record:?}"
        );
        ensure!(record.field("protocol") == "udp", "{record:?}");
        let left = machine.metrics()?;
        ensure!(left.sum("ambit_udp_flows_total", &[("way", "tunnel")]) >= 1.0);

        // In the clear, until that is forbidden.
        let outside = client(&outsider)?;
        talk(&outside, machine.at(5353), b"in the clear")?;
        lab.apply_yaml("strict", STRICT)?;
        let log = machine.access_log().from_now();
        let record = log.find("the refusal", |it| {
            let _ = outside.send_to(b"anyone?", machine.at(5353));
            it.inbound() && it.field("src.addr").starts_with(&outsider.ip().to_string())
        })?;
        ensure!(record.error().contains("policy rejection"), "{record:?}");
        unanswered(&outside, machine.at(5353))?;
        talk(&socket, machine.at(5353), b"with an identity")?;

        // It fails closed: what it would carry goes nowhere while there is nobody to carry it.
        machine.proxy().kill()?;
        unanswered(
            &socket_in(machine.netns(), unspecified, 0)?,
            server.at(5353),
        )?;
        machine.proxy().start()?;
        talk(&its, server.at(5353), b"again")
    });
}
