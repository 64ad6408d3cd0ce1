//! Questions in, what is said out, over small meshes; and what is said of conditions against the verdict itself.

use api::security as policy;
use mesh::{Connection, SourceIdentity, Update};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::testing::{egress, endpoint, pod, service, snapshot, waypoint_host};

/// What is said of a connection of pods of this very node, which are `here`.
fn ask(snapshot: &Snapshot, src: &str, dst: &str, here: &[&str]) -> Result<Value, String> {
    answer(snapshot, &question(src, dst), here)
}

fn question(src: &str, dst: &str) -> Question {
    Question {
        src: src.to_owned(),
        dst: dst.to_owned(),
        port: None,
        side: None,
        by: None,
        protocol: Spoken::Tcp,
    }
}

fn answer(snapshot: &Snapshot, question: &Question, here: &[&str]) -> Result<Value, String> {
    let view = View {
        snapshot,
        node: "node-1",
        network: &Network::default(),
        cluster_domain: "cluster.local",
        nowhere: &Locality::default(),
        resolvers: &[],
        force_tunnel: false,
        is_here: &|workload| here.contains(&&*workload.uid),
        is_avoided: &|_, _, _| false,
    };
    Ok(serde_json::to_value(explain(&view, question)?).unwrap())
}

fn exact(text: &str) -> policy::StringMatch {
    let match_type = Some(policy::string_match::MatchType::Exact(text.into()));
    policy::StringMatch { match_type }
}

fn of_namespace(namespace: &str) -> policy::Match {
    policy::Match {
        namespaces: vec![exact(namespace)],
        ..Default::default()
    }
}

fn on_port(port: u32) -> policy::Match {
    policy::Match {
        destination_ports: vec![port],
        ..Default::default()
    }
}

fn without_identity() -> policy::Match {
    let presence = policy::StringMatch {
        match_type: Some(policy::string_match::MatchType::Presence(())),
    };
    policy::Match {
        not_principals: vec![presence],
        ..Default::default()
    }
}

/// A policy of namespace `default` with these rules, all of which must match.
fn rules(name: &str, action: policy::Action, rules: Vec<policy::Match>) -> policy::Authorization {
    let rule = |only| policy::Rules {
        matches: vec![only],
    };
    policy::Authorization {
        name: name.into(),
        namespace: "default".into(),
        scope: policy::Scope::Namespace.into(),
        action: action.into(),
        groups: vec![policy::Group {
            rules: rules.into_iter().map(rule).collect(),
        }],
        ..Default::default()
    }
}

fn with(fill: impl FnOnce(&mut Update)) -> Arc<Snapshot> {
    snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.0.0.1"]));
        let mut outsider = pod("outsider", &["10.0.0.9"]);
        outsider.tunnel_protocol = 0;
        mesh.set_workload(outsider);
        mesh.set_workload(endpoint(
            "web-1",
            &["10.0.0.2"],
            "web.default.svc.cluster.local",
            &[],
        ));
        let mut sick = endpoint("web-2", &["10.0.0.3"], "web.default.svc.cluster.local", &[]);
        sick.status = api::workload::WorkloadStatus::Unhealthy.into();
        mesh.set_workload(sick);
        let host = "web.default.svc.cluster.local";
        mesh.set_service(service(host, &["10.1.0.1"], &[(80, 8080)]));
        fill(mesh);
    })
}

#[test]
fn a_service_is_meant_by_each_of_its_names_and_a_pod_by_each_of_its_own() {
    let mesh = with(|_| {});
    for (src, dst) in [
        ("default/client", "web"),
        ("default/client", "web.default"),
        ("default/client", "web.default.svc:80"),
        ("10.0.0.1", "web.default.svc.cluster.local"),
        ("client", "default/web:80"),
        ("client", "10.1.0.1"),
        ("client", "default/web-1"),
        ("client", "10.0.0.2:8080"),
    ] {
        let said = ask(&mesh, src, dst, &["client"]).unwrap();
        assert_eq!(
            said["source"]["decision"]["goes"], "tunnel",
            "{src} {dst}: {said}"
        );
        assert_eq!(
            said["source"]["decision"]["asksFor"], "10.0.0.2:8080",
            "{src} {dst}"
        );
        assert_eq!(said["destination"]["verdict"], "allowed", "{src} {dst}");
        assert_eq!(said["source"]["here"], true);
        assert_eq!(said["destination"]["here"], false);
    }
    for (src, dst, why) in [
        ("default/nobody", "web", "src: no workload default/nobody"),
        (
            "client",
            "nowhere",
            "dst: neither a workload nor a service nowhere",
        ),
        ("client", "default/client", "dst: say the port"),
        ("client", "192.0.2.1", "dst: say the port"),
    ] {
        let said = ask(&mesh, src, dst, &[]).unwrap_err();
        assert!(said.contains(why), "{src} {dst}: {said}");
    }
}

