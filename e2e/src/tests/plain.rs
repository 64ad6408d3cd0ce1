//! What stays outside the mesh: clients that are refused, the API server, the cluster's names.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::policy::STRICT;
use crate::{
    load::Tally,
    place::{DATAPLANE_MODE, Place},
    pod::Pod,
    run::Test,
    wait::eventually,
};

/// Plain text that STRICT refuses is reset at once, and ztunnel's log names client, server and reason.
pub(super) async fn a_refused_plain_client_is_reset_and_the_log_says_why(
    test: &Test,
) -> Result<()> {
    let (shop, outside) = (test.ambient("shop").await?, test.plain("outside").await?);
    let web = shop.server("web").on(test.node(0)).start().await?;
    shop.apply(STRICT).await?;
    for node in [test.node(0), test.node(1)] {
        let client = outside
            .client(&format!("on-{}", node.name))
            .on(node)
            .start()
            .await?;
        for (address, ip) in web.ips.iter().zip(&client.ips) {
            let url = if address.contains(':') {
                format!("http://[{address}]:8080/")
            } else {
                format!("http://{address}:8080/")
            };
            client.is_refused(&url).await?;
            let line = format!("sleep 0.5 | /opt/e2e/app load {url} --kept 0");
            let tally = eventually("somebody has asked before the end", || async {
                let tally: Tally = serde_json::from_str(&client.sh(&line).await?.success()?)?;
                ensure!(tally.answers() + tally.failures() > 0, "{tally}");
                Ok(tally)
            })
            .await?;
            let how: Vec<&String> = tally.fresh.failed.keys().collect();
            ensure!(tally.fresh.answered == 0 && how == ["reset"], "{tally}");
            let refusal = test
                .mesh()
                .reported(&web.node, test.began, "the refusal", |record| {
                    record.inbound()
                        && record.field("src.addr").contains(ip.as_str())
                        && !record.error().is_empty()
                })
                .await?;
            ensure!(
                refusal.error().contains("strict")
                    && refusal.field("src.identity").is_empty()
                    && refusal.field("dst.workload") == web.name,
                "{refusal:?}"
            );
        }
    }
    Ok(())
}

/// The API server answers a meshed pod, knows its account, and tells it of changes as they happen.
pub(super) async fn the_api_server_knows_a_meshed_pods_account_and_keeps_it_informed(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let phone = shop.client("phone").start().await?;
    let who = call(
        "apis/authentication.k8s.io/v1/selfsubjectreviews",
        "--header 'Content-Type: application/json' --data '{\"kind\":\"SelfSubjectReview\",\"apiVersion\":\"authentication.k8s.io/v1\"}'",
    );
    let said = eventually("the API server answers a meshed pod", || async {
        phone.sh(&who).await?.success()
    })
    .await?;
    let review: Value = serde_json::from_str(&said).context(said.clone())?;
    let account = format!("system:serviceaccount:{}:phone", shop.name);
    ensure!(
        review["status"]["userInfo"]["username"] == account,
        "{said}"
    );
    shop.apply(READER).await?;
    let maps = format!("api/v1/namespaces/{}/configmaps", shop.name);
    let list = call(&maps, "--output /dev/null");
    eventually("the API server knows that it may watch", || async {
        phone.sh(&list).await?.success()
    })
    .await?;
    // Two events on one connection, the second after the first has arrived.
    let path = format!("{maps}?watch=1&fieldSelector=metadata.name=news");
    let watch = format!("{} | head -n 2", call(&path, "--no-buffer --max-time 50"));
    let watching = async { phone.sh(&watch).await?.success() };
    let events = while_news_are_published(test, &shop, watching).await?;
    let kinds: Vec<String> = events
        .lines()
        .map(|line| Ok(serde_json::from_str::<Value>(line)?["type"].to_string()))
        .collect::<Result<_>>()
        .with_context(|| events.clone())?;
    ensure!(kinds == ["\"ADDED\"", "\"MODIFIED\""], "{kinds:?}");
    Ok(())
}

/// Writes news again and again until the watch, whenever it began, has had enough.
async fn while_news_are_published(
    test: &Test,
    shop: &Place,
    watch: impl Future<Output = Result<String>>,
) -> Result<String> {
    tokio::pin!(watch);
    let mut pace = tokio::time::interval(Duration::from_millis(500));
    let mut edition = 0;
    loop {
        tokio::select! {
            events = &mut watch => return events,
            _ = pace.tick() => {
                edition += 1;
                let object = serde_json::json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "news" }, "data": { "edition": edition.to_string() },
                });
                test.cluster.apply_object(&shop.name, object).await?;
            }
        }
    }
}

/// Its account may watch ConfigMaps.
const READER: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader}
rules: [{apiGroups: [''], resources: [configmaps], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: phone}]
";

