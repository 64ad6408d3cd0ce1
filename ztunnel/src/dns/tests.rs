//! Every query that was put to Istio's ztunnel, put to us; and the edges of the format.

use mesh::Snapshot;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::golden;

/// Where we differ on purpose; `testdata/DEVIATIONS.md` says why.
const ANSWERED_BY_US_ONLY: [&str; 2] =
    ["mixed.example.com.", "h0.headless.alpha.svc.cluster.local."];

struct Recorded {
    snapshot: Arc<Snapshot>,
    network: Network,
    search: Vec<String>,
    queries: Vec<Value>,
}

impl Recorded {
    fn read() -> Self {
        let recorded: Value =
            serde_json::from_str(include_str!("../../testdata/dns/queries.json")).unwrap();
        Self {
            snapshot: golden::snapshot(&recorded["resources"]),
            network: Network::new(""),
            search: Resolv::parse(recorded["resolv_conf"].as_str().unwrap()).search,
            queries: recorded["queries"].as_array().unwrap().clone(),
        }
    }

    fn names<'a>(&'a self, namespace: &'a str) -> Names<'a> {
        Names {
            snapshot: &self.snapshot,
            network: &self.network,
            cluster_domain: "cluster.local",
            search: &self.search,
            namespace,
        }
    }

    /// Our answer after a trip over the wire; `None`: relayed.
    fn ask(&self, namespace: &str, name: &str, kind: RecordType) -> Option<Message> {
        let query = query(name, kind);
        let response = respond(&query, &query.queries[0], &self.names(namespace))?;
        Some(Message::from_vec(&response.to_vec().unwrap()).unwrap())
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query
}

/// (owner, type, ttl, value), sorted: order is ours to choose. Owners without case, as names have none.
fn records(response: &Message) -> Vec<(String, String, u64, String)> {
    let mut records: Vec<_> = response
        .answers
        .iter()
        .map(|record| {
            let owner = record.name.to_ascii().to_lowercase();
            (
                owner,
                record.record_type().to_string(),
                u64::from(record.ttl),
                record.data.to_string(),
            )
        })
        .collect();
    records.sort();
    records
}

#[test]
fn every_recorded_query_has_the_recorded_answer() {
    let recorded = Recorded::read();
    let mut answered = 0;
    for case in &recorded.queries {
        let text = |key: &str| case[key].as_str().unwrap();
        let (name, kind) = (text("query"), text("type").parse::<RecordType>().unwrap());
        let local = matches!(kind, RecordType::A | RecordType::AAAA);
        let ours = if local {
            recorded.ask(text("client_namespace"), name, kind)
        } else {
            None
        };
        if ANSWERED_BY_US_ONLY.contains(&name) {
            assert!(ours.is_some(), "{case}");
            continue;
        }
        // The recorded upstream is never authoritative; Istio's ztunnel is, save for localhost.
        let theirs = case["aa"] == true || name == "localhost.";
        assert_eq!(ours.is_some(), theirs, "{case}");
        let Some(ours) = ours else { continue };
        answered += 1;
        let mut expected: Vec<_> = case["answers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|record| {
                let text = |key: &str| record[key].as_str().unwrap().to_owned();
                (
                    text("name").to_lowercase(),
                    text("type"),
                    record["ttl"].as_u64().unwrap(),
                    text("value"),
                )
            })
            .collect();
        expected.sort();
        assert_eq!(records(&ours), expected, "{case}");
        assert_eq!(ours.metadata.authoritative, case["aa"] == true, "{case}");
        assert_eq!(
            ours.metadata.recursion_available,
            case["ra"] == true,
            "{case}"
        );
        assert_eq!(ours.metadata.truncation, case["tc"] == true, "{case}");
        assert_eq!(ours.metadata.response_code, ResponseCode::NoError, "{case}");
        assert!(
            ours.authorities.is_empty() && ours.additionals.is_empty(),
            "{case}"
        );
    }
    assert!(
        answered > 30,
        "only {answered} of {} queries were about the mesh",
        recorded.queries.len()
    );
}

#[test]
fn names_have_no_case_and_keep_the_askers() {
    let recorded = Recorded::read();
    for name in ["mixed.example.com.", "MIXED.example.COM."] {
        let response = recorded.ask("beta", name, RecordType::A).unwrap();
        assert_eq!(response.answers[0].name.to_ascii(), name);
        assert_eq!(response.answers[0].data.to_string(), "240.240.0.11");
        assert_eq!(response.metadata.id, 4711);
    }
}