#[test]
fn each_endpoint_has_its_reason() {
    let said = ask(&with(|_| {}), "client", "web", &["client", "web-1"]).unwrap();
    assert_eq!(said["source"]["decision"]["goes"], "local", "{said}");
    let shown = said["source"]["endpoints"]["shown"].as_array().unwrap();
    let reasons: Vec<_> = shown.iter().map(|it| (&it["uid"], &it["why"])).collect();
    let expected = [("web-1", "can be chosen"), ("web-2", "is not ready")];
    assert_eq!(reasons.len(), expected.len());
    for (at, (uid, why)) in expected.into_iter().enumerate() {
        assert_eq!(
            (reasons[at].0, reasons[at].1),
            (&Value::from(uid), &Value::from(why))
        );
    }
    let mesh = with(|mesh| {
        let mut sick = endpoint("web-1", &["10.0.0.2"], "web.default.svc.cluster.local", &[]);
        sick.status = api::workload::WorkloadStatus::Unhealthy.into();
        mesh.set_workload(sick);
    });
    let said = ask(&mesh, "client", "web", &["client"]).unwrap();
    assert_eq!(said["source"]["decision"]["goes"], "refused", "{said}");
    assert_eq!(said["source"]["decision"]["flag"], "CONNECT");
    let hint = said["source"]["decision"]["hint"].as_str().unwrap();
    assert!(
        hint.starts_with("readiness of the Service's pods"),
        "{hint}"
    );
    assert_eq!(said["destination"], Value::Null);
}

#[test]
fn a_waypoint_is_named_and_what_is_behind_it_is_not_told_from_here() {
    let mesh = with(|mesh| {
        let host = "web.default.svc.cluster.local";
        let mut fronted = service(host, &["10.1.0.1"], &[(80, 8080)]);
        fronted.waypoint = waypoint_host("way.default.svc.cluster.local");
        mesh.set_service(fronted);
        let way = "way.default.svc.cluster.local";
        mesh.set_service(service(way, &["10.1.0.2"], &[(15008, 15008)]));
        mesh.set_workload(endpoint("way-0", &["10.0.0.7"], way, &[(15008, 15008)]));
    });
    let said = ask(&mesh, "client", "web", &["client"]).unwrap();
    let decision = &said["source"]["decision"];
    assert_eq!(
        decision["waypoint"], "default/way.default.svc.cluster.local",
        "{said}"
    );
    assert_eq!(decision["workload"]["name"], "way-0");
    assert_eq!(said["source"]["waypoint"]["endpoints"]["eligible"], 1);
    assert_eq!(said["destination"], Value::Null);
}

#[test]
fn who_calls_by_a_tunnel_is_judged_by_its_identity_though_nothing_tunnels_to_it() {
    let mesh = with(|mesh| {
        let strict = vec![without_identity()];
        mesh.set_policy(rules("strict", policy::Action::Deny, strict));
    });
    for (by, verdict) in [
        (None, "denied"),
        (Some(By::Plain), "denied"),
        (Some(By::Tunnel), "allowed"),
    ] {
        let question = Question {
            side: Some(Side::Destination),
            by,
            ..question("10.0.0.9", "10.0.0.2:8080")
        };
        let said = answer(&mesh, &question, &[]).unwrap();
        assert_eq!(said["destination"]["verdict"], verdict, "{said:#}");
    }
}

