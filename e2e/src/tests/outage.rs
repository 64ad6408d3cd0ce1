//! The API server is away for a minute, and back. Loud: nobody else can do anything meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::{
    api::{coordination::v1::Lease, core::v1::Node},
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, api::ListParams};
use tokio::time::timeout;

use crate::{
    alone::Alone,
    mesh::Part,
    place::Place,
    pod::{Pod, is_ready},
    program::run,
    run::Test,
    wait::{eventually, until_within},
};

/// Run in the control plane's node, by nobody's hand: kubelet ends a static pod whose manifest is gone, and starts it when it is there.
/// The minute begins when nothing answers any more.
const AWAY: &str = "cd /etc/kubernetes && mv manifests/kube-apiserver.yaml . &&
    while curl -sk -m 5 -o /dev/null https://localhost:6443/livez; do sleep 0.5; done; sleep 60; mv kube-apiserver.yaml manifests/";

/// Asks every page once a second what it says: a line each of page, status and text.
const LOOK: &str = r#"while ! read -t 1 -r _; do for page in "$@"; do
    echo "$page $(curl -s -m 5 -w ' %{http_code}' "http://$page" | tr '\n' ' ')"; done; done"#;

const DENIAL: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed}
spec: {selector: {matchLabels: {app: late}}, action: DENY, rules: [{from: [{source: {principals: ['PHONE']}}]}]}
";

/// What is known goes on, each part says once what it lacks, and when it is back changes arrive with nothing restarted.
pub(super) async fn without_an_api_server_traffic_goes_on_and_changes_arrive_when_it_is_back(
    test: &Test,
) -> Result<()> {
    test.mesh().well().await?;
    let shop = test.ambient("shop").await?;
    shop.server("web").on(test.node(0)).start().await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    phone.reaches("http://web/").await?;
    let watcher = test.plain("watch").await?.client("watcher");
    let watcher = watcher.on(test.node(1)).start().await?;
    let pages = pages(test).await?;
    let restarts = counts(test).await?;

    let looks = [&["bash", "-c", LOOK, "look"], &refs(&pages)[..]].concat();
    let looks = Alone::start(&watcher, "look", &looks).await?;
    let load = Alone::load(&phone, "http://web/").await?;
    let held = Alone::holds(&phone, "web:9000").await?;
    let since = Timestamp::now();
    away(test).await?;
    the_cluster_is_whole(test).await?;

    changes_arrive(test, &shop, &phone).await?;
    test.mesh().well().await?;
    let tally = load.tally().await?;
    test.note(tally.to_string()).await;
    ensure!(tally.failures() == 0, "{tally}");
    held.end().await.context("the held connection")?;
    said_on_pages(&looks.end().await?, &pages)?;
    said_in_logs(test, since).await?;
    let now = counts(test).await?;
    ensure!(now == restarts, "restarted: {restarts:?}, then {now:?}");
    Ok(())
}

