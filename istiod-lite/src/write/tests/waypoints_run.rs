//! Gateways of our class are deployed, and what is in the way of it is said.

use super::*;
use crate::deploy::{Chart, Mesh, Note};

const GATEWAYS: &str = "gateways";
const CLASSES: &str = "gatewayclasses";
const DEPLOYMENT: (&str, &str, &str) = ("deployments", "shop", "waypoint");

fn defined() -> Kinds {
    let resource = |kind: &str, plural: &str| ApiResource {
        group: "gateway.networking.k8s.io".into(),
        version: "v1".into(),
        api_version: "gateway.networking.k8s.io/v1".into(),
        kind: kind.into(),
        plural: plural.into(),
    };
    Arc::new(BTreeMap::from([
        (Kind::Gateway, resource("Gateway", GATEWAYS)),
        (Kind::GatewayClass, resource("GatewayClass", CLASSES)),
    ]))
}

fn pattern() -> Arc<Pattern> {
    Arc::new(Pattern {
        chart: Chart {
            image: "waypoint:1".into(),
            ..Chart::default()
        },
        mesh: Mesh {
            namespace: "istio-system".into(),
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Vec::new(),
            cluster: "Kubernetes".into(),
            domain: "cluster.local".into(),
            revision: "default".into(),
        },
    })
}

fn gateway(class: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"uid": "u-1"},
        "spec": {
            "gatewayClassName": class,
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    })
}

fn with_parameters() -> Value {
    let mut gateway = gateway("istio-waypoint");
    gateway["spec"]["infrastructure"] =
        json!({"parametersRef": {"group": "", "kind": "ConfigMap", "name": "wishes"}});
    gateway
}

fn wishes(deployment: &str) -> Value {
    json!({"data": {"deployment": deployment}})
}

fn put(bench: &Bench, gateway: Value) {
    bench.fake.put(GATEWAYS, "shop", "waypoint", gateway);
}

fn deploying(bench: &Bench) -> AbortOnDropHandle<()> {
    bench.kinds.send_replace(defined());
    let ground = bench.ground.clone();
    let notes = ground.notes.clone();
    running(deploy::write(ground, pattern(), notes))
}

/// Waits until the Gateway's note is as wanted.
async fn noted(bench: &Bench, wanted: impl Fn(Option<&Note>) -> bool) {
    let key = ObjectKey::new(Kind::Gateway, "shop", "waypoint");
    let mut notes = bench.ground.notes.subscribe();
    let so = notes.wait_for(|notes| wanted(notes.get(&key)));
    let waited = tokio::time::timeout(Duration::from_secs(3600), so).await;
    waited.unwrap().unwrap();
}

