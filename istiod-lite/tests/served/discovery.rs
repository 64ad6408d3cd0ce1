//! From a file in the directory to a proxy's memory, over real TLS.

mod load;
mod part;

use api::workload::{Address, address};
use prost::Message as _;

use crate::support::{ADDRESS, AUTHORIZATION, Proxy, Server, pod, uid};

fn workload(proxy: &Proxy, name: &str) -> api::workload::Workload {
    let held = &proxy.held[ADDRESS][name];
    match Address::decode(&*held.value).unwrap().r#type {
        Some(address::Type::Workload(workload)) => workload,
        other => panic!("{name} is {other:?}"),
    }
}

#[tokio::test]
async fn each_type_is_answered_and_what_was_taken_is_shown() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe_to_all().await;
    let addresses = proxy.next().await;
    let policies = proxy.next().await;
    assert_eq!(
        (&*addresses.type_url, &*policies.type_url),
        (ADDRESS, AUTHORIZATION)
    );
    assert!(
        policies.resources.is_empty(),
        "no policy, and still an answer"
    );
    assert!(proxy.has(ADDRESS, &uid("alpha", "client")));
    assert_ne!(addresses.nonce, policies.nonce);

    server
        .until("/debug/syncz", |text| text.matches("SYNCED").count() == 2)
        .await;
    let shown = server.json("/debug/syncz").await;
    assert_eq!(shown[0]["proxy"], "ztunnel-node1.istio-system");
    assert_eq!(
        shown[0]["identity"],
        "spiffe://cluster.local/ns/istio-system/sa/ztunnel"
    );
    assert_eq!(shown[0]["types"][ADDRESS]["nonce_acked"], addresses.nonce);
    let (_, metrics) = server.get("/metrics").await;
    assert!(
        metrics.contains("pilot_xds{version=\"unknown\"} 1"),
        "{metrics}"
    );
    drop(proxy);
    server.until("/debug/syncz", |text| text == "[]").await;
}

#[tokio::test]
async fn edits_of_files_reach_the_proxy_one_by_one() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe_to_all().await;
    // Or an answer that is still to come would be taken for what an edit does.
    proxy.until(Proxy::is_ready).await;
    let name = uid("alpha", "web");

    server.write(
        "web.yaml",
        &pod("alpha", "web", "web", "node-1", "10.10.0.1"),
    );
    proxy.until(|proxy| proxy.has(ADDRESS, &name)).await;
    assert_eq!(workload(&proxy, &name).addresses, [vec![10, 10, 0, 1]]);

    server.write(
        "web.yaml",
        &pod("alpha", "web", "web", "node-1", "10.10.0.2"),
    );
    let changed = proxy.next().await;
    assert_eq!(changed.resources.len(), 1, "only what changed");
    assert_eq!(workload(&proxy, &name).addresses, [vec![10, 10, 0, 2]]);

    server.remove("web.yaml");
    let gone = proxy.next().await;
    assert_eq!(
        (gone.resources.len(), gone.removed_resources),
        (0, vec![name])
    );
}

#[tokio::test]
async fn a_broken_file_leaves_what_was_good_and_says_where_it_is_broken() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe_to_all().await;
    proxy.until(Proxy::is_ready).await;
    let name = uid("alpha", "web");
    let good = pod("alpha", "web", "web", "node-1", "10.10.0.1");
    server.write("web.yaml", &good);
    proxy.until(|proxy| proxy.has(ADDRESS, &name)).await;

    server.write(
        "web.yaml",
        &good.replace("podIP: 10.10.0.1", "podIP: { no: address }"),
    );
    let faults = server.until("/debug/faultz", |text| text != "[]").await;
    assert!(
        faults.contains("web.yaml:") && faults.contains("web"),
        "{faults}"
    );
    // A proof that nothing was taken away: a later change is the next thing the proxy hears.
    server.write(
        "other.yaml",
        &pod("alpha", "other", "web", "node-1", "10.10.0.3"),
    );
    let next = proxy.next().await;
    assert_eq!(next.removed_resources, Vec::<String>::new());
    assert_eq!(next.resources[0].name, uid("alpha", "other"));
    assert!(proxy.has(ADDRESS, &name));

    server.write("web.yaml", &good.replace("10.10.0.1", "10.10.0.9"));
    proxy.next().await;
    assert_eq!(workload(&proxy, &name).addresses, [vec![10, 10, 0, 9]]);
    server.until("/debug/faultz", |text| text == "[]").await;
}

