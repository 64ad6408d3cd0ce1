//! The classes that are ours come when their kind comes, and come back when they are deleted.

use std::time::Duration;

use super::*;

const CLASSES: &str = "gatewayclasses";

fn defined() -> Kinds {
    let resource = ApiResource {
        group: "gateway.networking.k8s.io".into(),
        version: "v1".into(),
        api_version: "gateway.networking.k8s.io/v1".into(),
        kind: "GatewayClass".into(),
        plural: CLASSES.into(),
    };
    Arc::new(BTreeMap::from([(Kind::GatewayClass, resource)]))
}

fn of(controller: &str) -> impl Fn(&Value) -> bool {
    move |class| class["spec"]["controllerName"] == controller
}

#[tokio::test(start_paused = true)]
async fn classes_are_made_when_their_kind_is_defined_and_when_they_are_deleted() {
    let bench = bench();
    let _writer = running(classes::write(bench.ground.clone()));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(bench.fake.writes().is_empty(), "no such kind yet");
    bench.kinds.send_replace(defined());
    let waypoint = (CLASSES, "", "istio-waypoint");
    let ours = of("istio.io/mesh-controller");
    bench.fake.until(waypoint, &ours).await;
    let remote = (CLASSES, "", "istio-remote");
    bench
        .fake
        .until(remote, of("istio.io/unmanaged-gateway"))
        .await;
    let door = (CLASSES, "", "istio-east-west");
    bench
        .fake
        .until(door, of("istio.io/eastwest-controller"))
        .await;
    assert!(bench.fake.object(CLASSES, "", "istio").is_none());
    bench.fake.remove(CLASSES, "", "istio-waypoint");
    bench.fake.until(waypoint, &ours).await;
}

#[tokio::test(start_paused = true)]
async fn a_class_that_is_there_stays_as_it_is_written() {
    let bench = bench();
    let theirs = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "spec": {"controllerName": "example.com/theirs"},
    });
    bench.fake.put(CLASSES, "", "istio-waypoint", theirs);
    bench.kinds.send_replace(defined());
    let _writer = running(classes::write(bench.ground.clone()));
    let remote = (CLASSES, "", "istio-remote");
    bench
        .fake
        .until(remote, of("istio.io/unmanaged-gateway"))
        .await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let class = bench.fake.object(CLASSES, "", "istio-waypoint").unwrap();
    assert!(of("example.com/theirs")(&class));
}

#[tokio::test(start_paused = true)]
async fn a_class_that_may_not_be_written_is_tried_again() {
    let bench = bench();
    bench
        .fake
        .refuse(|method, _| (*method == http::Method::POST).then_some(403));
    bench.kinds.send_replace(defined());
    let _writer = running(classes::write(bench.ground.clone()));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(bench.fake.object(CLASSES, "", "istio-waypoint").is_none());
    bench.fake.refuse_nothing();
    let waypoint = (CLASSES, "", "istio-waypoint");
    bench
        .fake
        .until(waypoint, of("istio.io/mesh-controller"))
        .await;
}

fn told(class: &Value) -> bool {
    let features = class["status"]["supportedFeatures"].as_array();
    features.is_some_and(|all| all.contains(&json!({"name": "MeshHTTPRouteRewritePath"})))
}

#[tokio::test(start_paused = true)]
async fn the_class_of_waypoints_says_what_they_can_do_beside_what_else_is_said() {
    let bench = bench();
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "spec": {"controllerName": "istio.io/mesh-controller"},
        "status": {"conditions": [{"type": "Accepted", "status": "True"}]},
    });
    bench.fake.put(CLASSES, "", "istio-waypoint", class);
    bench.kinds.send_replace(defined());
    let _writer = running(classes::write(bench.ground.clone()));
    let waypoint = (CLASSES, "", "istio-waypoint");
    let class = bench.fake.until(waypoint, told).await;
    assert_eq!(class["status"]["conditions"][0]["type"], "Accepted");
    let remote = bench.fake.object(CLASSES, "", "istio-remote").unwrap();
    assert!(remote["status"]["supportedFeatures"].is_null());
    // Somebody takes it out.
    let mut without = class.clone();
    without["status"]["supportedFeatures"] = Value::Null;
    bench.fake.put(CLASSES, "", "istio-waypoint", without);
    bench.fake.until(waypoint, told).await;
    let _ = bench.fake.writes();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(bench.fake.writes().is_empty(), "it is said once");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_has_no_place_for_features_is_not_asked_again_and_again() {
    for (prunes, refuses) in [(true, false), (false, true)] {
        let bench = bench();
        if prunes {
            bench.fake.prune("supportedFeatures");
        }
        if refuses {
            bench.fake.refuse(|method, path| {
                (*method == http::Method::PATCH && path.ends_with("/status")).then_some(422)
            });
        }
        bench.kinds.send_replace(defined());
        let _writer = running(classes::write(bench.ground.clone()));
        let waypoint = (CLASSES, "", "istio-waypoint");
        let class = bench
            .fake
            .until(waypoint, of("istio.io/mesh-controller"))
            .await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let _ = bench.fake.writes();
        // Others write its status, as our own writer does.
        for minute in 0..30 {
            let mut class = class.clone();
            class["status"]["conditions"] = json!([{"type": "Accepted", "reason": minute}]);
            bench.fake.put(CLASSES, "", "istio-waypoint", class);
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        assert!(bench.fake.writes().is_empty(), "{prunes}");
        // The definition is brought up to date.
        bench.fake.prune("");
        bench.fake.refuse_nothing();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        bench.fake.put(CLASSES, "", "istio-waypoint", class);
        bench.fake.until(waypoint, told).await;
    }
}
