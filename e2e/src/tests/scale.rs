//! Thousands of pods that are objects only: how soon a change is at every ztunnel, and what the control plane weighs then.
//!
//! A report, not a promise: what is asserted is that every ztunnel knows every pod.
//!
//! 1. Services, then pods that no scheduler looks at; their status says that they run and have an address
//! 2. every ztunnel logs when it has taken in what it was sent
//! 3. one pod after another is changed; from just before the request to the latest ztunnel's line is its time

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{AsyncBufReadExt, StreamExt, TryStreamExt, stream};
use http::Method;
use k8s_openapi::{api::core::v1::Pod as PodObject, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    inside,
    mesh::{Part, SYSTEM},
    place::Place,
    report,
    run::Test,
    wait::{PATIENCE, eventually},
};

const PODS: usize = 5_000;
const SERVICES: usize = 100;
const CHANGES: usize = 100;
/// Requests under way at a time.
const AT_A_TIME: usize = 32;

/// Nothing of it ever runs.
pub(super) async fn with_5000_pods_a_change_is_soon_at_every_ztunnel(test: &Test) -> Result<()> {
    let crowd = test.ambient("crowd").await?;
    let before = memory(test).await?;
    let arrivals = Arrivals::watch(test).await?;
    let result = measure(test, &crowd, arrivals, before).await;
    let began = Instant::now();
    let pods: Api<PodObject> = Api::namespaced(test.cluster.client.clone(), &crowd.name);
    // The API server takes one after the other of each request's.
    stream::iter(0..SERVICES)
        .map(async |number| {
            let those = ListParams::default().labels(&format!("app=s{number}"));
            let now = DeleteParams::default().grace_period(0);
            pods.delete_collection(&now, &those).await
        })
        .buffer_unordered(AT_A_TIME)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    test.note(format!("removed in {:.1} s", began.elapsed().as_secs_f64()))
        .await;
    result
}

async fn measure(test: &Test, crowd: &Place, mut arrivals: Arrivals, before: String) -> Result<()> {
    let began = Instant::now();
    populate(test, crowd).await?;
    let made = began.elapsed();
    arrivals.quiet().await;
    test.note(format!(
        "{PODS} pods and {SERVICES} services made in {:.1} s, all known {:.1} s later at most",
        made.as_secs_f64(),
        (began.elapsed() - made).as_secs_f64()
    ))
    .await;
    everybody_knows(test, crowd).await?;

    let pods: Api<PodObject> = Api::namespaced(test.cluster.client.clone(), &crowd.name);
    let (mut times, mut writes) = (Vec::new(), Vec::new());
    for change in 0..CHANGES {
        let name = format!("w{}", change * (PODS / CHANGES));
        let patch = json!({ "metadata": { "labels": { "version": format!("v{change}") } } });
        let (since, began) = (Timestamp::now(), Instant::now());
        pods.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        writes.push(began.elapsed());
        times.push(arrivals.everywhere(since).await?);
    }
    arrivals.end(test).await?;
    test.note(format!(
        "a change at every ztunnel: {}",
        quantiles(&mut times)
    ))
    .await;
    test.note(format!(
        "  of that, the API server's answer: {}",
        quantiles(&mut writes)
    ))
    .await;
    test.note(format!("memory before: {before}")).await;
    test.note(format!("memory with {PODS} pods: {}", memory(test).await?))
        .await;
    Ok(())
}

async fn populate(test: &Test, crowd: &Place) -> Result<()> {
    eventually("the namespace has its account", || async {
        test.cluster
            .object(&crowd.name, "v1", "ServiceAccount", "default")
            .await
    })
    .await?;
    stream::iter(0..SERVICES)
        .map(|number| {
            let name = format!("s{number}");
            let service = json!({
                "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
                "spec": { "selector": { "app": name }, "ports": [{ "port": 80, "targetPort": 8080 }] },
            });
            test.cluster.apply_object(&crowd.name, service)
        })
        .buffer_unordered(AT_A_TIME)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    let pods: Api<PodObject> = Api::namespaced(test.cluster.client.clone(), &crowd.name);
    stream::iter(0..PODS)
        .map(|number| one(&pods, number))
        .buffer_unordered(AT_A_TIME)
        .try_for_each(|()| async { Ok(()) })
        .await
}

