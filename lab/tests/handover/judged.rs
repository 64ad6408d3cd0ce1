//! Policies change after a hand-over: who is denied now is cut and told of, as on any connection, and all others go on.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Result, ensure};
use lab::{Lab, Pod, wait};

use crate::{
    support::{SOON, Server, echo, ends, in_lab, round_trip, talk},
    upgrade,
    ways::own,
};

/// Denies an account of `shop` at its server.
fn deny(account: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: no-{account}, namespace: shop}}\nspec:\n  \
         selector: {{matchLabels: {{app: web}}}}\n  action: DENY\n  rules:\n  - from: [{{source: {{principals: [cluster.local/ns/shop/sa/{account}]}}}}]\n"
    )
}

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: strict, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";

#[test]
fn what_was_handed_over_is_cut_when_a_policy_turns_against_it_and_the_rest_goes_on() {
    in_lab(own(), |lab| {
        lab.namespace("shop").ambient()?;
        lab.namespace("out").plain()?;
        let pod = |name: &str, node| {
            let pod = lab.pod(&format!("shop/{name}")).node(node);
            pod.service_account(name).start()
        };
        let web = pod("web", 0)?;
        let _echo = Server::echo(&web, 8080)?;
        let (near, far, friend) = (pod("near", 0)?, pod("far", 1)?, pod("friend", 1)?);
        let outsider = lab.pod("out/side").node(1).start()?;
        let open = |client: &Pod| talk(client, web.at(8080), "before");
        let mut kept = open(&friend)?;
        let denied = [("far", open(&far)?), ("near", open(&near)?)];
        let plain = open(&outsider)?;
        // That at which they are judged, and that which opened the tunnels.
        upgrade(lab, 0)?;
        upgrade(lab, 1)?;
        for (account, stream) in denied {
            let log = lab.access_log(0)?.from_now();
            lab.apply_yaml(account, &deny(account))?;
            ends(stream, SOON)?;
            let record = log.find("who was cut", |it| {
                it.inbound() && it.field("src.workload") == account
            })?;
            let policy = format!("shop/no-{account}");
            ensure!(
                record
                    .error()
                    .contains(&format!("explicitly denied by: {policy}"))
                    && record.field("policy") == policy,
                "{record:?}"
            );
            let moved = (record.number("bytes_sent"), record.number("bytes_recv"));
            ensure!(moved == (6, 6), "all of it is told: {record:?}");
            round_trip(&mut kept, "not meant")?;
        }
        let log = lab.access_log(0)?.from_now();
        lab.apply_yaml("strict", STRICT)?;
        ends(plain, SOON)?;
        let from = format!("{}:", outsider.ip());
        let record = log.find("the plain one", |it| {
            it.inbound() && it.field("src.addr").starts_with(&from)
        })?;
        ensure!(record.error().contains("policy rejection"), "{record:?}");
        round_trip(&mut kept, "it has an identity")?;
        // What one process has allowed the next one may deny.
        upgrade(lab, 0)?;
        round_trip(&mut kept, "with the third")?;
        lab.apply_yaml("friend", &deny("friend"))?;
        ends(kept, SOON)
    });
}

/// The successor is told only of whom it asks for, and has asked for nobody: whom the elder knew is not outside for that.
#[test]
fn what_goes_out_of_the_mesh_is_cut_when_that_is_refused_but_not_what_was_on_the_list() {
    let builder = own().nodes(1).ztunnel_env("XDS_ON_DEMAND", "true");
    in_lab(builder, |lab| {
        lab.namespace("shop").ambient()?;
        let client = lab.pod("shop/client").node(0).start()?;
        let outside = |port: u16| -> Result<(Server, SocketAddr)> {
            let listener = lab.outside().within(|| TcpListener::bind(("::", port)))??;
            let to = SocketAddr::new(lab.outside_addresses()[0], port);
            Ok((Server::over(listener, echo), to))
        };
        let ((_other, other), (_listed, listed)) = (outside(7000)?, outside(7001)?);
        let entry = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: far, namespace: shop}}\n\
             spec: {{hosts: [far.example], addresses: ['{}'], ports: [{{number: 7001, name: tcp}}], resolution: NONE}}\n",
            listed.ip()
        );
        let unknown = talk(&client, other, "to nobody in particular")?;
        lab.apply_yaml("far", &entry)?;
        until_known(lab, &client, listed)?;
        let mut known = talk(&client, listed, "to who is on the list")?;
        upgrade(lab, 0)?;
        let log = lab.access_log(0)?.from_now();
        // As long as it is there, its address is known at every port.
        lab.delete_yaml("far")?;
        lab.namespace("shop")
            .labelled(&[("ambit.io/egress", "refuse")])?;
        ends(unknown, SOON)?;
        let record = log.find("the refusal", |it| {
            it.outbound() && it.field("dst.addr") == other.to_string()
        })?;
        ensure!(record.error().contains("egress refused"), "{record:?}");
        round_trip(&mut known, "it was let out")
    });
}

fn until_known(lab: &Lab, client: &Pod, to: SocketAddr) -> Result<()> {
    wait::until_true("the list to be known", SOON, || {
        let talked = talk(client, to, "who is it?").is_ok();
        let dump = lab.node(0).config_dump();
        talked && dump.is_ok_and(|dump| dump["services"].to_string().contains("far.example"))
    })
}