/// A call of the API server with the pod's own token.
fn call(path: &str, options: &str) -> String {
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    format!(
        "curl --silent --show-error --fail --max-time 5 --cacert {folder}/ca.crt --header \"Authorization: Bearer $(cat {folder}/token)\" {options} \
         'https://kubernetes.default.svc/{path}'"
    )
}

/// Names mean the same in the mesh as outside: every kind of record, known and unknown, short and too long for a datagram.
pub(super) async fn names_mean_the_same_in_the_mesh_as_outside(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let web = shop.server("web").start().await?;
    shop.apply(NAMES).await?;
    for (name, count) in [("many", 60), ("more", 150)] {
        test.cluster
            .apply_object(&shop.name, addresses_of(name, count))
            .await?;
    }
    let meshed = shop.client("meshed").start().await?;
    let plain = shop
        .client("plain")
        .label(DATAPLANE_MODE, "none")
        .start()
        .await?;
    meshed.enrolled().await?;
    let full = |name: &str| format!("{name}.{}.svc.cluster.local", shop.name);
    let mut questions: Vec<String> = ["web", "kubernetes.default", "pods", "many"]
        .iter()
        .flat_map(|name| [format!("+search {name} A"), format!("+search {name} AAAA")])
        .collect();
    questions.extend([
        format!("{} A", full("web")),
        format!("{} A", full("WEB")),
        format!("{} AAAA", full("both")),
        format!("{} SRV", full("_http._tcp.web")),
        format!("{} SRV", full("_http._tcp.pods")),
        format!("{} A", full("alias")),
        format!("{} CNAME", full("alias")),
        format!("{} A", full("nothing")),
        "kubernetes.default.svc.cluster.local TXT".to_owned(),
        "dns-version.cluster.local TXT".to_owned(),
        format!("-x {}", web.ip),
        format!("-x {}", web.ips.get(1).context("no second family")?),
        // Truncated, then asked again over TCP; fits with EDNS; does not fit even so.
        format!("+noedns {} A", full("many")),
        format!("{} A", full("many")),
        format!("+tcp {} A", full("many")),
        format!("{} A", full("more")),
    ]);
    eventually("both get the same answers", || async {
        let (inside, outside) =
            tokio::try_join!(dig(&meshed, &questions), dig(&plain, &questions))?;
        for ((question, inside), outside) in questions.iter().zip(&inside).zip(&outside) {
            ensure!(
                inside == outside,
                "{question}:\nin the mesh {inside:#?}\noutside {outside:#?}"
            );
        }
        let many = questions.len() - 3;
        ensure!(
            outside[many].len() == 61 && outside[many + 2].len() == 151,
            "the cluster's own answers are short: {} and {} lines",
            outside[many].len(),
            outside[many + 2].len()
        );
        Ok(())
    })
    .await
}

/// Status and records of each answer, in a fixed order and without how long they are valid.
async fn dig(pod: &Pod, questions: &[String]) -> Result<Vec<Vec<String>>> {
    let lines: Vec<String> = questions
        .iter()
        .map(|question| format!("dig +noall +comments +answer +time=3 {question}; echo END"))
        .collect();
    let said = pod.sh(&lines.join("\n")).await?.success()?;
    let answers = said.split("END\n").zip(questions);
    Ok(answers
        .map(|(answer, question)| records(answer, question.starts_with("+search")))
        .collect())
}

/// A short name is found in one step in the mesh (an alias of the whole name), in several outside: only what it leads to counts.
fn records(answer: &str, short: bool) -> Vec<String> {
    let mut lines: Vec<String> = answer
        .lines()
        .filter_map(|line| {
            if let Some((_, status)) = line.split_once("status: ") {
                return Some(format!("status {}", status.split(',').next()?));
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let is_record = !line.starts_with(';') && words.len() > 4;
            let counts = is_record && !(short && words[3] == "CNAME");
            let owner = if short { "" } else { words.first()? };
            counts.then(|| format!("{} {}", owner.to_lowercase(), words[3..].join(" ")))
        })
        .collect();
    lines.sort();
    lines
}

/// Services of every shape that names have.
const NAMES: &str = "
apiVersion: v1
kind: Service
metadata: {name: pods}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec: {ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: kubernetes.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: many}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: more}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
";

/// Addresses of a Service that selects no pods.
fn addresses_of(name: &str, count: u8) -> Value {
    let endpoints: Vec<Value> = (1..=count)
        .map(|last| serde_json::json!({ "addresses": [format!("192.0.2.{last}")], "conditions": { "ready": true } }))
        .collect();
    serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
        "addressType": "IPv4", "ports": [{ "name": "http", "port": 80 }], "endpoints": endpoints,
    })
}