fn there(object: &Value) -> bool {
    object.is_object()
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_waypoint_is_deployed_and_what_somebody_changes_or_deletes_is_put_back() {
    let bench = bench();
    put(&bench, gateway("istio-waypoint"));
    let _writer = deploying(&bench);
    for plural in [
        "serviceaccounts",
        "services",
        "deployments",
        "poddisruptionbudgets",
    ] {
        bench.fake.until((plural, "shop", "waypoint"), there).await;
    }
    pass(60).await;
    bench.fake.writes();
    pass(600).await;
    assert_eq!(bench.fake.writes(), [""; 0], "all is as it should be");

    bench.fake.remove("services", "shop", "waypoint");
    bench
        .fake
        .until(("services", "shop", "waypoint"), there)
        .await;
    let mut changed = bench
        .fake
        .object(DEPLOYMENT.0, DEPLOYMENT.1, DEPLOYMENT.2)
        .unwrap();
    changed["spec"]["replicas"] = 0.into();
    bench
        .fake
        .put(DEPLOYMENT.0, DEPLOYMENT.1, DEPLOYMENT.2, changed);
    bench
        .fake
        .until(DEPLOYMENT, |it| it["spec"]["replicas"] == 2)
        .await;
}

#[tokio::test(start_paused = true)]
async fn how_many_pods_are_ready_is_said_and_is_no_reason_to_write() {
    let bench = bench();
    put(&bench, gateway("istio-waypoint"));
    let _writer = deploying(&bench);
    let mut deployment = bench.fake.until(DEPLOYMENT, there).await;
    noted(
        &bench,
        |note| matches!(note, Some(Note::Pending(why)) if why.starts_with("0 of 2 pods")),
    )
    .await;
    pass(60).await;
    bench.fake.writes();
    let failure =
        json!([{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]);
    deployment["status"] = json!({"availableReplicas": 1, "conditions": failure});
    bench
        .fake
        .put(DEPLOYMENT.0, DEPLOYMENT.1, DEPLOYMENT.2, deployment.clone());
    noted(&bench, |note| {
        matches!(note, Some(Note::Pending(why)) if why.starts_with("1 of 2") && why.contains("exceeded quota"))
    })
    .await;
    deployment["status"] = json!({"availableReplicas": 2});
    bench
        .fake
        .put(DEPLOYMENT.0, DEPLOYMENT.1, DEPLOYMENT.2, deployment);
    noted(&bench, |note| note.is_none()).await;
    assert_eq!(bench.fake.writes(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_made_under_the_same_name_is_left_alone() {
    let bench = bench();
    let theirs = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 7}});
    bench
        .fake
        .put(DEPLOYMENT.0, DEPLOYMENT.1, DEPLOYMENT.2, theirs);
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount"});
    bench
        .fake
        .put("serviceaccounts", "shop", "waypoint", account);
    put(&bench, gateway("istio-waypoint"));
    let _writer = deploying(&bench);
    noted(
        &bench,
        |note| matches!(note, Some(Note::Blocked(why)) if why.contains("Deployment shop/waypoint")),
    )
    .await;
    pass(600).await;
    assert_eq!(
        bench.fake.writes(),
        [""; 0],
        "neither it nor anything beside it"
    );
    bench.fake.remove(DEPLOYMENT.0, DEPLOYMENT.1, DEPLOYMENT.2);
    bench
        .fake
        .until(DEPLOYMENT, |it| it["spec"]["replicas"] == 2)
        .await;
    let account = bench
        .fake
        .object("serviceaccounts", "shop", "waypoint")
        .unwrap();
    assert!(
        account["metadata"].get("labels").is_none(),
        "used as it is: {account}"
    );
}

#[tokio::test(start_paused = true)]
async fn parameters_that_cannot_be_followed_leave_what_runs_as_it_is() {
    let bench = bench();
    bench.fake.put(
        "configmaps",
        "shop",
        "wishes",
        wishes("spec: {replicas: 3}"),
    );
    put(&bench, with_parameters());
    let _writer = deploying(&bench);
    bench
        .fake
        .until(DEPLOYMENT, |it| it["spec"]["replicas"] == 3)
        .await;
    let bad = wishes("spec: {replicas: 4, template: {spec: {hostNetwork: true}}}");
    bench.fake.put("configmaps", "shop", "wishes", bad);
    noted(
        &bench,
        |note| matches!(note, Some(Note::Invalid(why)) if why.contains("hostNetwork")),
    )
    .await;
    assert_eq!(
        bench
            .fake
            .object(DEPLOYMENT.0, DEPLOYMENT.1, DEPLOYMENT.2)
            .unwrap()["spec"]["replicas"],
        3
    );
    bench.fake.remove("configmaps", "shop", "wishes");
    noted(
        &bench,
        |note| matches!(note, Some(Note::Invalid(why)) if why.contains("no such ConfigMap")),
    )
    .await;
    bench.fake.put(
        "configmaps",
        "shop",
        "wishes",
        wishes("spec: {replicas: 5}"),
    );
    bench
        .fake
        .until(DEPLOYMENT, |it| it["spec"]["replicas"] == 5)
        .await;
    noted(&bench, |note| !matches!(note, Some(Note::Invalid(_)))).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_no_longer_wanted_goes() {
    let bench = bench();
    put(&bench, gateway("istio-waypoint"));
    let _writer = deploying(&bench);
    let budget = ("poddisruptionbudgets", "shop", "waypoint");
    bench.fake.until(budget, there).await;
    let without = json!({"data": {"podDisruptionBudget": "null"}});
    bench.fake.put("configmaps", "shop", "wishes", without);
    put(&bench, with_parameters());
    bench.fake.until(budget, |it| !there(it)).await;
    assert!(
        bench
            .fake
            .object(DEPLOYMENT.0, DEPLOYMENT.1, DEPLOYMENT.2)
            .is_some()
    );
    put(&bench, gateway("somebody-elses"));
    bench.fake.until(DEPLOYMENT, |it| !there(it)).await;
    bench
        .fake
        .until(("services", "shop", "waypoint"), |it| !there(it))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_class_makes_gateways_ours_and_not_ours() {
    let bench = bench();
    put(&bench, gateway("edge"));
    let _writer = deploying(&bench);
    pass(60).await;
    assert_eq!(bench.fake.writes(), [""; 0], "nobody's class yet");
    let class = |controller: &str| json!({"spec": {"controllerName": controller}});
    bench
        .fake
        .put(CLASSES, "", "edge", class("istio.io/mesh-controller"));
    bench.fake.until(DEPLOYMENT, there).await;
    bench
        .fake
        .put(CLASSES, "", "edge", class("example.com/other"));
    bench.fake.until(DEPLOYMENT, |it| !there(it)).await;
}

#[tokio::test(start_paused = true)]
async fn what_another_control_plane_or_somebody_else_runs_is_not_deployed() {
    let bench = bench();
    let mut other = gateway("istio-waypoint");
    other["metadata"]["labels"] = json!({"istio.io/rev": "canary"});
    put(&bench, other);
    let mut manual = gateway("istio-waypoint");
    manual["spec"]["addresses"] =
        json!([{"type": "Hostname", "value": "mine.shop.svc.cluster.local"}]);
    bench.fake.put(GATEWAYS, "shop", "manual", manual);
    let mut going = gateway("istio-waypoint");
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    bench.fake.put(GATEWAYS, "shop", "going", going);
    let _writer = deploying(&bench);
    noted(&bench, |note| note == Some(&Note::Elsewhere)).await;
    pass(600).await;
    assert_eq!(bench.fake.writes(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_the_api_server_refuses_is_said_and_tried_again() {
    let bench = bench();
    let deployments = |method: &http::Method, path: &str| {
        (*method == http::Method::PATCH && path.contains("/deployments/")).then_some(403)
    };
    bench.fake.refuse(deployments);
    put(&bench, gateway("istio-waypoint"));
    let _writer = deploying(&bench);
    noted(&bench, |note| matches!(note, Some(Note::Blocked(why)) if why.contains("cannot apply Deployment shop/waypoint: 403"))).await;
    bench.fake.refuse_nothing();
    bench.fake.until(DEPLOYMENT, there).await;
    noted(&bench, |note| !matches!(note, Some(Note::Blocked(_)))).await;
}

#[tokio::test(start_paused = true)]
async fn the_gateways_status_says_why_its_waypoint_does_not_run() {
    let bench = bench();
    put(&bench, with_parameters());
    let desired = crate::status::Desired {
        conditions: vec![
            crate::status::Condition {
                r#type: "Accepted",
                status: true,
                reason: "Accepted".into(),
                message: "Resource accepted".into(),
            },
            crate::status::Condition {
                r#type: "Programmed",
                status: false,
                reason: "AddressNotAssigned".into(),
                message: "nobody answers".into(),
            },
        ],
        ..crate::status::Desired::default()
    };
    let key = ObjectKey::new(Kind::Gateway, "shop", "waypoint");
    let book = status::Book::from_iter([(key, Arc::new(desired))]);
    bench.statuses.send_replace(book);
    let _deploying = deploying(&bench);
    let _statuses = running(status::write(status::Part::Gateways, bench.ground.clone()));
    let says = |reason: &'static str| {
        move |it: &Value| {
            let mut all = it["status"]["conditions"].as_array().into_iter().flatten();
            all.any(|it| it["reason"] == reason)
        }
    };
    let at = (GATEWAYS, "shop", "waypoint");
    bench.fake.until(at, says("InvalidParameters")).await;
    bench.fake.put("configmaps", "shop", "wishes", wishes("{}"));
    let waiting = bench.fake.until(at, says("Pending")).await;
    assert!(waiting.to_string().contains("0 of 2 pods"), "{waiting}");
    assert!(says("Accepted")(&waiting), "{waiting}");
}
