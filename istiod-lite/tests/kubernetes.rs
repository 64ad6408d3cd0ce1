//! Against a real API server: whose tokens, which pods, how fast news travels.
//!
//!     AMBIT_TEST_KUBECONFIG=… cargo test -p istiod-lite --test kubernetes -- --ignored --nocapture
//!
//! The cluster must be one to throw away: no node need run, pods are objects whose status is
//! written here. `AMBIT_TEST_PODS` (5000) says how many pods the report is about.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // a test may; the report is its output

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use hbone::{CaClient, Identity, SignError, Signer as _};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rcgen::{CertificateParams, KeyPair};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use support::{ADDRESS, Proxy, channel};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tonic::transport::Channel;

const SYSTEM: &str = "istio-system";
/// Namespace of the report's pods.
const MANY: &str = "ambit-t-many";

/// The API server, and what is made in it.
struct Cluster {
    client: Client,
    kubeconfig: String,
}

impl Cluster {
    async fn open() -> Self {
        let kubeconfig = std::env::var("AMBIT_TEST_KUBECONFIG").expect("AMBIT_TEST_KUBECONFIG");
        let connection = istiod_lite::cluster::connect(Some(Path::new(&kubeconfig)));
        let client = connection.await.unwrap().client;
        let cluster = Self { client, kubeconfig };
        cluster
            .ensure::<Namespace>(None, json!({"metadata": {"name": SYSTEM}}))
            .await;
        cluster
    }

    /// Makes it, unless it is there.
    async fn ensure<K>(&self, namespace: Option<&str>, object: Value) -> K
    where
        K: kube::Resource<DynamicType = ()>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug
            + serde::Serialize,
        Api<K>: In<K>,
    {
        let api = <Api<K> as In<K>>::within(self.client.clone(), namespace);
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let object: K = serde_json::from_value(object).unwrap();
        match api.create(&PostParams::default(), &object).await {
            Ok(made) => made,
            Err(kube::Error::Api(status)) if status.code == 409 => api.get(&name).await.unwrap(),
            Err(error) => panic!("{name}: {error}"),
        }
    }

