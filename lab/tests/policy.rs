//! Who may talk to whom: denials by name, allowance by identity, STRICT, and what happens to open connections.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lab::{Lab, Pod};
use support::{Pair, SOON, Server, ends, in_lab, refused, talk, talk_soon};

/// An AuthorizationPolicy of namespace shop for pods with label app=web.
fn policy(name: &str, action: &str, account: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  \
         selector:\n    matchLabels:\n      app: web\n  action: {action}\n  rules:\n  - from:\n    - source:\n        \
         principals: [cluster.local/ns/shop/sa/{account}]\n"
    )
}

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: default\n  namespace: shop\nspec:\n  \
    mtls:\n    mode: STRICT\n";

/// Waits until every node sees (or no longer sees) a policy attached to the pod.
fn until_guarded(lab: &Lab, pod: &Pod, guarded: bool) -> Result<()> {
    lab.until_all_dumps(&format!("{} as guarded: {guarded}", pod.name()), |dump| {
        let workloads = dump["workloads"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        workloads.iter().any(|w| {
            let attached = w["authorizationPolicies"]
                .as_array()
                .is_some_and(|all| !all.is_empty());
            w["name"] == pod.name() && attached == guarded
        })
    })
}

/// Expects that the server's node refuses `client` and says why.
fn refused_because(lab: &Lab, client: &Pod, pair: &Pair, reason: &str) -> Result<()> {
    let log = lab.access_log(0)?.from_now();
    refused(client, pair.at())?;
    // One that ended well may be told of only now.
    let record = log.find("the refusal", |r| {
        r.inbound() && r.field("src.workload") == client.name() && !r.error().is_empty()
    })?;
    ensure!(record.error().contains(reason), "{record:?}");
    Ok(())
}

#[test]
fn a_denial_names_its_policy_on_both_paths() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        let near = lab
            .pod("shop/near")
            .node(0)
            .service_account("client")
            .start()?;
        let friend = lab
            .pod("shop/friend")
            .node(1)
            .service_account("friend")
            .start()?;
        lab.apply_yaml("deny", &policy("no-clients", "DENY", "client"))?;
        lab.until_policy("shop/no-clients", true)?;
        until_guarded(lab, &pair.server, true)?;
        for client in [&pair.client, &near] {
            refused_because(lab, client, &pair, "explicitly denied by: shop/no-clients")?;
            talk(&friend, pair.at(), "still welcome")?;
        }
        ensure!(
            pair.echo
                .peers()
                .iter()
                .all(|peer| peer.ip() == friend.ip()),
            "not one byte may reach the server: {:?}",
            pair.echo.peers()
        );
        lab.delete_yaml("deny")?;
        lab.until_policy("shop/no-clients", false)?;
        talk_soon(&pair.client, pair.at())
    });
}

#[test]
fn only_the_named_identity_is_allowed_in() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        lab.namespace("old").plain()?;
        let other = lab
            .pod("shop/other")
            .node(1)
            .service_account("other")
            .start()?;
        let outsider = lab
            .pod("old/outsider")
            .node(1)
            .service_account("client")
            .start()?;
        lab.apply_yaml("allow", &policy("clients-only", "ALLOW", "client"))?;
        lab.until_policy("shop/clients-only", true)?;
        until_guarded(lab, &pair.server, true)?;
        talk(&pair.client, pair.at(), "it is me")?;
        for stranger in [&other, &outsider] {
            refused_because(
                lab,
                stranger,
                &pair,
                "allow policies exist, but none allowed",
            )?;
        }
        Ok(())
    });
}

#[test]
fn strict_refuses_plain_text_and_permissive_takes_it_back() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        lab.namespace("old").plain()?;
        let outsiders = [0, 1].map(|node| {
            lab.pod(&format!("old/outsider-{node}"))
                .node(node)
                .start()
                .unwrap()
        });
        for outsider in &outsiders {
            talk(outsider, pair.at(), "in the clear")?;
        }
        lab.apply_yaml("strict", STRICT)?;
        until_guarded(lab, &pair.server, true)?;
        for outsider in &outsiders {
            let log = lab.access_log(0)?.from_now();
            refused(outsider, pair.at())?;
            let from = format!("{}:", outsider.ip());
            let record = log.find("the refusal", |r| {
                r.inbound() && r.field("src.addr").starts_with(&from) && !r.error().is_empty()
            })?;
            ensure!(record.error().contains("policy rejection"), "{record:?}");
        }
        talk(&pair.client, pair.at(), "with an identity")?;
        lab.delete_yaml("strict")?;
        until_guarded(lab, &pair.server, false)?;
        talk_soon(&outsiders[1], pair.at())
    });
}

#[test]
fn probes_of_the_node_itself_pass_under_strict() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        lab.apply_yaml("strict", STRICT)?;
        until_guarded(lab, &pair.server, true)?;
        for (node, passes) in [(0, true), (1, false)] {
            for address in pair.server.addresses() {
                let at = SocketAddr::new(*address, 8080);
                let probe = lab.node(node).netns().within(|| -> Result<()> {
                    let mut stream = std::net::TcpStream::connect_timeout(&at, SOON)?;
                    stream.set_read_timeout(Some(SOON))?;
                    support::round_trip(&mut stream, "are you well?")
                })?;
                // Another node is no kubelet of this pod.
                ensure!(
                    probe.is_ok() == passes,
                    "from node {node} to {at}: {probe:?}"
                );
            }
        }
        Ok(())
    });
}

