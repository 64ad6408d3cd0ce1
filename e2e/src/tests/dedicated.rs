//! Pods that bring their own proxy: the control plane puts it into them, and the agent and the proxy of their node have nothing to
//! do with them.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod as PodObject};
use kube::{
    Api,
    api::{LogParams, PostParams},
};
use lab::AccessRecord;
use serde_json::{Value, json};

use super::policy::STRICT;
use crate::{
    mesh::Part,
    place::{DATAPLANE_MODE, Place},
    pod::Pod,
    program::ambit,
    run::Test,
    wait::{PATIENCE, eventually, until_within},
};

/// A namespace whose pods bring their own proxy.
async fn dedicated(test: &Test, name: &str) -> Result<Place> {
    let own = test.plain(name).await?;
    own.label(DATAPLANE_MODE, Some("dedicated")).await?;
    injects(test, &own, true).await?;
    Ok(own)
}

/// Waits until API servers have heard of a namespace's label: pods that are only tried out are given a proxy, or none.
async fn injects(test: &Test, place: &Place, wanted: bool) -> Result<()> {
    let pods: Api<PodObject> = Api::namespaced(test.cluster.client.clone(), &place.name);
    let tried = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "tried" },
        "spec": { "containers": [{ "name": "app", "image": "none" }] },
    });
    let pod: PodObject = serde_json::from_value(pod)?;
    eventually(
        &format!("pods of {} are given a proxy: {wanted}", place.name),
        || async {
            let made = pods.create(&tried, &pod).await?;
            ensure!(is_injected(&made) == wanted, "it is not so yet");
            Ok(())
        },
    )
    .await
}

fn is_injected(pod: &PodObject) -> bool {
    let init = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    let names: Vec<&str> = init.map(|it| it.name.as_str()).collect();
    names.starts_with(&["istio-init", "istio-proxy"])
}

/// Waits until the proxy in a pod has reported a connection like this one.
async fn reported(
    pod: &Pod,
    what: &str,
    like: impl Fn(&AccessRecord) -> bool,
) -> Result<AccessRecord> {
    let of_the_proxy = LogParams {
        container: Some("istio-proxy".to_owned()),
        ..LogParams::default()
    };
    eventually(
        &format!("the proxy of {} reports {what}", pod.name),
        || async {
            let log = pod.api().logs(&pod.name, &of_the_proxy).await?;
            let records: Vec<AccessRecord> = log.lines().filter_map(AccessRecord::parse).collect();
            let count = records.len();
            let found = records.into_iter().find(|record| like(record));
            found.with_context(|| format!("{count} other connections"))
        },
    )
    .await
}

fn rule(app: &str, action: &str, identity: &str) -> String {
    let principal = identity.trim_start_matches("spiffe://");
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: rule}}\nspec:\n  \
         selector: {{matchLabels: {{app: {app}}}}}\n  action: {action}\n  rules: [{{from: [{{source: {{principals: [{principal}]}}}}]}}]\n"
    )
}

async fn restarts(pod: &Pod) -> Result<i32> {
    let status = pod.object().await?.status.unwrap_or_default();
    let all = [status.container_statuses, status.init_container_statuses];
    let all = all.iter().flat_map(|them| them.iter().flatten());
    Ok(all.map(|container| container.restart_count).sum())
}

/// `ambit` lists an open connection between two such pods, at either end: nobody but the proxy in each knows of it.
async fn listed(from: &Pod, to: &Pod) -> Result<()> {
    let held = from.holds(&to.at(9000)).await?;
    let words = ["connections", "-o", "json", "-n", &from.namespace];
    eventually("it is listed at both ends", || async {
        let shown: Value = ambit(&words).await?.with(0)?.json()?;
        for (direction, end, pod) in [("outbound", "source", from), ("inbound", "destination", to)]
        {
            let is = |it: &Value| it["direction"] == direction && it[end]["pod"] == *pod.name;
            let mut all = shown["connections"].as_array().into_iter().flatten();
            ensure!(all.any(is), "no {direction} one of {}: {shown:#}", pod.name);
        }
        Ok(())
    })
    .await?;
    held.still_held().await.map(drop)
}

/// Asked before, the proxy in the pod decides about its end, be it the caller's or the other one.
async fn explained(from: &Pod, to: &str, by: &Pod, does: &str) -> Result<()> {
    let caller = format!("{}/{}", from.namespace, from.name);
    let told = ambit(&["explain", &caller, to]).await?.with(1)?;
    told.says("REFUSED (decided at the destination)")?
        .says(&format!(
            "ztunnel in pod {}/{}: {does}",
            by.namespace, by.name
        ))
        .map(drop)
}