#[test]
fn a_search_domain_that_only_ends_like_the_clusters_is_searched() {
    let mut recorded = Recorded::read();
    recorded.search = vec!["corpcluster.local".to_owned()];
    let name = "mixed.example.com.corpcluster.local.";
    let response = recorded.ask("beta", name, RecordType::A).unwrap();
    let addresses: Vec<_> = response
        .answers
        .iter()
        .filter(|record| record.record_type() == RecordType::A)
        .map(|record| record.data.to_string())
        .collect();
    assert_eq!(addresses, ["240.240.0.11"]);
    // Those of the cluster are the caller's own, not those of the proxy's pod.
    recorded.search = vec!["istio-system.svc.cluster.local".to_owned()];
    let name = "mixed.example.com.istio-system.svc.cluster.local.";
    assert!(recorded.ask("beta", name, RecordType::A).is_none());
}

#[test]
fn an_alias_stands_before_what_it_leads_to() {
    let recorded = Recorded::read();
    let response = recorded
        .ask("alpha", "web.alpha.alpha.svc.cluster.local.", RecordType::A)
        .unwrap();
    let kinds: Vec<_> = response
        .answers
        .iter()
        .map(|record| record.record_type())
        .collect();
    assert_eq!(kinds, [RecordType::CNAME, RecordType::A]);
}

#[test]
fn a_headless_service_of_one_family_has_no_addresses_of_the_other() {
    let host = "db.alpha.svc.cluster.local";
    let pod = serde_json::json!({ "workload": {
        "uid": "Kubernetes//Pod/alpha/db-0", "name": "db-0", "namespace": "alpha", "addresses": ["10.97.0.9", "fd00:10:97::9"],
        "services": { format!("alpha/{host}"): { "ports": [{ "servicePort": 80, "targetPort": 80 }] } },
    } });
    for (families, v4, v6) in [("IPV4_ONLY", 1, 0), ("IPV6_ONLY", 0, 1), ("DUAL", 1, 1)] {
        let service = serde_json::json!({ "service": {
            "name": "db", "namespace": "alpha", "hostname": host, "ports": [{ "servicePort": 80, "targetPort": 80 }], "ipFamilies": families,
        } });
        let resources = serde_json::json!({ format!("alpha/{host}"): service, "Kubernetes//Pod/alpha/db-0": pod });
        let mut recorded = Recorded::read();
        recorded.snapshot = golden::snapshot(&resources);
        for (kind, count) in [(RecordType::A, v4), (RecordType::AAAA, v6)] {
            let response = recorded.ask("alpha", &format!("{host}."), kind).unwrap();
            assert_eq!(response.answers.len(), count, "{families} {kind}");
        }
    }
}