#[test]
fn a_new_policy_closes_the_open_connections_it_denies_and_no_others() {
    in_lab(Lab::builder(), |lab| {
        let pair = Pair::start(lab)?;
        lab.namespace("old").plain()?;
        let near = lab
            .pod("shop/near")
            .node(0)
            .service_account("client")
            .start()?;
        let friend = lab
            .pod("shop/friend")
            .node(1)
            .service_account("friend")
            .start()?;
        let outsider = lab.pod("old/outsider").node(1).start()?;
        let tunnelled = talk(&pair.client, pair.at(), "open")?;
        let joined = talk(&near, pair.at(), "open")?;
        let mut welcome = talk(&friend, pair.at(), "open")?;
        let mut plain = talk(&outsider, pair.at(), "open")?;

        lab.apply_yaml("deny", &policy("no-clients", "DENY", "client"))?;
        ends(tunnelled, SOON)?;
        ends(joined, SOON)?;
        support::round_trip(&mut welcome, "still here")?;
        support::round_trip(&mut plain, "here too")?;

        lab.apply_yaml("strict", STRICT)?;
        ends(plain, SOON)?;
        support::round_trip(&mut welcome, "still here")?;
        Ok(())
    });
}

#[test]
fn an_invalid_policy_changes_nothing_and_is_reported_with_its_file() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        let web = lab.pod("shop/web").service_account("web").start()?;
        let client = lab.pod("shop/client").service_account("client").start()?;
        let _echo = Server::echo(&web, 8080)?;
        lab.apply_yaml("deny", &policy("no-clients", "DENY", "client"))?;
        lab.until_policy("shop/no-clients", true)?;
        lab.apply_yaml(
            "deny",
            &policy("no-clients", "DENY", "client").replace("principals: [", "principals: {"),
        )?;
        lab::wait::until_true("istiod-lite to report the file", SOON, || {
            lab.control_plane()
                .and_then(|c| c.process())
                .is_ok_and(|p| p.log().contains("applied/deny.yaml"))
        })?;
        // The last good one still holds.
        refused(&client, web.at(8080))
    });
}

/// From YAML to the reset: the mesh logs, a namespace refuses, a pod of it is let out; and what a ServiceEntry names is known.
#[test]
fn calls_to_who_is_unknown_are_told_or_refused_as_the_narrowest_setting_says() {
    let builder = Lab::builder().nodes(1).istiod_env("AMBIT_EGRESS", "log");
    in_lab(builder, |lab| {
        lab.namespace("open").ambient()?;
        lab.namespace("shut")
            .labelled(&[("ambit.io/egress", "refuse")])?;
        let [free, held, guest] = [
            lab.pod("open/free").start()?,
            lab.pod("shut/held").start()?,
            lab.pod("shut/guest")
                .label("ambit.io/egress", "allow")
                .start()?,
        ];
        let web = lab.pod("open/web").start()?;
        let inside = Server::echo(&web, 8080)?;
        let listener = lab
            .outside()
            .within(|| std::net::TcpListener::bind(("::", 7000)))??;
        let outside = Server::over(listener, support::echo);
        let to = SocketAddr::new(lab.outside_addresses()[0], 7000);

        let log = lab.access_log(0)?.from_now();
        talk(&free, to, "logged")?;
        let record = log.find("the call that is told of", |it| {
            it.field("src.workload") == "free"
        })?;
        let note = format!("egress logged by the mesh's settings: the mesh knows nobody at {to}");
        ensure!(
            record.field("note") == note && record.error().is_empty(),
            "{record:?}"
        );

        let before = outside.peers().len();
        refused(&held, to)?;
        let record = log.find("the refusal", |it| it.field("src.workload") == "held")?;
        let why = format!(
            "egress refused by label ambit.io/egress of namespace shut: the mesh knows nobody at {to}"
        );
        ensure!(
            record.outbound() && record.error().starts_with(&why),
            "{record:?}"
        );
        ensure!(
            outside.peers().len() == before,
            "somebody came to the outside"
        );
        talk(&guest, to, "let out")?;
        let record = log.find("the guest's call", |it| it.field("src.workload") == "guest")?;
        ensure!(record.field("note").is_empty(), "{record:?}");
        let counted = |decision, source| {
            let labels = [("decision", decision), ("source_workload", source)];
            Ok::<_, anyhow::Error>(
                lab.metrics(0)?
                    .sum("ambit_egress_connections_total", &labels),
            )
        };
        lab::wait::until_true("both to be counted", SOON, || {
            counted("logged", "free").is_ok_and(|n| n == 1.0)
                && counted("refused", "held").is_ok_and(|n| n == 1.0)
        })?;

        // Whom the mesh knows is called by everybody: pods, and what is on the list at its port.
        talk(&held, web.at(8080), "inside")?;
        ensure!(inside.peers().len() == 1);
        let entry = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: far, namespace: shut}}\n\
             spec: {{hosts: [far.example], addresses: ['{}'], ports: [{{number: 7000, name: tcp}}], resolution: NONE}}\n",
            to.ip()
        );
        lab.apply_yaml("far", &entry)?;
        talk_soon(&held, to)?;
        refused(&held, SocketAddr::new(to.ip(), 7001))?;

        // The namespace changes its mind, for pods that run.
        lab.delete_yaml("far")?;
        lab.namespace("shut").ambient()?;
        lab.until_all_dumps("that held is only logged", |dump| {
            let all = |kind: &str| dump[kind].as_array().into_iter().flatten();
            all("services").all(|it| it["hostname"] != "far.example")
                && all("workloads").any(|it| it["name"] == "held" && it["egress"]["mode"] == "Log")
        })?;
        let log = lab.access_log(0)?.from_now();
        talk(&held, to, "logged now")?;
        log.find("held's call", |it| it.field("note") == note)?;
        Ok(())
    });
}