/// Takes the API server away; returns when it answers again.
async fn away(test: &Test) -> Result<()> {
    let nodes: Api<Node> = Api::all(test.cluster.client.clone());
    let selected = ListParams::default().labels("node-role.kubernetes.io/control-plane");
    let node = nodes.list(&selected).await?.items.into_iter().next();
    let name = node.context("no control plane")?.name_any();
    run(
        "docker".into(),
        &["exec", "--detach", &name, "sh", "-c", AWAY],
        "",
    )
    .await?
    .with(0)?;
    // One that takes its time is not away.
    let answers = || async {
        let asked = test.cluster.client.apiserver_version();
        matches!(timeout(Duration::from_secs(10), asked).await, Ok(Ok(_)))
    };
    eventually("the API server is away", || async {
        ensure!(!answers().await, "it answers");
        Ok(())
    })
    .await?;
    let began = Instant::now();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let back = async {
        while !answers().await {
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    timeout(KUBERNETES, back)
        .await
        .context("the API server is not back")?;
    test.note(format!("away for {} s", began.elapsed().as_secs()))
        .await;
    Ok(())
}

/// A new pod of a new account, and a policy against it.
async fn changes_arrive(test: &Test, shop: &Place, phone: &Pod) -> Result<()> {
    let began = Instant::now();
    let late = shop.server("late").on(test.node(0)).start().await?;
    late.enrolled().await?;
    phone.reaches("http://late/").await?;
    let identity = shop.identity("late");
    test.mesh()
        .reported(&late.node, test.began, "the new pod's identity", |record| {
            record.inbound() && record.field("dst.identity") == identity
        })
        .await?;
    let principal = shop.identity("phone").replace("spiffe://", "");
    let denial = DENIAL.replace("PHONE", &principal);
    // As a user does it: replicas of the control plane that were not ready come back to their Service when kubelet has said so.
    eventually("the policy is written", || async {
        let written = shop.apply(&denial).await;
        let said = written.as_ref().err().map(|error| format!("{error:#}"));
        if said.is_some_and(|said| !said.contains("failed calling webhook")) {
            return Ok(written);
        }
        written.map(Ok)
    })
    .await??;
    phone.is_refused("http://late/").await?;
    test.note(format!(
        "then a new pod and a policy were in force within {} s",
        began.elapsed().as_secs()
    ))
    .await;
    Ok(())
}

/// Where each pod of the mesh says whether it is ready.
async fn pages(test: &Test) -> Result<Vec<(Part, String)>> {
    let mut pages = Vec::new();
    for part in Part::ALL {
        let page = match part {
            Part::Istiod => "15014/ready",
            Part::Ztunnel => "15021/healthz/ready",
            Part::Agent => "8000/readyz",
        };
        for pod in test.mesh().staying(part).await? {
            let status = pod.status.unwrap_or_default();
            let address = status.pod_ip.context("a pod without an address")?;
            pages.push((part, format!("{address}:{page}")));
        }
    }
    Ok(pages)
}

fn refs(pages: &[(Part, String)]) -> Vec<&str> {
    pages.iter().map(|(_, page)| page.as_str()).collect()
}

/// ztunnel was ready all the while; the two that need the API server were not, and said why; all are in the end.
fn said_on_pages(looks: &str, pages: &[(Part, String)]) -> Result<()> {
    for (part, page) in pages {
        let said: Vec<&str> = looks
            .lines()
            .filter_map(|line| line.strip_prefix(&format!("{page} ")))
            .map(str::trim)
            // A look that found nobody in time says nothing about readiness.
            .filter(|said| !said.ends_with("000"))
            .collect();
        let last = said.last().context("it never answered")?;
        ensure!(last.ends_with("200"), "{page}: {last}");
        let not: Vec<&&str> = said.iter().filter(|said| !said.ends_with("200")).collect();
        let why = match part {
            Part::Istiod => "API server unreachable",
            Part::Agent => "kubernetes",
            Part::Ztunnel => {
                ensure!(not.is_empty(), "ztunnel at {page} was not ready: {not:?}");
                continue;
            }
        };
        ensure!(
            not.iter().any(|said| said.contains(why)),
            "{} at {page} does not say {why:?}: {not:?}",
            part.name()
        );
    }
    Ok(())
}

/// That the API server is away is said once each time it goes, not at every try; ztunnel has nothing to say.
async fn said_in_logs(test: &Test, since: Timestamp) -> Result<()> {
    for part in Part::ALL {
        let words = match part {
            Part::Istiod => "API server unreachable",
            Part::Agent => "the API server cannot be reached",
            Part::Ztunnel => "API server",
        };
        for pod in test.mesh().staying(part).await? {
            let name = pod.name_any();
            let log = test.mesh().log(&name, Some(since)).await?;
            let complaints: Vec<&str> = log
                .lines()
                .filter(|line| line.contains("\twarn\t") || line.contains("\terror\t"))
                // Not of connections: one of this test is refused.
                .filter(|line| !line.contains("\taccess\t"))
                .collect();
            let of_it = complaints.iter().filter(|line| line.contains(words));
            let of_it = of_it.count();
            let (least, most) = if part == Part::Ztunnel {
                (0, 0)
            } else {
                (1, TIMES)
            };
            ensure!(
                (least..=most).contains(&of_it) && complaints.len() <= FEW,
                "{name} says: {}",
                complaints.join("\n")
            );
            let count = complaints.len();
            test.note(format!(
                "{name} complained {count} times, {of_it} of them of the API server"
            ))
            .await;
        }
    }
    Ok(())
}

/// While it starts it may answer, and then be away once more.
const TIMES: usize = 3;
/// Five Leases are lost, each with a line, and one that has just started refuses this and that.
const FEW: usize = 15;

/// How often each container of the mesh was started again.
async fn counts(test: &Test) -> Result<Vec<(String, i32)>> {
    let mut counts = Vec::new();
    for part in Part::ALL {
        for pod in test.mesh().staying(part).await? {
            let statuses = pod.status.iter().flat_map(|it| &it.container_statuses);
            let count = statuses.flatten().map(|it| it.restart_count).sum();
            counts.push((pod.name_any(), count));
        }
    }
    counts.sort();
    Ok(counts)
}

/// Kubernetes' own parts that end when they lose the API server are back and at work: new pods need them.
async fn the_cluster_is_whole(test: &Test) -> Result<()> {
    let (back, began) = (Timestamp::now(), Instant::now());
    let leases: Api<Lease> = Api::namespaced(test.cluster.client.clone(), KUBE_SYSTEM);
    for name in ["kube-controller-manager", "kube-scheduler"] {
        let renewed = |lease: Option<&Lease>| {
            let spec = lease.and_then(|lease| lease.spec.as_ref());
            spec.and_then(|spec| spec.renew_time.as_ref())
                .is_some_and(|time| time.0 > back)
        };
        until_within(KUBERNETES, &leases, name, "at work again", renewed).await?;
    }
    eventually("all of kube-system is ready", || async {
        let pods = test.cluster.pods(KUBE_SYSTEM, "").await?;
        let waiting: Vec<String> = pods
            .iter()
            .filter(|pod| !is_ready(Some(pod)))
            .map(ResourceExt::name_any)
            .collect();
        ensure!(waiting.is_empty(), "not ready: {waiting:?}");
        Ok(())
    })
    .await?;
    let took = began.elapsed().as_secs();
    test.note(format!("Kubernetes was whole {took} s after it was back"))
        .await;
    Ok(())
}

const KUBE_SYSTEM: &str = "kube-system";
/// Parts that ended are started after pauses that grow, and wait for their own Leases.
const KUBERNETES: Duration = Duration::from_secs(180);
