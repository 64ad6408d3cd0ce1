//! Statuses as the book has them.

use super::*;

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