#[test]
fn plain_text_to_an_app_that_is_told_who_calls_is_not_for_it() {
    let mesh = with(|mesh| {
        let mut framed = pod("framed", &["10.0.0.7"]);
        framed.application_tunnel = Some(api::workload::ApplicationTunnel {
            protocol: 1,
            port: 15088,
        });
        mesh.set_workload(framed);
    });
    for (to, by, verdict) in [
        ("10.0.0.7:15088", By::Plain, "misdirected"),
        ("10.0.0.7:15088", By::Tunnel, "allowed"),
        ("10.0.0.7:8080", By::Plain, "allowed"),
    ] {
        let question = Question {
            side: Some(Side::Destination),
            by: Some(by),
            ..question("10.0.0.9", to)
        };
        let said = answer(&mesh, &question, &[]).unwrap();
        assert_eq!(said["destination"]["verdict"], verdict, "{said:#}");
    }
}

/// The mesh of [`with`], where these have opted in to have their UDP carried.
fn opted_in(names: &[&str], fill: impl FnOnce(&mut Update)) -> Arc<Snapshot> {
    with(|mesh| {
        let host = "web.default.svc.cluster.local";
        for mut one in [
            pod("client", &["10.0.0.1"]),
            endpoint("web-1", &["10.0.0.2"], host, &[]),
        ] {
            if names.contains(&&*one.uid) {
                one.extensions.push(api::workload::Extension {
                    name: api::UDP_EXTENSION.to_owned(),
                    config: None,
                });
            }
            mesh.set_workload(one);
        }
        fill(mesh);
    })
}

fn datagrams(mesh: &Snapshot, src: &str, dst: &str) -> Value {
    let question = Question {
        protocol: Spoken::Udp,
        ..question(src, dst)
    };
    answer(mesh, &question, &["client", "web-1"]).unwrap()
}

#[test]
fn of_datagrams_it_is_told_who_has_opted_in_and_what_becomes_of_them_where_somebody_has_not() {
    const BOTH: &[&str] = &["client", "web-1"];
    const SERVER_NOT: &str = "the destination has not opted in (label ambit.io/udp)";
    for (who, dst, goes, why, verdict) in [
        (
            BOTH,
            "web",
            "tunnel",
            "the destination is in the mesh",
            "allowed",
        ),
        (&["client"], "web", "plain", SERVER_NOT, "unguarded"),
        (
            &["web-1"],
            "web",
            "untouched",
            "the caller has not opted in",
            "allowed",
        ),
        (
            &[],
            "web",
            "untouched",
            "the caller has not opted in",
            "unguarded",
        ),
        (
            BOTH,
            "10.0.0.2:53",
            "untouched",
            "port 53 is for resolvers",
            "allowed",
        ),
        (
            BOTH,
            "10.0.0.9:5000",
            "plain",
            "the destination is not in the mesh",
            "unguarded",
        ),
        (
            BOTH,
            "192.0.2.1:5000",
            "plain",
            "the mesh knows nobody there",
            "",
        ),
    ] {
        let said = datagrams(&opted_in(who, |_| {}), "client", dst);
        let decision = &said["source"]["decision"];
        assert_eq!(said["protocol"], "udp");
        assert_eq!(decision["goes"], goes, "{who:?} {dst}: {said:#}");
        let because = decision["because"].as_str().unwrap();
        assert!(because.contains(why), "{who:?} {dst}: {because}");
        let there = &said["destination"];
        assert_eq!(
            there["verdict"].as_str().unwrap_or_default(),
            verdict,
            "{said:#}"
        );
        let change = there["toChange"][0].as_str().unwrap_or_default();
        let may_opt_in = verdict == "unguarded" && dst == "web";
        assert_eq!(
            change.contains("ambit.io/udp=enabled"),
            may_opt_in,
            "{said:#}"
        );
    }
    // Connections ask nobody.
    let said = ask(&opted_in(&[], |_| {}), "client", "web", &[]).unwrap();
    assert_eq!(said["source"]["decision"]["goes"], "tunnel");
    assert_eq!(said["destination"]["verdict"], "allowed");
}