/// As a StatefulSet's are called: db-0 has both families, db-1 is of another network, db-2 is not ready.
#[test]
fn a_pod_of_a_headless_service_has_a_name_below_it_by_its_service_in_full_and_in_short() {
    let host = "db.alpha.svc.cluster.local";
    let mut resources = serde_json::Map::new();
    let mut add = |name: &str, resource: Value| resources.insert(name.to_owned(), resource);
    add(
        &format!("alpha/{host}"),
        serde_json::json!({ "service": { "name": "db", "namespace": "alpha", "hostname": host, "ports": [{ "servicePort": 80, "targetPort": 80 }] } }),
    );
    add(
        "alpha/web.alpha.svc.cluster.local",
        serde_json::json!({ "service": { "name": "web", "namespace": "alpha", "hostname": "web.alpha.svc.cluster.local",
            "addresses": [{ "address": "10.96.0.7" }], "ports": [{ "servicePort": 80, "targetPort": 80 }] } }),
    );
    for (index, network, status) in [
        (0, "", "HEALTHY"),
        (1, "far", "HEALTHY"),
        (2, "", "UNHEALTHY"),
    ] {
        let (uid, name) = (
            format!("Kubernetes//Pod/alpha/db-{index}"),
            format!("db-{index}"),
        );
        let workload = serde_json::json!({ "workload": {
            "uid": uid, "name": name, "namespace": "alpha", "network": network, "status": status,
            "addresses": [format!("10.97.0.{index}"), format!("fd00:10:97::{index}")],
            "services": {
                format!("alpha/{host}"): { "ports": [{ "servicePort": 80, "targetPort": 80 }] },
                "alpha/web.alpha.svc.cluster.local": { "ports": [{ "servicePort": 80, "targetPort": 80 }] },
            },
        } });
        add(&uid, workload);
    }
    let mut recorded = Recorded::read();
    recorded.snapshot = golden::snapshot(&Value::Object(resources));
    let asked = |name: &str, kind| {
        let response = recorded.ask("alpha", name, kind)?;
        let last = response.answers.last()?;
        Some((last.data.to_string(), last.ttl))
    };
    for name in [
        "db-0.db.alpha.svc.cluster.local.",
        "DB-0.db.alpha.svc.cluster.local.",
        "db-0.db.alpha.svc.",
        "db-0.db.alpha.",
        "db-0.db.",
        "db-0.db.alpha.svc.cluster.local.alpha.svc.cluster.local.",
        "db-0.db.svc.cluster.local.",
    ] {
        assert_eq!(
            asked(name, RecordType::A),
            Some(("10.97.0.0".into(), TTL)),
            "{name}"
        );
        assert_eq!(
            asked(name, RecordType::AAAA),
            Some(("fd00:10:97::".into(), TTL)),
            "{name}"
        );
    }
    // Whoever is not here, not ready or of no headless service, and deeper names, are cluster DNS' to know.
    for name in [
        "db-1.db.alpha.svc.cluster.local.",
        "db-2.db.alpha.svc.cluster.local.",
        "db-3.db.alpha.svc.cluster.local.",
        "db-0.web.alpha.svc.cluster.local.",
        "x.db-0.db.alpha.svc.cluster.local.",
        "db-0.db.beta.svc.cluster.local.",
    ] {
        assert_eq!(
            recorded
                .ask("alpha", name, RecordType::A)
                .map(|it| it.answers),
            None,
            "{name}"
        );
    }
}

/// ServiceEntries of namespace aaa whose hosts are the names of others: of a Service, and of a pod below a headless one.
#[test]
fn an_entry_of_another_namespace_has_no_name_that_is_a_services_in_short() {
    let service = |name: &str, namespace: &str, host: &str, address: Option<&str>| {
        let addresses: Vec<_> = address
            .iter()
            .map(|it| serde_json::json!({ "address": it }))
            .collect();
        serde_json::json!({ "service": {
            "name": name, "namespace": namespace, "hostname": host, "addresses": addresses, "canonical": true,
            "ports": [{ "servicePort": 80, "targetPort": 80 }],
        } })
    };
    let mut resources = serde_json::Map::new();
    let (web, db) = ("web.alpha.svc.cluster.local", "db.alpha.svc.cluster.local");
    for (name, host, address) in [("web", web, Some("10.96.0.7")), ("db", db, None)] {
        let told = service(name, "alpha", host, address);
        resources.insert(format!("alpha/{host}"), told);
    }
    for host in [
        "web.alpha",
        "web.alpha.svc",
        "db-0.db.alpha",
        "other.alpha",
        "db-0.db.alpha.svc.cluster.local",
        "web.alpha.beta.svc.cluster.local",
        "web.alpha.svc.beta.svc.cluster.local",
    ] {
        let told = service("thief", "aaa", host, Some("10.99.0.1"));
        resources.insert(format!("aaa/{host}"), told);
    }
    let pod = serde_json::json!({ "workload": {
        "uid": "Kubernetes//Pod/alpha/db-0", "name": "db-0", "namespace": "alpha", "addresses": ["10.97.0.1"],
        "services": { format!("alpha/{db}"): { "ports": [{ "servicePort": 80, "targetPort": 80 }] } },
    } });
    resources.insert("Kubernetes//Pod/alpha/db-0".to_owned(), pod);
    let mut recorded = Recorded::read();
    recorded.snapshot = golden::snapshot(&Value::Object(resources));
    let asked = |namespace: &str, name: &str| {
        let response = recorded.ask(namespace, name, RecordType::A)?;
        Some(response.answers.last()?.data.to_string())
    };
    for (name, address) in [
        ("web.alpha.", "10.96.0.7"),
        ("web.alpha.beta.svc.cluster.local.", "10.96.0.7"),
        ("web.alpha.svc.", "10.96.0.7"),
        ("web.alpha.svc.beta.svc.cluster.local.", "10.96.0.7"),
        ("db-0.db.alpha.beta.svc.cluster.local.", "10.97.0.1"),
        ("db-0.db.alpha.svc.cluster.local.", "10.97.0.1"),
        ("other.alpha.beta.svc.cluster.local.", "10.99.0.1"),
    ] {
        assert_eq!(asked("beta", name).as_deref(), Some(address), "{name}");
    }
    // In its own namespace an entry is meant, as by its address.
    assert_eq!(asked("aaa", "web.alpha.").as_deref(), Some("10.99.0.1"));
}

