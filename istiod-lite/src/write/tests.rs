//! The writers before an API server in memory, in a time that passes by itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::k8s::objects::{Kind, ObjectKey};
use kube::core::ApiResource;
use ops::metrics::Registry;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::fake::Fake;
use super::*;
use crate::ca::{Lifetimes, Source};

mod gateway_classes;

const LEASE: (&str, &str, &str) = ("leases", "istio-system", "test");

/// Who runs the writer at this moment.
#[derive(Clone, Default)]
struct Stage(Arc<AtomicUsize>);

impl Stage {
    fn enter(&self) -> impl Drop + use<> {
        struct Leave(Stage);
        impl Drop for Leave {
            fn drop(&mut self) {
                self.0.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst), 0, "two lead at once");
        Leave(self.clone())
    }

    fn is_empty(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

struct Replica {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn replica(fake: &Fake, me: &str, stage: &Stage) -> Replica {
    let ballot = elect::Ballot {
        leases: Api::namespaced(fake.client(), "istio-system"),
        name: LEASE.2,
        me: me.to_owned(),
    };
    let stop = CancellationToken::new();
    let stage = stage.clone();
    let write = move || {
        let stage = stage.clone();
        async move {
            let _here = stage.enter();
            std::future::pending().await
        }
    };
    let (connection, health) = (fake.connection(), Health::default());
    let life = elect::lead(ballot, connection, health, stop.clone(), |_| {}, write);
    Replica {
        task: tokio::spawn(life),
        stop,
    }
}

fn held_by(me: &str) -> impl Fn(&Value) -> bool {
    move |lease| lease["spec"]["holderIdentity"] == me
}

#[tokio::test(start_paused = true)]
async fn the_first_leads_and_the_next_takes_over_at_once_when_the_first_ends() {
    let (fake, stage) = (Fake::new(), Stage::default());
    let a = replica(&fake, "a", &stage);
    fake.until(LEASE, held_by("a")).await;
    let _b = replica(&fake, "b", &stage);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(held_by("a")(
        &fake.object(LEASE.0, LEASE.1, LEASE.2).unwrap()
    ));
    let ended = Instant::now();
    a.stop.cancel();
    fake.until(LEASE, held_by("b")).await;
    assert!(
        ended.elapsed() < Duration::from_secs(1),
        "{:?}",
        ended.elapsed()
    );
    a.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn when_the_leader_dies_another_takes_over_after_the_leases_life() {
    let (fake, stage) = (Fake::new(), Stage::default());
    let a = replica(&fake, "a", &stage);
    fake.until(LEASE, held_by("a")).await;
    let _b = replica(&fake, "b", &stage);
    tokio::time::sleep(Duration::from_secs(7)).await;
    a.task.abort();
    // Its writer dies with the process; here it is a task.
    let died = Instant::now();
    stage.0.store(0, Ordering::SeqCst);
    fake.until(LEASE, held_by("b")).await;
    let took = died.elapsed();
    assert!(
        took > Duration::from_secs(9) && took < Duration::from_secs(17),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn who_cannot_renew_stops_writing_before_the_lease_could_be_anothers() {
    let (fake, stage) = (Fake::new(), Stage::default());
    let _a = replica(&fake, "a", &stage);
    let lease = fake.until(LEASE, held_by("a")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Some requests are refused, some never answered.
    for silence in [0, 500] {
        fake.refuse(move |method, _| (method != http::Method::GET).then_some(silence));
        let cut = Instant::now();
        while !stage.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let wrote_on = cut.elapsed();
        assert!(
            wrote_on <= lease::GIVE_UP + Duration::from_millis(200),
            "{wrote_on:?}"
        );
        assert!(
            wrote_on > lease::GIVE_UP - Duration::from_secs(6),
            "{wrote_on:?}"
        );
        fake.refuse_nothing();
        while stage.is_empty() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 15);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_taken_or_deleted_ends_the_writer_and_is_competed_for_again() {
    let (fake, stage) = (Fake::new(), Stage::default());
    let _a = replica(&fake, "a", &stage);
    fake.until(LEASE, held_by("a")).await;
    let theirs = json!({"spec": {"holderIdentity": "other", "leaseDurationSeconds": 15}});
    fake.put(LEASE.0, LEASE.1, LEASE.2, theirs);
    while !stage.is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(held_by("other")(
        &fake.object(LEASE.0, LEASE.1, LEASE.2).unwrap()
    ));
    fake.until(LEASE, held_by("a")).await;
    fake.remove(LEASE.0, LEASE.1, LEASE.2);
    fake.until(LEASE, held_by("a")).await;
}

struct Bench {
    fake: Fake,
    ground: Ground,
    statuses: watch::Sender<status::Book>,
    kinds: watch::Sender<Kinds>,
    directory: tempfile::TempDir,
}

fn bench() -> Bench {
    let (fake, directory) = (Fake::new(), tempfile::tempdir().unwrap());
    let source = Source::Own(directory.path().into());
    let authority = Authority::open(source, "cluster.local".into(), Lifetimes::default()).unwrap();
    let (statuses, kinds) = (watch::Sender::default(), watch::Sender::default());
    let ground = Ground {
        connection: fake.connection(),
        health: Health::default(),
        kinds: kinds.subscribe(),
        namespace: "istio-system".into(),
        flags: Flags {
            pod_name: "istiod".into(),
            ca_secret: None,
            untaint_nodes: true,
            validation_webhook: "validator".into(),
        },
        authority: Arc::new(authority),
        statuses: statuses.subscribe(),
        metrics: Metrics::register(&mut Registry::new("pilot", "test")),
    };
    Bench {
        fake,
        ground,
        statuses,
        kinds,
        directory,
    }
}

fn running(writer: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(writer))
}

fn has_roots(roots: &str) -> impl Fn(&Value) -> bool + use<> {
    let roots = roots.to_owned();
    move |map| {
        map["data"][ROOTS_KEY] == *roots && map["metadata"]["labels"]["istio.io/config"] == "true"
    }
}

fn roots_of(namespace: &str) -> (&'static str, &str, &'static str) {
    ("configmaps", namespace, ROOTS_NAME)
}

#[tokio::test(start_paused = true)]
async fn roots_are_in_every_namespace_and_come_back_whatever_is_done_to_them() {
    let bench = bench();
    let roots = bench.ground.authority.roots();
    for namespace in ["alpha", "kube-system", "kube-public", "kube-node-lease"] {
        bench.fake.put("namespaces", "", namespace, json!({}));
    }
    let _writer = running(roots::write(bench.ground.clone()));
    for namespace in ["alpha", "kube-system"] {
        bench
            .fake
            .until(roots_of(namespace), has_roots(&roots))
            .await;
        let revoked = ("configmaps", namespace, "istio-ca-crl");
        bench
            .fake
            .until(revoked, |map| map["data"]["ca-crl.pem"] == "")
            .await;
    }
    bench.fake.put("namespaces", "", "new", json!({}));
    bench.fake.until(roots_of("new"), has_roots(&roots)).await;

    let labels = json!({"istio.io/config": "true"});
    let tampered = json!({"metadata": {"labels": labels}, "data": {ROOTS_KEY: "evil"}});
    bench.fake.put("configmaps", "alpha", ROOTS_NAME, tampered);
    bench.fake.until(roots_of("alpha"), has_roots(&roots)).await;
    bench.fake.remove("configmaps", "alpha", ROOTS_NAME);
    bench.fake.until(roots_of("alpha"), has_roots(&roots)).await;
    for left_out in ["kube-public", "kube-node-lease"] {
        assert_eq!(bench.fake.object("configmaps", left_out, ROOTS_NAME), None);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_right_is_not_written_and_new_roots_are_written_everywhere() {
    let bench = bench();
    for number in 0..40 {
        bench
            .fake
            .put("namespaces", "", &format!("n{number}"), json!({}));
    }
    let first = running(roots::write(bench.ground.clone()));
    for number in 0..40 {
        let roots = has_roots(&bench.ground.authority.roots());
        bench
            .fake
            .until(roots_of(&format!("n{number}")), roots)
            .await;
    }
    drop(first);
    bench
        .fake
        .until(("configmaps", "n39", "istio-ca-crl"), |map| !map.is_null())
        .await;
    bench.fake.writes();
    // The next leader finds everything as it should be.
    let _second = running(roots::write(bench.ground.clone()));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(bench.fake.writes(), Vec::<String>::new());

    let file = bench.directory.path().join("root-cert.pem");
    let mut both = std::fs::read_to_string(&file).unwrap();
    both.push_str(&other_root());
    std::fs::write(&file, both).unwrap();
    assert!(bench.ground.authority.reload().unwrap());
    for number in 0..40 {
        let roots = has_roots(&bench.ground.authority.roots());
        bench
            .fake
            .until(roots_of(&format!("n{number}")), roots)
            .await;
    }
    assert_eq!(bench.fake.writes().len(), 40, "the CRLs did not change");
}

fn other_root() -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().pem()
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_refuses_does_not_hold_up_the_others_and_one_that_goes_is_no_failure() {
    let bench = bench();
    let roots = bench.ground.authority.roots();
    let tries = Arc::new(AtomicUsize::new(0));
    let tried = tries.clone();
    bench.fake.refuse(move |method, path| {
        let bad = *method == http::Method::PATCH && path.contains("/bad/");
        tried.fetch_add(usize::from(bad), Ordering::SeqCst);
        bad.then_some(500)
    });
    for namespace in ["bad", "good"] {
        bench.fake.put("namespaces", "", namespace, json!({}));
    }
    let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    bench.fake.put("namespaces", "", "leaving", leaving);
    let _writer = running(roots::write(bench.ground.clone()));
    bench.fake.until(roots_of("good"), has_roots(&roots)).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let writes = bench.fake.writes();
    // Two ConfigMaps, with pauses that double up to a minute.
    let tries = tries.load(Ordering::SeqCst);
    assert!((20..50).contains(&tries), "{tries}");
    assert!(
        !writes.iter().any(|it| it.contains("/leaving/")),
        "{writes:?}"
    );
    bench.fake.refuse_nothing();
    bench.fake.until(roots_of("bad"), has_roots(&roots)).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_keeps_changing_the_roots_back_does_not_get_us_into_a_race() {
    let bench = bench();
    let roots = bench.ground.authority.roots();
    bench.fake.put("namespaces", "", "alpha", json!({}));
    let _writer = running(roots::write(bench.ground.clone()));
    let fake = bench.fake.clone();
    let _rival = running(async move {
        loop {
            fake.until(roots_of("alpha"), has_roots(&roots)).await;
            let theirs = json!({"data": {ROOTS_KEY: "theirs"}});
            fake.put("configmaps", "alpha", ROOTS_NAME, theirs);
        }
    });
    tokio::time::sleep(Duration::from_secs(600)).await;
    let writes = bench.fake.writes();
    let ours = writes.iter().filter(|it| it.contains(ROOTS_NAME)).count();
    assert!((8..40).contains(&ours), "{ours}");
}

fn policies() -> Kinds {
    let resource = ApiResource {
        group: "security.istio.io".into(),
        version: "v1".into(),
        api_version: "security.istio.io/v1".into(),
        kind: "AuthorizationPolicy".into(),
        plural: "authorizationpolicies".into(),
    };
    Arc::new(BTreeMap::from([(Kind::AuthorizationPolicy, resource)]))
}

fn says(reason: &str) -> status::Book {
    let condition = status::Condition {
        r#type: "ZtunnelAccepted",
        status: true,
        reason: reason.into(),
        message: "m".into(),
    };
    let desired = status::Desired {
        generation: Some(1),
        conditions: vec![condition],
        ..status::Desired::default()
    };
    let key = ObjectKey::new(Kind::AuthorizationPolicy, "alpha", "p");
    status::Book::unit(key, Arc::new(desired))
}

const POLICY: (&str, &str, &str) = ("authorizationpolicies", "alpha", "p");

fn policy(status: &Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "status": status})
}

fn has_reason(reason: &str) -> impl Fn(&Value) -> bool {
    move |object| {
        let list = object["status"]["conditions"].as_array();
        let mut list = list.into_iter().flatten();
        list.any(|it| it["type"] == "ZtunnelAccepted" && it["reason"] == reason)
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_follows_the_book_and_is_put_right_when_somebody_writes_over_it() {
    let bench = bench();
    bench
        .fake
        .put(POLICY.0, POLICY.1, POLICY.2, policy(&Value::Null));
    bench.statuses.send_replace(says("First"));
    let _writer = running(status::write(status::Part::Mesh, bench.ground.clone()));
    // The kind is defined only later.
    bench.kinds.send_replace(policies());
    bench.fake.until(POLICY, has_reason("First")).await;
    bench.statuses.send_replace(says("Second"));
    bench.fake.until(POLICY, has_reason("Second")).await;

    let theirs = json!({"type": "Theirs", "status": "True"});
    bench.fake.put(
        POLICY.0,
        POLICY.1,
        POLICY.2,
        policy(&json!({"conditions": [theirs]})),
    );
    let object = bench.fake.until(POLICY, has_reason("Second")).await;
    assert_eq!(object["status"]["conditions"][0], theirs);
    let writes = bench.fake.writes();
    assert!(
        writes.iter().all(|it| it.ends_with("/status")),
        "{writes:?}"
    );
    assert_eq!(writes.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_next_leader_writes_no_status_that_is_there_already() {
    let bench = bench();
    bench
        .fake
        .put(POLICY.0, POLICY.1, POLICY.2, policy(&Value::Null));
    bench.statuses.send_replace(says("First"));
    bench.kinds.send_replace(policies());
    let first = running(status::write(status::Part::Mesh, bench.ground.clone()));
    bench.fake.until(POLICY, has_reason("First")).await;
    drop(first);
    bench.fake.writes();
    let _second = running(status::write(status::Part::Mesh, bench.ground.clone()));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(bench.fake.writes(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_status_that_cannot_be_written_is_tried_again_until_it_can() {
    let bench = bench();
    bench
        .fake
        .put(POLICY.0, POLICY.1, POLICY.2, policy(&Value::Null));
    bench
        .fake
        .refuse(|method, _| (*method == http::Method::PATCH).then_some(403));
    bench.statuses.send_replace(says("First"));
    bench.kinds.send_replace(policies());
    let _writer = running(status::write(status::Part::Mesh, bench.ground.clone()));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(!has_reason("First")(
        &bench.fake.object(POLICY.0, POLICY.1, POLICY.2).unwrap()
    ));
    bench.fake.refuse_nothing();
    bench.fake.until(POLICY, has_reason("First")).await;
}

fn entries() -> Kinds {
    let resource = ApiResource {
        group: "networking.istio.io".into(),
        version: "v1".into(),
        api_version: "networking.istio.io/v1".into(),
        kind: "ServiceEntry".into(),
        plural: "serviceentries".into(),
    };
    Arc::new(BTreeMap::from([(Kind::ServiceEntry, resource)]))
}

fn entry(host: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "spec": {
            "hosts": [host], "resolution": "DNS",
            "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}],
        },
    })
}

fn addresses_of(entry: &Value) -> Vec<String> {
    let list = entry["status"]["addresses"].as_array();
    let list = list.into_iter().flatten();
    list.map(|it| it["value"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn addresses_stay_when_another_leads_and_when_entries_come_and_go() {
    let bench = bench();
    let at = |name| ("serviceentries", "alpha", name);
    bench
        .fake
        .put("serviceentries", "alpha", "a", entry("a.example.com"));
    let first = running(addresses::write(bench.ground.clone()));
    bench.kinds.send_replace(entries());
    let given = |entry: &Value| addresses_of(entry).len() == 2;
    let a = bench.fake.until(at("a"), given).await;
    assert_eq!(addresses_of(&a), ["240.240.0.1", "2001:2::1"]);
    drop(first);
    let _second = running(addresses::write(bench.ground.clone()));
    bench
        .fake
        .put("serviceentries", "alpha", "b", entry("b.example.com"));
    let b = bench.fake.until(at("b"), given).await;
    assert_eq!(addresses_of(&b), ["240.240.0.2", "2001:2::2"]);
    assert_eq!(bench.fake.object("serviceentries", "alpha", "a"), Some(a));
}

#[tokio::test(start_paused = true)]
async fn a_taint_goes_when_the_agent_is_ready_and_other_taints_stay() {
    let bench = bench();
    let other = json!({"key": "other", "effect": "NoSchedule"});
    let taints = json!([{"key": "cni.istio.io/not-ready", "effect": "NoSchedule"}, other]);
    bench
        .fake
        .put("nodes", "", "n", json!({"spec": {"taints": taints}}));
    let _writer = running(taint::write(bench.ground.clone()));
    let agent = |ready: &str| {
        json!({
            "metadata": {"labels": {"k8s-app": "istio-cni-node"}},
            "spec": {"nodeName": "n", "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        })
    };
    bench
        .fake
        .put("pods", "istio-system", "agent", agent("False"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        bench.fake.object("nodes", "", "n").unwrap()["spec"]["taints"],
        taints
    );
    bench
        .fake
        .put("pods", "istio-system", "agent", agent("True"));
    let untainted = |node: &Value| node["spec"]["taints"] == json!([other]);
    bench.fake.until(("nodes", "", "n"), untainted).await;
}