    /// A running pod; returns its uid.
    async fn pod(
        &self,
        namespace: &str,
        name: &str,
        account: &str,
        node: &str,
        ip: &str,
    ) -> String {
        let pod = json!({
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": account},
                "annotations": {"ambient.istio.io/redirection": "enabled"}},
            "spec": {"serviceAccountName": account, "nodeName": node,
                "automountServiceAccountToken": false,
                "containers": [{"name": "app", "image": "none",
                    "env": [{"name": "SOME", "value": "thing of the usual length"}],
                    "ports": [{"name": "http", "containerPort": 8080}]}]}});
        let made: Pod = self.ensure(Some(namespace), pod).await;
        self.status(namespace, name, ip, true).await;
        made.metadata.uid.unwrap()
    }

    async fn status(&self, namespace: &str, name: &str, ip: &str, ready: bool) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let ready = if ready { "True" } else { "False" };
        let patch = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": ready}]}});
        pods.patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    async fn account(&self, namespace: &str, name: &str) {
        let account = json!({"metadata": {"name": name, "namespace": namespace}});
        self.ensure::<ServiceAccount>(Some(namespace), account)
            .await;
    }

    /// A token as the kubelet gets it.
    async fn token(
        &self,
        namespace: &str,
        account: &str,
        pod: Option<(&str, &str)>,
        audience: &str,
    ) -> String {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.into()]),
                expiration_seconds: Some(3600),
                bound_object_ref: pod.map(|(name, uid)| BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(name.into()),
                    uid: Some(uid.into()),
                }),
            }),
            ..TokenRequest::default()
        };
        let plain = PostParams::default();
        let made = accounts.create_token_request(account, &plain, &request);
        made.await.unwrap().status.unwrap().token.unwrap()
    }

    async fn roots(&self) -> Vec<u8> {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM);
        loop {
            if let Ok(map) = maps.get("istio-ca-root-cert").await
                && let Some(roots) = map.data.and_then(|mut data| data.remove("root-cert.pem"))
            {
                return roots.into_bytes();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Kinds with and without namespaces look alike to [`Cluster::ensure`].
trait In<K> {
    fn within(client: Client, namespace: Option<&str>) -> Api<K>;
}

macro_rules! namespaced {
    ($($kind:ty),*) => {$(
        impl In<$kind> for Api<$kind> {
            fn within(client: Client, namespace: Option<&str>) -> Api<$kind> {
                Api::namespaced(client, namespace.unwrap())
            }
        }
    )*};
}
namespaced!(Pod, ServiceAccount);

macro_rules! cluster_wide {
    ($($kind:ty),*) => {$(
        impl In<$kind> for Api<$kind> {
            fn within(client: Client, _: Option<&str>) -> Api<$kind> {
                Api::all(client)
            }
        }
    )*};
}
cluster_wide!(Namespace, Node);

/// The program under test.
struct Program {
    child: Child,
    grpc: SocketAddr,
}

impl Program {
    /// Runs once it says that it serves.
    async fn start(cluster: &Cluster) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_istiod-lite"))
            .args(["run", "--kubeconfig", &cluster.kubeconfig])
            .args([
                "--listen-grpc",
                "127.0.0.1:0",
                "--listen-monitoring",
                "127.0.0.1:0",
            ])
            .args(["--listen-webhook", "127.0.0.1:0", "--log-format", "plain"])
            .env_remove("RUST_LOG")
            .env("POD_NAME", "ambit-t-kubernetes")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let grpc = loop {
            let line = lines.next_line().await.unwrap().expect("it ended");
            println!("  | {line}");
            let address = line
                .split("grpc=")
                .nth(1)
                .filter(|_| line.contains("serving"));
            if let Some(address) = address {
                break address.split_whitespace().next().unwrap().parse().unwrap();
            }
        };
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                if !line.contains("\tinfo\t") {
                    println!("  | {line}");
                }
            }
        });
        Self { child, grpc }
    }

    /// `VmRSS` or `VmHWM` in MiB.
    fn memory(&self, which: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap()));
        let status = status.unwrap();
        let line = status.lines().find(|line| line.starts_with(which)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<f64>()
            .unwrap()
            / 1024.0
    }

    async fn channel(&self, roots: &[u8]) -> Channel {
        channel(self.grpc, roots, "istiod.istio-system.svc")
            .await
            .unwrap()
    }
}

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
    let uid = support::uid("ambit-t-alpha", &name);
    proxy.until(|proxy| proxy.has(ADDRESS, &uid)).await;
    let garbage = Proxy::open(program.channel(&roots).await, Some("Bearer a.b.c")).await;
    assert_eq!(garbage.err().unwrap().code(), tonic::Code::Unauthenticated);

    // And what is deleted is gone.
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "ambit-t-alpha");
    let now = DeleteParams::default().grace_period(0);
    pods.delete(&name, &now).await.unwrap();
    proxy.until(|proxy| !proxy.has(ADDRESS, &uid)).await;
}

/// What a proxy saw, when.
struct Arrival {
    name: String,
    version: String,
    at: Instant,
}

/// A proxy that says of every resource when it came.
async fn watcher(program: &Program, roots: &[u8], token: &str) -> mpsc::Receiver<Arrival> {
    let (sender, receiver) = mpsc::channel(100_000);
    let bearer = format!("Bearer {token}");
    let mut proxy = Proxy::open(program.channel(roots).await, Some(&bearer))
        .await
        .unwrap();
    proxy.subscribe_to_all().await;
    proxy.until(Proxy::is_ready).await;
    tokio::spawn(async move {
        while let Ok(Some(response)) = proxy.receive().await {
            let at = Instant::now();
            proxy.ack(&response).await;
            for resource in response.resources {
                let (name, version) = (resource.name, resource.version);
                if sender.send(Arrival { name, version, at }).await.is_err() {
                    return;
                }
            }
        }
    });
    receiver
}

fn percentile(sorted: &[Duration], share: f64) -> Duration {
    sorted[((sorted.len() - 1) as f64 * share).round() as usize]
}