#[tokio::test]
async fn a_policy_comes_before_the_workload_that_names_it_and_goes_after() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe_to_all().await;
    proxy.next().await;
    proxy.next().await;
    let name = uid("alpha", "web");

    server.write(
        "web.yaml",
        &(pod("alpha", "web", "web", "node-1", "10.10.0.1") + crate::support::POLICY),
    );
    let (first, second) = (proxy.next().await, proxy.next().await);
    assert_eq!(
        (&*first.type_url, &*second.type_url),
        (AUTHORIZATION, ADDRESS)
    );
    assert_eq!(
        workload(&proxy, &name).authorization_policies,
        ["alpha/allow"]
    );
    assert!(proxy.has(AUTHORIZATION, "alpha/allow"));

    server.write(
        "web.yaml",
        &pod("alpha", "web", "web", "node-1", "10.10.0.1"),
    );
    let (first, second) = (proxy.next().await, proxy.next().await);
    assert_eq!(
        (&*first.type_url, &*second.type_url),
        (ADDRESS, AUTHORIZATION)
    );
    assert_eq!(second.removed_resources, ["alpha/allow"]);
    assert!(workload(&proxy, &name).authorization_policies.is_empty());
}

#[tokio::test]
async fn a_refusal_is_counted_and_shown_and_nothing_is_sent_again() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe(ADDRESS).await;
    let response = proxy.receive().await.unwrap().unwrap();
    proxy.nack(&response, "alpha/client: no such thing").await;
    let shown = server
        .until("/debug/syncz", |text| text.contains("REJECTED"))
        .await;
    assert!(shown.contains("alpha/client: no such thing"), "{shown}");
    server
        .until("/metrics", |text| {
            text.contains("pilot_total_xds_rejects{type=\"wds\"} 1")
        })
        .await;

    server.write(
        "web.yaml",
        &pod("alpha", "web", "web", "node-1", "10.10.0.1"),
    );
    assert_eq!(proxy.next().await.resources.len(), 1);
}

#[tokio::test]
async fn an_answer_to_an_old_response_is_counted_and_harmless() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe(ADDRESS).await;
    let first = proxy.receive().await.unwrap().unwrap();
    server.write(
        "web.yaml",
        &pod("alpha", "web", "web", "node-1", "10.10.0.1"),
    );
    let second = proxy.receive().await.unwrap().unwrap();
    proxy.ack(&first).await;
    server
        .until("/metrics", |text| {
            text.contains("pilot_xds_expired_nonce{type=\"wds\"} 1")
        })
        .await;
    proxy.ack(&second).await;
    server
        .until("/debug/syncz", |text| text.contains("SYNCED"))
        .await;
}

const SERVICE: &str = "---
apiVersion: v1
kind: Service
metadata: { name: web, namespace: alpha }
spec:
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1]
  selector: { app: web }
  ports: [{ name: http, port: 80, targetPort: 8080 }]
";

#[tokio::test]
async fn the_monitoring_port_tells_readiness_version_and_counts() {
    let server = Server::start().await;
    assert_eq!(server.get("/ready").await, (200, "ready\n".into()));
    assert!(server.json("/version").await["version"].is_string());
    let (_, metrics) = server.get("/metrics").await;
    for name in [
        "pilot_services ",
        "citadel_server_root_cert_expiry_timestamp ",
        "istio_build{component=\"pilot\"",
    ] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    let catalog = server.json("/debug/catalogz").await;
    assert!(catalog[ADDRESS][uid("alpha", "client")].is_string());
}

#[tokio::test]
async fn the_debug_pages_can_be_switched_off() {
    let server = Server::with(&["--debug", "false"]).await;
    assert_eq!(server.get("/debug/syncz").await.0, 404);
    assert_eq!(server.get("/ready").await.0, 200);
}
