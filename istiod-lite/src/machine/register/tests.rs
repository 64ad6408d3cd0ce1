//! Two replicas before an API server in memory, in a time that passes by itself; and a folder.

use std::collections::BTreeMap;

use api::k8s::objects::Object;
use kube::core::ApiResource;
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::catalog::Publisher;
use crate::cluster::{Health, Kinds};
use crate::metrics::Metrics;
use crate::token::Join;
use crate::write::fake::Fake;

const GRACE: Duration = Duration::from_secs(60);
const ENTRY: (&str, &str, &str) = ("workloadentries", "shop", "db-1");

fn machine(name: &str, group: Option<&str>) -> Arc<Machine> {
    Arc::new(Machine {
        join: Join {
            namespace: "shop".into(),
            name: name.into(),
            service_account: "db".into(),
            group: group.map(str::to_owned),
            addresses: Vec::new(),
            translated: false,
        },
        address: [10, 9, 0, 5].into(),
        key: "k".into(),
        token: "t".into(),
        joined: 0,
        ended: None,
    })
}

fn group(probe: bool) -> Arc<WorkloadGroup> {
    let mut group = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
        "metadata": {"name": "db", "namespace": "shop", "uid": "u-group"},
        "spec": {
            "metadata": {"labels": {"app": "db"}, "annotations": {"team": "a", "istio.io/connectedAt": "a lie"}},
            "template": {"serviceAccount": "db", "network": "hall-2", "ports": {"sql": 5432}},
        },
    });
    if probe {
        group["spec"]["probe"] = json!({"tcpSocket": {"port": 5432}});
    }
    Arc::new(serde_json::from_value(group).unwrap())
}

fn objects(client: kube::Client) -> Objects {
    let resource = ApiResource {
        group: "networking.istio.io".into(),
        version: "v1".into(),
        api_version: "networking.istio.io/v1".into(),
        kind: "WorkloadEntry".into(),
        plural: "workloadentries".into(),
    };
    let kinds = Kinds::new(BTreeMap::from([(Kind::WorkloadEntry, resource)]));
    let (_, kinds) = watch::channel(kinds);
    let metrics = Metrics::register(&mut ops::metrics::Registry::new("pilot", "test"));
    Objects::new(client, kinds, metrics)
}

/// A replica, as long as it lives.
struct Replica {
    registrar: Arc<Registrar>,
    stop: CancellationToken,
    _entries: AbortOnDropHandle<()>,
}

impl Replica {
    fn start(fake: &Fake, pod: &str, probe: bool) -> Self {
        let key = ObjectKey::new(Kind::WorkloadGroup, "shop", "db");
        let (_, groups) = watch::channel(Groups::unit(key, group(probe)));
        let entries: Arc<ArcSwap<Entries>> = Arc::default();
        let (_, catalog) = Publisher::new();
        let views = Views {
            groups,
            entries: entries.clone(),
            catalog,
            network: Arc::default(),
        };
        let place = Place::Cluster(objects(fake.client()));
        let (connection, health) = (fake.connection(), Health::default());
        let replicas = Replicas::several(connection, health, "istio-system", pod);
        let registrar = Registrar::new(place, replicas, GRACE, "Kubernetes", views);
        let stop = CancellationToken::new();
        tokio::spawn(registrar.clone().tend(stop.clone()));
        // A watch that is a little late.
        let fake = fake.clone();
        let follow = async move {
            loop {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let mut all = Entries::new();
                for entry in fake.all("workloadentries") {
                    let read = api::k8s::json::read(Kind::WorkloadEntry, &entry);
                    if let Ok(object @ Object::WorkloadEntry(_)) = read {
                        let key = object.key();
                        let Object::WorkloadEntry(entry) = object else {
                            continue;
                        };
                        all.insert(key, entry);
                    }
                }
                entries.store(Arc::new(all));
            }
        };
        Self {
            registrar,
            stop,
            _entries: AbortOnDropHandle::new(tokio::spawn(follow)),
        }
    }

    /// As its process ends, however: nothing more is written by it.
    fn dies(&self) {
        self.stop.cancel();
    }

    fn me(&self) -> &str {
        self.registrar.replicas.me()
    }
}