fn say(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share| percentile(&times, share).as_secs_f64() * 1000.0;
    let (p50, p90, p99, most) = (at(0.5), at(0.9), at(0.99), at(1.0));
    let count = times.len();
    println!(
        "{what}: p50 {p50:.0} ms, p90 {p90:.0} ms, p99 {p99:.0} ms, longest {most:.0} ms ({count} arrivals)"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a report; needs an API server: AMBIT_TEST_KUBECONFIG"]
async fn report_of_many_pods() {
    const PROXIES: usize = 4;
    let many = std::env::var("AMBIT_TEST_PODS").map_or(5000, |text| text.parse().unwrap());
    let cluster = Cluster::open().await;
    let uids = mesh(&cluster, PROXIES).await;
    cluster
        .ensure::<Namespace>(None, json!({"metadata": {"name": MANY}}))
        .await;
    cluster.account(MANY, "web").await;
    let program = Program::start(&cluster).await;
    println!("{many} pods; before: {:.1} MiB", program.memory("VmRSS"));
    let ip = |number: usize| {
        format!(
            "10.{}.{}.{}",
            100 + number / 62_500,
            number / 250 % 250,
            number % 250 + 1
        )
    };
    let begun = Instant::now();
    let make = futures_util::stream::iter(0..many).for_each_concurrent(32, async |number| {
        let (name, node) = (
            format!("p-{number}"),
            format!("node-{}", number % PROXIES + 1),
        );
        cluster.pod(MANY, &name, "web", &node, &ip(number)).await;
    });
    make.await;
    println!(
        "made in {:.0} s; while they were made: {:.1} MiB",
        begun.elapsed().as_secs_f64(),
        program.memory("VmRSS")
    );
    drop(program);

    let begun = Instant::now();
    let program = Program::start(&cluster).await;
    println!(
        "read at the start in {:.2} s: {:.1} MiB, at most {:.1} MiB",
        begun.elapsed().as_secs_f64(),
        program.memory("VmRSS"),
        program.memory("VmHWM")
    );
    let roots = cluster.roots().await;
    let mut proxies = Vec::new();
    for (number, uid) in uids.iter().enumerate() {
        let pod = format!("ztunnel-node{}", number + 1);
        let token = cluster
            .token(SYSTEM, "ztunnel", Some((&pod, uid)), "istio-ca")
            .await;
        proxies.push(watcher(&program, &roots, &token).await);
    }
    println!("with {PROXIES} proxies: {:.1} MiB", program.memory("VmRSS"));

    // One change after another, at a pace at which nothing waits for others.
    let mut times = Vec::new();
    for change in 0..200 {
        let number = change * 17 % many;
        let uid = support::uid(MANY, &format!("p-{number}"));
        let begun = Instant::now();
        cluster
            .status(MANY, &format!("p-{number}"), &ip(number), false)
            .await;
        for proxy in &mut proxies {
            times.push(arrived(proxy, &uid).await.duration_since(begun));
        }
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
    say("a change alone", times);

    // A steady hundred changes a second: a rollout.
    let mut sent = HashMap::new();
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    for change in 0..1000 {
        pace.tick().await;
        let number = (change * 17 + 5) % many;
        sent.insert(support::uid(MANY, &format!("p-{number}")), Instant::now());
        let ready = change % 2 == 0;
        let (client, kubeconfig) = (cluster.client.clone(), String::new());
        let address = ip(number);
        tokio::spawn(async move {
            let cluster = Cluster { client, kubeconfig };
            cluster
                .status(MANY, &format!("p-{number}"), &address, !ready)
                .await;
        });
    }
    let mut times = Vec::new();
    for proxy in &mut proxies {
        let quiet = Duration::from_secs(3);
        while let Ok(Some(arrival)) = tokio::time::timeout(quiet, proxy.recv()).await {
            if let Some(begun) = sent.get(&arrival.name) {
                times.push(arrival.at.saturating_duration_since(*begun));
            }
        }
    }
    say("a hundred changes a second", times);
    println!(
        "after: {:.1} MiB, at most {:.1} MiB",
        program.memory("VmRSS"),
        program.memory("VmHWM")
    );
}

/// When the resource of that name came.
async fn arrived(proxy: &mut mpsc::Receiver<Arrival>, name: &str) -> Instant {
    loop {
        let next = tokio::time::timeout(support::PATIENCE, proxy.recv()).await;
        let arrival = next.expect("it did not arrive").unwrap();
        if arrival.name == name && !arrival.version.is_empty() {
            return arrival.at;
        }
    }
}