/// Both ways with pods of ambient mode, on one node and across, by mutual TLS alone, under policies of either side; kubelet's probes
/// pass, and who asks `ambit` is answered by the proxies in the pods.
pub(super) async fn they_talk_both_ways_with_ambient_pods_under_policies(
    test: &Test,
) -> Result<()> {
    let (own, shop) = (dedicated(test, "own").await?, test.ambient("shop").await?);
    let outside = test.plain("outside").await?;
    own.apply(STRICT).await?;
    shop.apply(STRICT).await?;
    let mut server = own.server("web").on(test.node(0));
    server.container["livenessProbe"] = json!({ "tcpSocket": { "port": 9000 }, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 2 });
    server.container["startupProbe"] = json!({ "grpc": { "port": 8080 }, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 30 });
    let web = server.start().await?;
    let phone = own.client("phone").on(test.node(1)).start().await?;
    let friend = shop.server("friend").on(test.node(1)).start().await?;
    let stranger = shop.client("stranger").on(test.node(0)).start().await?;
    let plain = outside.client("plain").on(test.node(0)).start().await?;
    for pod in [&web, &phone] {
        let object = pod.object().await?;
        ensure!(is_injected(&object), "{}: {:?}", pod.name, object.spec);
    }
    let to_friend = format!("http://friend.{}/", shop.name);
    let to_web = format!("http://web.{}/", own.name);
    phone.reaches(&to_friend).await?;
    phone.reaches(&to_web).await?;
    stranger.reaches(&to_web).await?;
    let answer = friend.reaches(&to_web).await?;
    ensure!(
        friend.ips.contains(&answer.from),
        "seen from {}",
        answer.from
    );
    plain
        .is_refused(&format!("http://{}/", web.at(8080)))
        .await?;

    let (caller, called) = (own.identity("phone"), shop.identity("friend"));
    test.mesh()
        .reported(&friend.node, test.began, "who called", |record| {
            record.inbound() && record.field("src.identity") == caller && record.error().is_empty()
        })
        .await?;
    reported(&phone, "whom it called", |record| {
        record.outbound() && record.field("dst.identity") == called
    })
    .await?;
    reported(&web, "who called it", |record| {
        record.inbound() && record.field("src.identity") == called && record.error().is_empty()
    })
    .await?;

    listed(&phone, &web).await?;

    own.apply(&rule("web", "ALLOW", &called)).await?;
    stranger.is_refused(&to_web).await?;
    explained(
        &stranger,
        &format!("web.{}:80", own.name),
        &web,
        "arrives as",
    )
    .await?;
    friend.reaches(&to_web).await?;
    let refused = shop.identity("stranger");
    reported(&web, "whom it refused", |record| {
        record.inbound() && record.field("src.identity") == refused && !record.error().is_empty()
    })
    .await?;
    shop.apply(&rule("friend", "DENY", &caller)).await?;
    phone.is_refused(&to_friend).await?;
    explained(
        &phone,
        &format!("friend.{}:80", shop.name),
        &phone,
        "tunnel to",
    )
    .await?;
    stranger.reaches(&to_friend).await?;
    let restarts = restarts(&web).await?;
    ensure!(
        restarts == 0,
        "{restarts} restarts: kubelet's probes did not pass"
    );
    Ok(())
}

/// A Job calls the mesh from its first instruction on, and its proxy does not keep it from completing.
pub(super) async fn a_job_completes(test: &Test) -> Result<()> {
    let (own, shop) = (dedicated(test, "own").await?, test.ambient("shop").await?);
    shop.apply(STRICT).await?;
    shop.server("web").start().await?;
    own.account("once").await?;
    let url = format!("http://web.{}/", shop.name);
    let call = [
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "10",
        &url,
    ];
    let mut pod = own.pod("once", &call).template();
    pod["spec"]["restartPolicy"] = json!("Never");
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "once" },
        "spec": { "completions": 2, "parallelism": 1, "backoffLimit": 0, "template": pod },
    });
    test.cluster.apply_object(&own.name, job).await?;
    let jobs: Api<Job> = Api::namespaced(test.cluster.client.clone(), &own.name);
    let ended = |job: Option<&Job>| ending(job).is_some();
    // Two pods, one after the other.
    let job = until_within(2 * PATIENCE, &jobs, "once", "ended", ended).await?;
    let how = ending(job.as_ref()).unwrap_or_default();
    ensure!(how == "Complete", "the job has ended as {how}");
    Ok(())
}