#[test]
fn datagrams_are_judged_by_the_policies_of_connections_and_stop_before_a_waypoint() {
    use policy::Action::Deny;
    let shut = rules("shut", Deny, vec![of_namespace("default"), on_port(8080)]);
    let mesh = opted_in(&["client", "web-1"], |mesh| mesh.set_policy(shut));
    let said = datagrams(&mesh, "client", "web");
    assert_eq!(said["destination"]["verdict"], "denied", "{said:#}");
    assert_eq!(said["destination"]["by"], "default/shut");
    // Without an identity, as they come from who has not opted in: it is not of that namespace.
    let mesh = opted_in(&["web-1"], |mesh| {
        mesh.set_policy(rules("strict", Deny, vec![without_identity()]));
    });
    let question = Question {
        protocol: Spoken::Udp,
        side: Some(Side::Destination),
        ..question("client", "10.0.0.2:8080")
    };
    let said = answer(&mesh, &question, &[]).unwrap();
    assert_eq!(said["destination"]["by"], "default/strict", "{said:#}");

    let mesh = opted_in(&["client", "web-1"], |mesh| {
        let host = "web.default.svc.cluster.local";
        let mut fronted = service(host, &["10.1.0.1"], &[(80, 8080)]);
        let way = "way.default.svc.cluster.local";
        fronted.waypoint = waypoint_host(way);
        mesh.set_service(fronted);
        mesh.set_service(service(way, &["10.1.0.2"], &[(15008, 15008)]));
        mesh.set_workload(endpoint("way-0", &["10.0.0.7"], way, &[(15008, 15008)]));
    });
    let said = datagrams(&mesh, "client", "web");
    let decision = &said["source"]["decision"];
    assert_eq!(
        (&decision["goes"], &decision["flag"]),
        (&"refused".into(), &"CONNECT".into()),
        "{said:#}"
    );
    let hint = decision["hint"].as_str().unwrap();
    assert!(hint.contains("no waypoint stands between"), "{hint}");
    assert_eq!(said["destination"], Value::Null);
}

#[test]
fn who_is_unknown_passes_or_is_refused_by_the_setting_that_says_so() {
    let mesh = with(|mesh| {
        let mut shut = pod("shut", &["10.0.0.8"]);
        shut.extensions = vec![egress(api::egress::egress::Mode::Refuse, "label x")];
        mesh.set_workload(shut);
    });
    let open = ask(&mesh, "client", "192.0.2.1:443", &[]).unwrap();
    assert_eq!(open["source"]["decision"]["goes"], "plain", "{open}");
    let shut = ask(&mesh, "shut", "192.0.2.1:443", &[]).unwrap();
    assert_eq!(shut["source"]["decision"]["goes"], "refused", "{shut}");
    assert_eq!(shut["source"]["decision"]["flag"], "EGRESS");
    assert_eq!(shut["source"]["egress"]["setBy"], "label x");
}

#[test]
fn the_policy_that_decides_is_named_with_why_and_what_would_have_to_change() {
    use policy::Action::{Allow, Deny};
    for (policies, src, verdict, by, because, change) in [
        (
            vec![],
            "client",
            "allowed",
            None,
            "no ALLOW policy applies",
            "an ALLOW policy for the destination",
        ),
        (
            vec![rules(
                "shut",
                Deny,
                vec![of_namespace("default"), on_port(8080)],
            )],
            "client",
            "denied",
            Some("default/shut"),
            "explicitly denied by: default/shut",
            "AuthorizationPolicy default/shut must not match any more; it does by source.namespaces [default] (it is default) \
             and operation.ports [8080] (it is 8080)",
        ),
        (
            vec![rules(
                "others",
                Allow,
                vec![of_namespace("elsewhere"), on_port(8080)],
            )],
            "client",
            "denied",
            None,
            "allow policies exist, but none allowed",
            "the ALLOW policy must match, which lacks: AuthorizationPolicy default/others: source.namespaces [elsewhere] (it is default)",
        ),
        (
            vec![rules("own", Allow, vec![of_namespace("default")])],
            "client",
            "allowed",
            Some("default/own"),
            "allowed by default/own",
            "AuthorizationPolicy default/own must not match any more; it does by source.namespaces [default] (it is default)",
        ),
        (
            vec![rules(
                "istio_converted_static_strict",
                Deny,
                vec![without_identity()],
            )],
            "outsider",
            "denied",
            Some("default/istio_converted_static_strict"),
            "explicitly denied by",
            "the caller must come through the mesh (label istio.io/dataplane-mode=ambient), or PeerAuthentication with mode STRICT must be PERMISSIVE for port 8080",
        ),
    ] {
        let mesh = with(|mesh| policies.into_iter().for_each(|it| mesh.set_policy(it)));
        let said = ask(&mesh, src, "10.0.0.2:8080", &[]).unwrap();
        let there = &said["destination"];
        assert_eq!(there["verdict"], verdict, "{because}: {said:#}");
        assert_eq!(there["by"].as_str(), by, "{because}");
        assert!(
            there["because"].as_str().unwrap().contains(because),
            "{there:#}"
        );
        assert!(
            there["toChange"][0].as_str().unwrap().contains(change),
            "{there:#}"
        );
        assert_eq!(there["hint"].is_null(), verdict == "allowed", "{there:#}");
        let deciding = there["policies"].as_array().unwrap().iter();
        let deciding = deciding.filter(|it| it["decides"] == true).count();
        assert_eq!(deciding, usize::from(by.is_some()), "{there:#}");
    }
}