/// A pod that runs as far as anybody can read.
async fn one(pods: &Api<PodObject>, number: usize) -> Result<()> {
    let name = format!("w{number}");
    let pod: PodObject = serde_json::from_value(json!({
        "metadata": {
            "name": name, "labels": { "app": format!("s{}", number % SERVICES) },
            "annotations": { (api::k8s::labels::REDIRECTION): "enabled" },
        },
        "spec": {
            "schedulerName": "nobody", "automountServiceAccountToken": false,
            "containers": [{ "name": "app", "image": "none" }],
        },
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    // Of a block that is nobody's in a cluster.
    let ip = format!("100.64.{}.{}", number / 250, 1 + number % 250);
    let status = json!({ "status": {
        "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
        "conditions": [{ "type": "Ready", "status": "True" }],
    } });
    pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(())
}

/// Every ztunnel has every pod.
async fn everybody_knows(test: &Test, crowd: &Place) -> Result<()> {
    for pod in test.mesh().staying(Part::Ztunnel).await? {
        let pod = pod.name_any();
        let client = &test.cluster.client;
        eventually(&format!("{pod} knows every pod"), || async {
            let dump = inside::ztunnel(client, &pod, Method::GET, "/config_dump").await?;
            let dump: Value = serde_json::from_str(&dump)?;
            let workloads = dump["workloads"].as_array().context("no workloads")?;
            let known = workloads
                .iter()
                .filter(|it| it["namespace"] == *crowd.name)
                .count();
            ensure!(known == PODS, "it knows {known} of {PODS} pods");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// When each ztunnel took in what it was sent.
struct Arrivals {
    lines: mpsc::Receiver<(usize, Timestamp)>,
    ztunnels: Vec<String>,
    _followers: JoinSet<()>,
}

impl Arrivals {
    async fn watch(test: &Test) -> Result<Self> {
        let pods: Api<PodObject> = Api::namespaced(test.cluster.client.clone(), SYSTEM);
        let (tell, lines) = mpsc::channel(1024);
        let mut followers = JoinSet::new();
        let mut ztunnels = Vec::new();
        for (number, pod) in test.mesh().staying(Part::Ztunnel).await?.iter().enumerate() {
            let name = pod.name_any();
            logging(test, &name, "level=mesh::stream:debug").await?;
            let follow = LogParams {
                follow: true,
                since_time: Some(Timestamp::now()),
                ..LogParams::default()
            };
            let mut log = pods.log_stream(&name, &follow).await?.lines();
            let tell = tell.clone();
            followers.spawn(async move {
                while let Ok(Some(line)) = log.try_next().await {
                    if let Some(when) = taken(&line)
                        && tell.send((number, when)).await.is_err()
                    {
                        return;
                    }
                }
            });
            ztunnels.push(name);
        }
        Ok(Self {
            lines,
            ztunnels,
            _followers: followers,
        })
    }

    /// Waits until nothing came for three seconds.
    async fn quiet(&mut self) {
        while let Ok(Some(_)) = timeout(Duration::from_secs(3), self.lines.recv()).await {}
    }

    /// How long after `since` the last of all ztunnels took in something.
    async fn everywhere(&mut self, since: Timestamp) -> Result<Duration> {
        let mut first: BTreeMap<usize, Timestamp> = BTreeMap::new();
        let all = async {
            while first.len() < self.ztunnels.len() {
                let (ztunnel, when) = self.lines.recv().await.context("a log ended")?;
                if when >= since {
                    first.entry(ztunnel).or_insert(when);
                }
            }
            Ok::<_, anyhow::Error>(())
        };
        timeout(PATIENCE, all)
            .await
            .with_context(|| format!("a change did not come within {} s", PATIENCE.as_secs()))??;
        let latest = first.values().max().copied().unwrap_or(since);
        // The next change must not be taken for an echo of this one.
        sleep(Duration::from_millis(50)).await;
        Ok(latest.duration_since(since).try_into()?)
    }

    async fn end(self, test: &Test) -> Result<()> {
        for name in &self.ztunnels {
            logging(test, name, "reset=").await?;
        }
        Ok(())
    }
}

async fn logging(test: &Test, ztunnel: &str, query: &str) -> Result<()> {
    let path = format!("/logging?{query}");
    inside::ztunnel(&test.cluster.client, ztunnel, Method::POST, &path).await?;
    Ok(())
}

/// When, of a line that says that addresses were taken in.
fn taken(line: &str) -> Option<Timestamp> {
    let is = line.contains("xds: applied") && line.contains("istio.workload.Address");
    is.then(|| line.split_whitespace().next()?.parse().ok())
        .flatten()
}

/// What each pod of istiod and ztunnel weighs, in one line.
async fn memory(test: &Test) -> Result<String> {
    let weights = report::memory(&test.cluster).await?;
    let parts = weights.iter().filter(|it| !it.pod.starts_with("istio-cni"));
    let parts: Vec<String> = parts
        .map(|it| format!("{} {:.0} MiB", it.pod, it.mebibytes()))
        .collect();
    Ok(parts.join(", "))
}

fn quantiles(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1].as_millis();
    format!(
        "p50 {} ms, p90 {} ms, p99 {} ms, slowest {} ms of {}",
        at(50),
        at(90),
        at(99),
        at(100),
        times.len()
    )
}