/// As what a Job has ended, if it has.
fn ending(job: Option<&Job>) -> Option<String> {
    let conditions = job?.status.as_ref()?.conditions.as_ref()?;
    let mut ends = conditions
        .iter()
        .filter(|it| it.status == "True" && ["Complete", "Failed"].contains(&it.type_.as_str()));
    ends.next().map(|it| it.type_.clone())
}

/// Pods that say otherwise, that cannot have one, and that ask by themselves; and after the label is gone, new ones have none.
pub(super) async fn labels_decide_and_what_cannot_be_meant_is_refused_by_name(
    test: &Test,
) -> Result<()> {
    let (own, elsewhere) = (
        dedicated(test, "own").await?,
        test.plain("elsewhere").await?,
    );
    let out = own
        .client("out")
        .label(DATAPLANE_MODE, "none")
        .start()
        .await?;
    let ambient = own
        .client("ambient")
        .label(DATAPLANE_MODE, "ambient")
        .start()
        .await?;
    let host = own.client("host").host_network().start().await?;
    for pod in [&out, &ambient, &host] {
        ensure!(
            !is_injected(&pod.object().await?),
            "{} has a proxy",
            pod.name
        );
    }
    ambient.enrolled().await?;
    let asks = elsewhere
        .client("asks")
        .label(DATAPLANE_MODE, "dedicated")
        .start()
        .await?;
    ensure!(
        is_injected(&asks.object().await?),
        "{} has no proxy",
        asks.name
    );

    let ports = "traffic.sidecar.istio.io/excludeOutboundPorts";
    let wrong = own.client("wrong").annotation(ports, "http").create().await;
    says(wrong, ports)?;
    let both = own
        .client("both")
        .host_network()
        .label(DATAPLANE_MODE, "dedicated");
    says(both.create().await, "the node's network")?;

    own.label(DATAPLANE_MODE, None).await?;
    injects(test, &own, false).await?;
    let later = own.client("later").start().await?;
    ensure!(
        !is_injected(&later.object().await?),
        "{} has a proxy",
        later.name
    );
    Ok(())
}

/// That something was refused, with these words.
fn says(refused: Result<()>, words: &str) -> Result<()> {
    let Err(error) = refused else {
        bail!("it was not refused, for {words}");
    };
    let text = format!("{error:#}");
    ensure!(text.contains(words), "{text}");
    Ok(())
}

/// Agents and proxies of nodes come and go beside them; without a control plane they go on, and only those that ask for a proxy
/// are not made.
pub(super) async fn they_go_on_beside_whatever_is_replaced_and_none_is_made_without_a_proxy(
    test: &Test,
) -> Result<()> {
    let (own, outside) = (dedicated(test, "own").await?, test.plain("outside").await?);
    own.apply(STRICT).await?;
    let web = own.server("web").on(test.node(0)).start().await?;
    let phone = own.client("phone").on(test.node(1)).start().await?;
    let plain = outside.client("plain").on(test.node(0)).start().await?;
    phone.reaches("http://web/").await?;
    let load = phone.load("http://web/", &[]).await?;
    for part in [Part::Agent, Part::Ztunnel] {
        test.mesh().restart(part).await?;
        still_closed(&web, &plain).await?;
    }
    test.mesh().scale_istiod(0).await?;
    says(own.client("late").create().await, "failed calling webhook")?;
    outside.client("other").start().await?;
    phone.reaches("http://web/").await?;
    still_closed(&web, &plain).await?;
    test.mesh().scale_istiod(2).await?;
    injects(test, &own, true).await?;
    own.client("late")
        .start()
        .await?
        .reaches("http://web/")
        .await?;
    let tally = load.tally().await?;
    test.note(tally.to_string()).await;
    ensure!(tally.failures() == 0, "{tally}");
    Ok(())
}

/// Nobody took its rules, nor the word that they are there.
async fn still_closed(web: &Pod, plain: &Pod) -> Result<()> {
    plain
        .is_refused(&format!("http://{}/", web.at(8080)))
        .await?;
    let annotations = web.object().await?.metadata.annotations.unwrap_or_default();
    let state = annotations.get(api::k8s::labels::REDIRECTION);
    ensure!(
        state.is_some_and(|state| state == "enabled"),
        "{annotations:?}"
    );
    Ok(())
}