#[test]
fn what_only_notes_stands_last_and_decides_nothing() {
    use policy::Action::Deny;
    let mut noting = rules("noting", Deny, vec![on_port(8080)]);
    noting.dry_run = true;
    let mesh = with(|mesh| {
        mesh.set_policy(noting);
        mesh.set_policy(rules("other", Deny, vec![on_port(9090)]));
    });
    let said = ask(&mesh, "client", "10.0.0.2:8080", &[]).unwrap();
    let policies = said["destination"]["policies"].as_array().unwrap();
    assert_eq!(said["destination"]["verdict"], "allowed");
    assert_eq!(policies[1]["policy"], "default/noting");
    assert_eq!(
        (&policies[1]["matches"], &policies[1]["dryRun"]),
        (&true.into(), &true.into())
    );
    assert_eq!(policies[0]["matches"], false);
}

fn texts() -> impl Strategy<Value = Vec<policy::StringMatch>> {
    let text = prop_oneof![Just("a"), Just("b"), Just("cluster.local/ns/a/sa/x")];
    prop::collection::vec(text.prop_map(exact), 0..2)
}

fn matches() -> impl Strategy<Value = policy::Match> {
    let ports = || prop::collection::vec(prop_oneof![Just(80u32), Just(81)], 0..2);
    (texts(), texts(), texts(), texts(), ports(), ports()).prop_map(
        |(
            namespaces,
            not_namespaces,
            principals,
            not_principals,
            destination_ports,
            not_destination_ports,
        )| {
            policy::Match {
                namespaces,
                not_namespaces,
                principals,
                not_principals,
                destination_ports,
                not_destination_ports,
                ..Default::default()
            }
        },
    )
}

fn groups() -> impl Strategy<Value = Vec<policy::Group>> {
    let rule = prop::collection::vec(matches(), 0..3).prop_map(|matches| policy::Rules { matches });
    let group = prop::collection::vec(rule, 0..3).prop_map(|rules| policy::Group { rules });
    prop::collection::vec(group, 0..3)
}

proptest! {
    /// What is shown of a policy adds up to what it does.
    #[test]
    fn the_conditions_of_a_policy_hold_together_when_it_matches(
        groups in groups(), deny in any::<bool>(), namespace in prop::option::of(prop_oneof![Just("a"), Just("b")]), port in 80..82u16
    ) {
        let action = if deny { policy::Action::Deny } else { policy::Action::Allow };
        let written = policy::Authorization { groups, ..rules("p", action, vec![]) };
        let mesh = with(|mesh| mesh.set_policy(written));
        let workload = mesh.workload("web-1").unwrap();
        let connection = Connection {
            source: namespace.map(|namespace| SourceIdentity { trust_domain: "cluster.local", namespace, service_account: "x" }),
            source_ip: [10, 0, 0, 1].into(),
            destination_ip: [10, 0, 0, 2].into(),
            destination_port: port,
        };
        let said = conditions::said(&mesh.policies_of(workload), &connection).remove(0);
        let holds = said.groups.iter().any(|group| group.iter().all(|rule| {
            rule.is_empty() || rule.iter().any(|one| one.iter().all(|condition| condition.holds))
        }));
        prop_assert_eq!(holds, said.matches);
        prop_assert_eq!(said.why().is_empty(), !said.matches);
        prop_assert_eq!(said.lacks().is_empty(), said.matches);
    }
}