#[test]
fn the_searched_namespace_is_the_callers_not_ours() {
    let mut recorded = Recorded::read();
    recorded.search = vec![
        "istio-system.svc.cluster.local".into(),
        "corp.example".into(),
    ];
    for name in [
        "short.alpha.svc.cluster.local.",
        "short.svc.cluster.local.",
        "short.corp.example.",
    ] {
        let response = recorded.ask("alpha", name, RecordType::A).unwrap();
        assert_eq!(response.answers.len(), 2, "{name}");
    }
    assert!(
        recorded
            .ask("alpha", "short.beta.svc.cluster.local.", RecordType::A)
            .is_none()
    );
    assert!(
        recorded
            .ask(
                "alpha",
                "short.istio-system.svc.cluster.local.",
                RecordType::A
            )
            .is_none()
    );
}

#[test]
fn whom_the_control_plane_is_asked_for_is_who_may_have_the_name() {
    let recorded = Recorded {
        queries: Vec::new(),
        search: vec!["corp.example".into()],
        snapshot: Arc::default(),
        network: Network::new(""),
    };
    let long = vec!["a"; 100].join(".");
    let cases: [(&str, &[&str], &[&str]); 10] = [
        (
            "web.beta.svc.cluster.local",
            &["beta/web.beta.svc.cluster.local"],
            &["*/web.beta", "shop/beta.shop.svc.cluster.local", "*/*.beta"],
        ),
        (
            "db-0.db.shop.svc.cluster.local",
            &["shop/db.shop.svc.cluster.local"],
            &["*/db-0.db", "db/db-0.db.svc.cluster.local", "*/*.db"],
        ),
        ("web", &[], &["*/web", "shop/web.shop.svc.cluster.local"]),
        (
            "www.example.com",
            &[],
            &[
                "*/www.example.com",
                "com/example.com.svc.cluster.local",
                "*/*.example.com",
                "*/*.com",
            ],
        ),
        (
            "www.example.com.shop.svc.cluster.local",
            &[],
            &[
                "*/www.example.com",
                "com/example.com.svc.cluster.local",
                "*/*.example.com",
                "*/*.com",
            ],
        ),
        (
            "api.corp.example",
            &[],
            &[
                "*/api.corp.example",
                "example/corp.example.svc.cluster.local",
                "*/*.corp.example",
                "*/*.example",
                "*/api",
                "shop/api.shop.svc.cluster.local",
            ],
        ),
        ("cluster.local", &[], &[]),
        (
            "a.b.c.cluster.local",
            &[],
            &["*/a.b.c", "c/b.c.svc.cluster.local", "*/*.b.c", "*/*.c"],
        ),
        // No host is written so, and `namespace/host` has one slash.
        ("alpha/web.example", &[], &[]),
        ("", &[], &[]),
    ];
    for (name, first, others) in cases {
        let wanted = recorded.names("shop").wanted(name);
        let [before, after] =
            wanted.map(|hosts| Vec::from_iter(hosts.iter().map(ToString::to_string)));
        assert_eq!(
            (&*before, &*after),
            (&owned(first)[..], &owned(others)[..]),
            "{name}"
        );
    }
    let [first, others] = recorded.names("shop").wanted(&long);
    assert!(first.is_empty() && others.len() == names::MOST_WANTED);
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// Who knows nothing but what he asked for, and who knows everything, say the same.
#[test]
fn whoever_was_asked_for_is_enough_for_every_recorded_answer() {
    let all: Value = serde_json::from_str(include_str!("../../testdata/dns/queries.json")).unwrap();
    let whole = Recorded::read();
    for case in &whole.queries {
        let text = |key: &str| case[key].as_str().unwrap();
        let (name, namespace) = (text("query"), text("client_namespace"));
        let question = query(name, RecordType::A);
        let spelled = spelled(&question.queries[0]);
        let wanted = whole.names(namespace).wanted(&spelled).concat();
        let is_wanted = |resource: &Value| {
            let service = &resource["service"];
            let (own, host) = (&service["namespace"], &service["hostname"]);
            let same = |wanted: &NamespacedHost| {
                let is_host = |host: &str| host.eq_ignore_ascii_case(&wanted.host);
                let is_there = *wanted.namespace == *"*" || *own == *wanted.namespace;
                host.as_str().is_some_and(is_host) && is_there
            };
            service.is_null() || wanted.iter().any(same)
        };
        let mut resources = all["resources"].as_object().unwrap().clone();
        resources.retain(|_, resource| is_wanted(resource));
        let told = Recorded {
            snapshot: golden::snapshot(&Value::Object(resources)),
            ..Recorded::read()
        };
        let answer = |by: &Recorded| by.ask(namespace, name, RecordType::A);
        let (whole, told) = (answer(&whole), answer(&told));
        assert_eq!(
            told.as_ref().map(records),
            whole.as_ref().map(records),
            "{name} in {namespace}, {wanted:?}"
        );
    }
}

#[test]
fn long_answers_are_cut_for_udp_and_say_so() {
    let mut response = Message::response(1, OpCode::Query);
    let owner = Name::from_ascii("headless.alpha.svc.cluster.local.").unwrap();
    response.add_query(Query::query(owner.clone(), RecordType::A));
    let many =
        (0..200u8).map(|n| Record::from_rdata(owner.clone(), TTL, rdata([10, 0, 0, n].into())));
    response.add_answers(many);

    let whole =
        Message::from_vec(&fitting(response.clone(), usize::from(u16::MAX)).unwrap()).unwrap();
    assert_eq!(
        (whole.answers.len(), whole.metadata.truncation),
        (200, false)
    );
    for limit in [512, 1232] {
        let bytes = fitting(response.clone(), limit).unwrap();
        let cut = Message::from_vec(&bytes).unwrap();
        assert!(
            bytes.len() <= limit && cut.metadata.truncation && cut.answers.len() > 10,
            "{}",
            cut.answers.len()
        );
    }
}

#[test]
fn askers_with_edns_get_it_back() {
    let recorded = Recorded::read();
    let mut query = query("web.alpha.svc.cluster.local.", RecordType::A);
    query.set_edns(Edns::new());
    let response = respond(&query, &query.queries[0], &recorded.names("beta")).unwrap();
    assert_eq!(response.edns.unwrap().max_payload(), LARGEST_UDP_ANSWER);
}

#[test]
fn a_refusal_repeats_the_question() {
    let query = query("www.example.org.", RecordType::TXT);
    let refusal = Message::from_vec(&refused(
        &query.to_vec().unwrap(),
        Some(&query),
        ResponseCode::ServFail,
    ))
    .unwrap();
    assert_eq!(refusal.queries, query.queries);
    assert_eq!(
        (refusal.metadata.id, refusal.metadata.response_code),
        (4711, ResponseCode::ServFail)
    );
    // Even of what cannot be read, the id is.
    let header = Message::from_vec(&refused(
        &[0x12, 0x34, 1, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0],
        None,
        ResponseCode::ServFail,
    ))
    .unwrap();
    assert_eq!(header.metadata.id, 0x1234);
}

proptest! {
    /// Whatever a name is made of: an answer that can be sent, or none.
    #[test]
    fn no_name_breaks_the_answer(labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..8)) {
        let recorded = Recorded { queries: Vec::new(), search: Vec::new(), snapshot: Arc::default(), network: Network::new("") };
        let Ok(name) = Name::from_labels(labels.iter().map(|label| &label[..])) else { return Ok(()) };
        let mut query = query("x.", RecordType::AAAA);
        query.queries[0].set_name(name);
        if let Some(response) = respond(&query, &query.queries[0], &recorded.names("beta")) {
            prop_assert!(response.to_vec().is_ok());
        }
    }
}