fn annotation<'a>(entry: &'a Value, key: &str) -> &'a str {
    entry["metadata"]["annotations"][key]
        .as_str()
        .unwrap_or_default()
}

fn connected_to(entry: &Value, replica: &Replica) -> bool {
    annotation(entry, "istio.io/workloadController") == replica.me()
        && !annotation(entry, "istio.io/connectedAt").is_empty()
        && annotation(entry, "istio.io/disconnectedAt").is_empty()
}

fn is_gone(entry: &Value) -> bool {
    !annotation(entry, "istio.io/disconnectedAt").is_empty()
        && annotation(entry, "istio.io/workloadController").is_empty()
}

/// As the mesh reads it.
fn is_well(entry: &Value) -> bool {
    let entry = serde_json::from_value(entry.clone()).unwrap();
    !crate::translate::workload_entry::WorkloadEntry::read(&entry).unhealthy
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_says_how_it_does_has_an_entry_of_its_group_and_no_sooner() {
    let fake = Fake::new();
    let one = Replica::start(&fake, "istiod-1", true);
    let presence = one.registrar.arrive(machine("db-1", Some("db"))).unwrap();
    seconds(30).await;
    assert!(fake.all(ENTRY.0).is_empty());
    presence.report(Some("not asked yet")).await.unwrap();
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(connected_to(&entry, &one) && !is_well(&entry), "{entry}");
    let owner = json!([{
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup", "name": "db", "uid": "u-group", "controller": true,
    }]);
    assert_eq!(entry["metadata"]["ownerReferences"], owner);
    assert_eq!(entry["metadata"]["labels"], json!({"app": "db"}));
    for (key, value) in [
        ("team", "a"),
        ("istio.io/autoRegistrationGroup", "db"),
        ("ambient.istio.io/redirection", "enabled"),
        ("proxy.istio.io/health-checks-enabled", "true"),
        ("ambit.io/machine", "shop/db-1"),
    ] {
        assert_eq!(annotation(&entry, key), value);
    }
    assert_ne!(annotation(&entry, "istio.io/connectedAt"), "a lie");
    let spec = json!({
        "address": "10.9.0.5", "serviceAccount": "db", "network": "hall-2", "ports": {"sql": 5432}, "labels": {"app": "db"},
    });
    assert_eq!(entry["spec"], spec);
    presence.report(None).await.unwrap();
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(
        is_well(&entry) && entry["status"]["conditions"][0]["status"] == "True",
        "{entry}"
    );
    // What others write beside ours stays.
    let mut theirs = entry.clone();
    theirs["metadata"]["labels"]["note"] = "mine".into();
    theirs["status"]["conditions"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "other", "status": "True"}));
    fake.put(ENTRY.0, ENTRY.1, ENTRY.2, theirs);
    presence.report(Some("status 503")).await.unwrap();
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert_eq!(entry["metadata"]["labels"]["note"], "mine");
    assert_eq!(entry["status"]["conditions"].as_array().unwrap().len(), 2);
    assert!(!is_well(&entry));
    seconds(600).await;
    assert!(
        fake.object(ENTRY.0, ENTRY.1, ENTRY.2).is_some(),
        "it stays as long as its machine"
    );
}

