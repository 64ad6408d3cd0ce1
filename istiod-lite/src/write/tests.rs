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
mod roots_everywhere;
mod statuses;
mod waypoints_run;

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

    /// Until somebody writes, or nobody; an hour is too long.
    async fn becomes(&self, empty: bool) {
        let becomes = async {
            while self.is_empty() != empty {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(3600), becomes).await;
        assert!(waited.is_ok(), "waited for an empty stage: {empty}");
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
        stage.becomes(true).await;
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
        stage.becomes(false).await;
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
    stage.becomes(true).await;
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
            injection_webhook: "injector".into(),
            waypoint_image: None,
            waypoint: None,
        },
        authority: Arc::new(authority),
        statuses: statuses.subscribe(),
        waypoints: None,
        notes: watch::Sender::default(),
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

/// The same API server, whose answers to what changes something come a second late.
fn hesitant(fake: &Fake) -> kube::Client {
    let client = fake.client();
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let client = client.clone();
        async move {
            let changes = request.method() != http::Method::GET;
            let answer = client.send(request).await;
            if changes {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            answer
        }
    });
    kube::Client::new(service, "default")
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_added_while_addresses_are_written_gets_its_own() {
    let mut bench = bench();
    bench.ground.connection.client = hesitant(&bench.fake);
    let at = ("serviceentries", "alpha", "a");
    bench.fake.put(at.0, at.1, at.2, entry("a.example.com"));
    let _writer = running(addresses::write(bench.ground.clone()));
    bench.kinds.send_replace(entries());
    let given = |count: usize| move |entry: &Value| addresses_of(entry).len() == count;
    let mut a = bench.fake.until(at, given(2)).await;
    // They stand there, and nobody has said so yet.
    a["spec"]["hosts"] = json!(["a.example.com", "b.example.com"]);
    bench.fake.put(at.0, at.1, at.2, a);
    let a = bench.fake.until(at, given(4)).await;
    assert_eq!(
        addresses_of(&a),
        ["240.240.0.1", "2001:2::1", "240.240.0.2", "2001:2::2"]
    );
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
