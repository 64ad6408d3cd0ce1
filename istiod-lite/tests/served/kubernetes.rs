//! Against a real API server: whose tokens, which pods, how fast news travels.
//!
//!     AMBIT_TEST_KUBECONFIG=… cargo test -p istiod-lite --test served kubernetes -- --ignored --nocapture
//!
//! The cluster must be one to throw away: no node need run, pods are objects whose status is
//! written here. `AMBIT_TEST_PODS` (5000) says how many pods the report is about.

#![allow(clippy::print_stdout)] // the report is its output

mod cluster;
mod program;
mod report;

use std::sync::Arc;
use std::time::Duration;

use hbone::{CaClient, Identity, SignError, Signer as _};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::Api;
use kube::api::DeleteParams;
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tonic::transport::Channel;

use cluster::{Cluster, SYSTEM};
use program::Program;

use crate::support::{ADDRESS, Proxy};

fn csr() -> String {
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default()
        .serialize_request(&key)
        .unwrap();
    request.pem().unwrap()
}

async fn certificate(channel: Channel, token: &str, account: &str) -> Result<(), SignError> {
    let token = token.to_owned();
    let source = Arc::new(move || Ok(token.clone()));
    let ca = CaClient::new(channel, "Kubernetes", source, Duration::from_secs(3600)).unwrap();
    let identity = Identity::new("cluster.local", "ambit-t-alpha", account).unwrap();
    ca.sign(&identity, csr()).await.map(|_| ())
}

async fn mesh(cluster: &Cluster, nodes: usize) -> Vec<String> {
    cluster
        .ensure::<Namespace>(None, json!({"metadata": {"name": "ambit-t-alpha"}}))
        .await;
    cluster.account(SYSTEM, "ztunnel").await;
    cluster.account("ambit-t-alpha", "web").await;
    cluster.account("ambit-t-alpha", "other").await;
    let mut uids = Vec::new();
    for number in 1..=nodes {
        let (node, pod) = (format!("node-{number}"), format!("ztunnel-node{number}"));
        cluster
            .ensure::<Node>(None, json!({"metadata": {"name": node}}))
            .await;
        let ip = format!("10.20.0.{number}");
        uids.push(cluster.pod(SYSTEM, &pod, "ztunnel", &node, &ip).await);
    }
    uids
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs an API server: AMBIT_TEST_KUBECONFIG"]
async fn the_api_server_says_who_calls_and_what_its_node_runs() {
    let cluster = Cluster::open().await;
    let uids = mesh(&cluster, 2).await;
    let program = Program::start(&cluster).await;
    let roots = cluster.roots().await;
    let bound = |number: usize| (format!("ztunnel-node{number}"), uids[number - 1].clone());
    let token = async |number: usize, audience: &str| {
        let (pod, uid) = bound(number);
        cluster
            .token(SYSTEM, "ztunnel", Some((&pod, &uid)), audience)
            .await
    };
    let (one, two) = (token(1, "istio-ca").await, token(2, "istio-ca").await);

    // A pod's identity goes to the proxy of its own node, at once.
    let name = format!("web-{}", std::process::id());
    cluster
        .pod("ambit-t-alpha", &name, "web", "node-1", "10.10.0.1")
        .await;
    let signed = certificate(program.channel(&roots).await, &one, "web").await;
    assert!(signed.is_ok(), "{signed:?}");
    let refused = [
        ("another node's", two, "web"),
        ("an account that runs nowhere", one.clone(), "other"),
        (
            "a token for the API server",
            token(1, "https://kubernetes.default.svc").await,
            "web",
        ),
        (
            "not bound to a pod",
            cluster.token(SYSTEM, "ztunnel", None, "istio-ca").await,
            "web",
        ),
        (
            "a workload's own",
            cluster
                .token("ambit-t-alpha", "other", None, "istio-ca")
                .await,
            "web",
        ),
        ("garbage", "a.b.c".into(), "web"),
    ];
    for (what, token, account) in refused {
        let answer = certificate(program.channel(&roots).await, &token, account).await;
        assert!(answer.is_err(), "{what}");
    }

    // The stream takes the same token, and no other.
    let bearer = format!("Bearer {one}");
    let mut proxy = Proxy::open(program.channel(&roots).await, Some(&bearer))
        .await
        .unwrap();
    proxy.subscribe_to_all().await;
    let uid = crate::support::uid("ambit-t-alpha", &name);
    proxy.until(|proxy| proxy.has(ADDRESS, &uid)).await;
    let garbage = Proxy::open(program.channel(&roots).await, Some("Bearer a.b.c")).await;
    assert_eq!(garbage.err().unwrap().code(), tonic::Code::Unauthenticated);

    // And what is deleted is gone.
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "ambit-t-alpha");
    let now = DeleteParams::default().grace_period(0);
    pods.delete(&name, &now).await.unwrap();
    proxy.until(|proxy| !proxy.has(ADDRESS, &uid)).await;
}