#[tokio::test(start_paused = true)]
async fn where_no_group_asks_a_machine_is_well_while_it_is_there() {
    let fake = Fake::new();
    let one = Replica::start(&fake, "istiod-1", false);
    let presence = one.registrar.arrive(machine("db-1", Some("db"))).unwrap();
    presence.report(Some("not asked yet")).await.unwrap();
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(is_well(&entry) && entry["status"].is_null(), "{entry}");
    drop(presence);
    let entry = fake.until(ENTRY, is_gone).await;
    assert!(!is_well(&entry), "who is away gets no connections");
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_goes_is_marked_a_moment_later_and_its_entry_removed_after_the_grace() {
    let fake = Fake::new();
    let one = Replica::start(&fake, "istiod-1", true);
    let arrive = || one.registrar.arrive(machine("db-1", Some("db"))).unwrap();
    let presence = arrive();
    presence.report(None).await.unwrap();
    // Another connection, a second later: nobody hears of it.
    drop(presence);
    seconds(1).await;
    let presence = arrive();
    seconds(30).await;
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(connected_to(&entry, &one) && is_well(&entry), "{entry}");
    drop(presence);
    seconds(6).await;
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(is_gone(&entry) && !is_well(&entry), "{entry}");
    // It comes back within the grace.
    let presence = arrive();
    presence.report(None).await.unwrap();
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(connected_to(&entry, &one) && is_well(&entry), "{entry}");
    drop(presence);
    seconds(55).await;
    assert!(fake.object(ENTRY.0, ENTRY.1, ENTRY.2).is_some());
    seconds(15).await;
    assert!(fake.object(ENTRY.0, ENTRY.1, ENTRY.2).is_none());
    // One that was taken out is not waited for.
    let presence = arrive();
    presence.report(None).await.unwrap();
    seconds(5).await;
    presence.taken_out();
    drop(presence);
    seconds(5).await;
    assert!(fake.object(ENTRY.0, ENTRY.1, ENTRY.2).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_machine_moves_between_replicas_and_they_do_not_take_turns_at_its_entry() {
    let fake = Fake::new();
    let one = Replica::start(&fake, "istiod-1", true);
    let other = Replica::start(&fake, "istiod-2", true);
    let here = one.registrar.arrive(machine("db-1", Some("db"))).unwrap();
    here.report(None).await.unwrap();
    seconds(60).await;
    let there = other.registrar.arrive(machine("db-1", Some("db"))).unwrap();
    there.report(None).await.unwrap();
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(connected_to(&entry, &other) && is_well(&entry), "{entry}");
    // The old stream, half open, hears that it is over.
    let moved = here.report(None).await;
    assert!(matches!(moved, Err(NotRegistered::Moved(_))), "{moved:?}");
    seconds(1).await;
    assert!(!here.stands() && there.stands());
    drop(here);
    fake.writes();
    seconds(300).await;
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(connected_to(&entry, &other) && is_well(&entry), "{entry}");
    let writes = fake.writes();
    let about_it = writes.iter().filter(|it| it.contains("workloadentries"));
    assert_eq!(about_it.count(), 0, "{writes:?}");
}

#[tokio::test(start_paused = true)]
async fn who_read_an_entry_before_another_took_it_over_does_not_take_it_back() {
    let fake = Fake::new();
    let other = Replica::start(&fake, "istiod-2", false);
    let it = machine("db-1", Some("db"));
    let there = Arc::new(other.registrar.arrive(it.clone()).unwrap());
    let takes_over = Arc::new(AtomicBool::new(false));
    let (client, race) = (fake.client(), takes_over.clone());
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let (client, race, there) = (client.clone(), race.clone(), there.clone());
        async move {
            // After the entry was read, before it is written.
            if request.method() == http::Method::PATCH && race.swap(false, Ordering::AcqRel) {
                there.report(None).await.unwrap();
            }
            client.send(request).await
        }
    });
    let here = objects(kube::Client::new(service, "default"));
    let (shape, me) = (entry::shape(&it, &group(false), false), "istiod-1_1");
    let standing = Standing::connected(me);
    let wanted = Wanted {
        entry: &shape,
        standing: &standing,
        unhealthy: None,
        me,
        takes_over: false,
    };
    here.write(&wanted).await.unwrap();
    here.write(&wanted).await.unwrap();
    takes_over.store(true, Ordering::Release);
    let moved = here.write(&wanted).await;
    assert!(matches!(moved, Err(NotRegistered::Moved(_))), "{moved:?}");
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(connected_to(&entry, &other), "{entry}");
}

#[tokio::test(start_paused = true)]
async fn who_was_at_a_replica_that_died_is_waited_for_and_then_taken_out_by_another() {
    let fake = Fake::new();
    let one = Replica::start(&fake, "istiod-1", true);
    let other = Replica::start(&fake, "istiod-2", true);
    let presence = one.registrar.arrive(machine("db-1", Some("db"))).unwrap();
    presence.report(None).await.unwrap();
    seconds(125).await;
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(
        connected_to(&entry, &one),
        "its replica is alive, if elsewhere: {entry}"
    );
    one.dies();
    seconds(15).await;
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(is_well(&entry), "a replica may be replaced: {entry}");
    seconds(50).await;
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(is_gone(&entry), "{entry}");
    seconds(70).await;
    assert!(fake.object(ENTRY.0, ENTRY.1, ENTRY.2).is_none());
    assert!(other.registrar.here().is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_starts_anew_loses_no_machine_that_comes_back() {
    let fake = Fake::new();
    let old = Replica::start(&fake, "istiod-1", true);
    let presence = old.registrar.arrive(machine("db-1", Some("db"))).unwrap();
    presence.report(None).await.unwrap();
    seconds(30).await;
    old.dies();
    drop(presence);
    seconds(20).await;
    // All replicas were away; the machine comes back a little later than they do.
    let new = Replica::start(&fake, "istiod-1", true);
    seconds(10).await;
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(is_well(&entry), "{entry}");
    let presence = new.registrar.arrive(machine("db-1", Some("db"))).unwrap();
    presence.report(None).await.unwrap();
    fake.writes();
    seconds(300).await;
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(connected_to(&entry, &new) && is_well(&entry), "{entry}");
}

#[tokio::test(start_paused = true)]
async fn while_the_api_server_is_away_nothing_is_lost_and_nobody_is_marked() {
    let fake = Fake::new();
    let one = Replica::start(&fake, "istiod-1", true);
    let other = Replica::start(&fake, "istiod-2", true);
    let presence = one.registrar.arrive(machine("db-1", Some("db"))).unwrap();
    presence.report(None).await.unwrap();
    seconds(30).await;
    fake.refuse(|_, _| Some(503));
    let failed = presence.report(Some("status 503")).await.unwrap_err();
    assert!(failed.passes(), "{failed}");
    seconds(600).await;
    fake.refuse_nothing();
    seconds(60).await;
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(connected_to(&entry, &one), "{entry}");
    presence.report(Some("status 503")).await.unwrap();
    assert!(!is_well(&fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap()));
    drop(other);
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_may_not_be_written_keeps_no_other_from_being_marked_and_removed() {
    let fake = Fake::new();
    let one = Replica::start(&fake, "istiod-1", false);
    let names: Vec<String> = (0..12).map(|number| format!("db-{number}")).collect();
    let mut there = Vec::new();
    for name in &names {
        let presence = one.registrar.arrive(machine(name, Some("db"))).unwrap();
        presence.report(None).await.unwrap();
        there.push(presence);
    }
    seconds(1).await;
    // Somebody's admission webhook refuses every other one.
    fake.refuse(|method, path| {
        let number: u32 = path.rsplit_once("/db-")?.1.parse().ok()?;
        (*method != http::Method::GET && number.is_multiple_of(2)).then_some(422)
    });
    drop(there);
    seconds(50).await;
    let others = || names.iter().skip(1).step_by(2);
    for name in others() {
        let entry = fake.object(ENTRY.0, ENTRY.1, name).unwrap();
        assert!(is_gone(&entry), "{entry}");
    }
    seconds(90).await;
    for name in others() {
        assert!(fake.object(ENTRY.0, ENTRY.1, name).is_none(), "{name}");
    }
    let refused = fake.object(ENTRY.0, ENTRY.1, &names[0]).unwrap();
    assert!(connected_to(&refused, &one), "{refused}");
    fake.refuse_nothing();
    seconds(120).await;
    assert!(fake.all(ENTRY.0).is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_waits_for_a_finalizer_is_removed_once() {
    let fake = Fake::new();
    let _one = Replica::start(&fake, "istiod-1", true);
    let mut entry = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {
            "name": "db-1", "namespace": "shop", "uid": "u-entry", "finalizers": ["example.com/later"],
            "annotations": {
                "istio.io/autoRegistrationGroup": "db", "ambit.io/machine": "shop/db-1",
                "istio.io/disconnectedAt": "2026-11-23T00:00:00Z",
            },
        },
        "spec": {"address": "10.9.0.5"},
    });
    entry["metadata"]["deletionTimestamp"] = "2026-11-23T00:01:00Z".into();
    fake.put(ENTRY.0, ENTRY.1, ENTRY.2, entry.clone());
    seconds(300).await;
    let deletes = |writes: Vec<String>| {
        let deletes = writes.into_iter().filter(|it| it.starts_with("DELETE"));
        deletes.count()
    };
    assert_eq!(deletes(fake.writes()), 0, "that was done before");
    let metadata = entry["metadata"].as_object_mut().unwrap();
    metadata.remove("deletionTimestamp");
    fake.put(ENTRY.0, ENTRY.1, ENTRY.2, entry);
    seconds(120).await;
    assert_eq!(deletes(fake.writes()), 1, "this one is there");
}

#[tokio::test(start_paused = true)]
async fn what_somebody_wrote_by_hand_is_left_alone() {
    let fake = Fake::new();
    let theirs = json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": {"name": "db-1", "namespace": "shop", "annotations": {"istio.io/autoRegistrationGroup": "db"}},
        "spec": {"address": "10.9.0.5"},
    });
    let one = Replica::start(&fake, "istiod-1", true);
    let presence = one.registrar.arrive(machine("db-1", Some("db"))).unwrap();
    // After it was looked for, before it is written.
    fake.put(ENTRY.0, ENTRY.1, ENTRY.2, theirs);
    let before = fake.object(ENTRY.0, ENTRY.1, ENTRY.2);
    let foreign = presence.report(None).await;
    assert!(
        matches!(foreign, Err(NotRegistered::Foreign(_))),
        "{foreign:?}"
    );
    seconds(1).await;
    let again = one.registrar.arrive(machine("db-1", Some("db")));
    assert!(matches!(again, Err(NotRegistered::Foreign(_))));
    drop(presence);
    seconds(300).await;
    assert_eq!(fake.object(ENTRY.0, ENTRY.1, ENTRY.2), before);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_reaches_another_replica_is_noted_on_the_entry_that_is_there() {
    let fake = Fake::new();
    let one = Replica::start(&fake, "istiod-1", true);
    let other = Replica::start(&fake, "istiod-2", true);
    let (it, at_other) = (machine("db-1", Some("db")), &other.registrar);
    assert!(!at_other.note(&it, None).await.unwrap(), "there is none");
    assert!(fake.all(ENTRY.0).is_empty());
    let presence = one.registrar.arrive(it.clone()).unwrap();
    presence.report(None).await.unwrap();
    assert!(at_other.note(&it, Some("status 503")).await.unwrap());
    let entry = fake.object(ENTRY.0, ENTRY.1, ENTRY.2).unwrap();
    assert!(!is_well(&entry) && connected_to(&entry, &one), "{entry}");
}

#[tokio::test]
async fn a_machine_at_the_address_of_a_pod_gets_no_entry_whatever_the_clusters_network_is_called() {
    use api::k8s::dir::Change;
    use api::k8s::yaml::{Parsed, parse};

    use crate::world::{Settings, World};

    let folder = tempfile::tempdir().unwrap();
    for (of_the_cluster, of_the_group, is_taken) in [
        ("", "", true),
        ("net-1", "", true),
        ("net-1", "net-1", true),
        ("net-1", "hall-2", false),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: istio-system, labels: {{topology.istio.io/network: '{of_the_cluster}'}}}}\n---\n\
             apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: shop}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.9.0.5}}\n"
        );
        let objects = parse(&text).into_iter().map(|parsed| match parsed {
            Parsed::Object { object, .. } => Change::Set(object),
            other => panic!("{other:?} in {text}"),
        });
        let mut world = World::new(Settings::default());
        let changed = world.apply(objects.collect());
        let (mut publisher, catalog) = Publisher::new();
        publisher.take(&world, &changed);
        publisher.publish();
        let mut group = WorkloadGroup::clone(&group(false));
        group.spec.template.network = of_the_group.to_owned();
        let key = ObjectKey::new(Kind::WorkloadGroup, "shop", "db");
        let (_, groups) = watch::channel(Groups::unit(key, Arc::new(group)));
        let views = Views {
            groups,
            entries: Arc::default(),
            catalog,
            network: Arc::new(ArcSwap::from_pointee(world.network().to_owned())),
        };
        let registrar = Registrar::in_directory(folder.path(), GRACE, "Kubernetes", views);
        let refused = registrar.arrive(machine("db-1", Some("db"))).err();
        let taken = matches!(&refused, Some(NotRegistered::Taken { other, .. }) if other == "Kubernetes//Pod/shop/web");
        assert_eq!((taken, refused.is_some()), (is_taken, is_taken), "{text}");
    }
}
