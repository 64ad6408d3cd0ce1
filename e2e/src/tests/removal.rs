//! The mesh comes and goes, by its chart and by `ambit`: pods go on talking all the while, and nothing of it is left.
//!
//! Afterwards the chart is there again, with a new authority.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    core::v1::{ConfigMap, Node, Pod as PodObject, PodTemplateSpec, Service},
};
use kube::{Api, ResourceExt, api::ListParams};

use super::waypoint::GatewayApi;
use crate::{
    load::Tally,
    mesh::{Part, SYSTEM},
    place::Place,
    pod::Pod,
    program::{ambit, kubectl, run},
    run::Test,
    wait::eventually,
};

/// A log level that says the same as the chart's in other words, so that pods are made anew.
const LEVEL: &str = "info,mesh=info";

/// What a node must not say anything to, besides what the network plugin left.
const TRACES: &str = r#"
grep -il istio /etc/cni/net.d/* 2>/dev/null
ls -A /etc/cni/net.d /opt/cni/bin | grep -iE 'istio|ambit'
find /run/istio-cni /run/ztunnel ! -type d 2>/dev/null
nft list ruleset | grep -iE 'istio|ambit|15008'
for netns in /var/run/netns/*; do
	nsenter --net="$netns" sh -c '
		nft list ruleset | grep -iE "istio|ambit|15008"
		ip rule | grep -vE "lookup (local|main|default)"
		ip -6 rule | grep -vE "lookup (local|main|default)"
		ip route show table 100 2>/dev/null
		ip -6 route show table 100 2>/dev/null'
done
true
"#;

/// As Helm takes it away with every label still on; then installed, upgraded and purged by `ambit`; and back by its chart.
pub(super) async fn the_mesh_is_removed_by_either_hand_and_pods_go_on_talking(
    test: &Test,
) -> Result<()> {
    let images = images(test).await?;
    let shop = test.ambient("shop").await?;
    let web = shop.server("web").on(test.node(0)).start().await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    let pods = [&web, &phone];
    phone.reaches("http://web/").await?;
    known_outside_the_mesh(test, &shop, &web).await?;

    let load = phone.load("http://web/", &[]).await?;
    helm(&[
        "uninstall",
        "ambit",
        "-n",
        SYSTEM,
        "--wait",
        "--timeout",
        "4m",
    ])
    .await?;
    gone(test, &pods).await?;
    let hook = kubectl(
        &["get", "job,sa,role,rolebinding", "-n", SYSTEM, "-o", "name"],
        "",
    );
    let left = hook.await?.with(0)?.out;
    ensure!(
        !left.contains("istio"),
        "of the release or its hook there is still {left}"
    );
    told(test, "helm uninstall", load.tally().await?).await?;

    let load = phone.load("http://web/", &[]).await?;
    let install = |verb: &str| [vec![verb.to_owned()], images.clone()].concat();
    ours(install("install"), "the mesh is installed").await?;
    web.enrolled().await?;
    phone.enrolled().await?;
    talks_in_the_mesh(test, &shop, &phone).await?;
    told(test, "ambit install", load.tally().await?).await?;

    let load = phone.load("http://web/", &[]).await?;
    upgraded(test, install("upgrade")).await?;
    talks_in_the_mesh(test, &shop, &phone).await?;
    told(test, "ambit upgrade", load.tally().await?).await?;

    let gateways = GatewayApi::define(test).await?;
    let result = purged_under_load(test, &pods).await;
    gateways.forget(test).await?;
    result?;
    back(test).await?;
    web.enrolled().await?;
    talks_in_the_mesh(test, &shop, &phone).await
}

/// Whoever leaves the mesh goes by the Service's rules on its node. Of a Service as young as this one they may still be
/// missing there, where ztunnel has long known its pods.
async fn known_outside_the_mesh(test: &Test, shop: &Place, web: &Pod) -> Result<()> {
    let services: Api<Service> = Api::namespaced(test.cluster.client.clone(), &shop.name);
    let spec = services.get(&web.name).await?.spec.unwrap_or_default();
    let address = spec.cluster_ip.context("web has no cluster address")?;
    let ask = format!("curl --silent --show-error --fail --max-time 2 http://{address}/");
    eventually("the nodes know the Service", || async {
        for number in 0..2 {
            test.node(number).sh(&ask).await?.success()?;
        }
        Ok(())
    })
    .await
}

/// With a Gateway API, so that there are classes of ours too.
async fn purged_under_load(test: &Test, pods: &[&Pod; 2]) -> Result<()> {
    let classes = || kubectl(&["get", "gatewayclasses", "-o", "name"], "");
    eventually("the control plane has made its classes", || async {
        classes().await?.with(0)?.says("/istio-waypoint").map(drop)
    })
    .await?;
    let load = pods[1].load("http://web/", &[]).await?;
    let purge = ["uninstall", "--purge", "--yes"].map(str::to_owned);
    ours(purge.into(), "the mesh is gone").await?;
    gone(test, pods).await?;
    purged(test).await?;
    let left = classes().await?.with(0)?.out;
    ensure!(!left.contains("istio"), "{left} stayed");
    told(test, "ambit uninstall --purge", load.tally().await?).await
}

/// No new connection failed; of kept ones it is said how many were cut, of which each was told at once.
async fn told(test: &Test, what: &str, tally: Tally) -> Result<()> {
    test.note(format!("{what}: {tally}")).await;
    ensure!(
        tally.fresh.failures() == 0,
        "new connections failed at {what}: {tally}"
    );
    let mut ends = tally.kept.failed.keys();
    ensure!(
        ends.all(|end| ["reset", "closed"].contains(&end.as_str())),
        "kept connections were left hanging at {what}: {tally}"
    );
    Ok(())
}

/// Every part is replaced by one with another setting, and an object that the new version has no more goes.
async fn upgraded(test: &Test, mut words: Vec<String>) -> Result<()> {
    let old = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: of-an-earlier-version, labels: {app.kubernetes.io/managed-by: ambit}}";
    test.cluster.apply(SYSTEM, old).await?;
    for part in Part::ALL {
        words.extend(["--env".into(), format!("{}:RUST_LOG={LEVEL}", part.name())]);
    }
    ours(
        words,
        "ConfigMap/of-an-earlier-version belonged to an earlier version",
    )
    .await?;
    test.mesh().well().await?;
    for part in Part::ALL {
        for pod in test.mesh().staying(part).await? {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut variables = containers.flat_map(|it| it.env.iter().flatten());
            let new =
                variables.any(|it| it.name == "RUST_LOG" && it.value.as_deref() == Some(LEVEL));
            ensure!(new, "{} is of the old version", pod.name_any());
        }
    }
    eventually("ambit status finds nothing wrong", || async {
        let said = ambit(&["status"]).await?.with(0)?;
        said.says("nothing is wrong").map(drop)
    })
    .await
}

/// The mesh as the run began with it.
async fn back(test: &Test) -> Result<()> {
    let labels = [("pod-security.kubernetes.io/enforce", Some("privileged"))];
    test.cluster.namespace(SYSTEM, &labels).await?;
    let files = [
        "--values",
        "target/images/values.yaml",
        "--values",
        "e2e/values.yaml",
    ];
    let chart = [
        "install",
        "ambit",
        "manifests/charts/ambit",
        "-n",
        SYSTEM,
        "--wait",
        "--timeout",
        "4m",
    ];
    helm(&[&chart[..], &files[..]].concat()).await?;
    test.mesh().well().await
}

async fn helm(words: &[&str]) -> Result<()> {
    run("helm".into(), words, "").await?.with(0).map(drop)
}

async fn ours(words: Vec<String>, says: &str) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    ambit(&words).await?.with(0)?.says(says).map(drop)
}

/// Which images `ambit` is to take: those that run, for they were loaded into the nodes.
async fn images(test: &Test) -> Result<Vec<String>> {
    let client = || test.cluster.client.clone();
    let mut images = Vec::new();
    for part in Part::ALL {
        let name = part.name();
        let template = if part == Part::Istiod {
            Api::<Deployment>::namespaced(client(), SYSTEM)
                .get(name)
                .await?
                .spec
                .map(|spec| spec.template)
        } else {
            Api::<DaemonSet>::namespaced(client(), SYSTEM)
                .get(name)
                .await?
                .spec
                .map(|spec| spec.template)
        };
        let image = image(template).with_context(|| format!("{name} has no image"))?;
        images.extend(["--image".to_owned(), format!("{name}={image}")]);
    }
    Ok(images)
}

fn image(template: Option<PodTemplateSpec>) -> Option<String> {
    template?.spec?.containers.into_iter().next()?.image
}

async fn talks_in_the_mesh(test: &Test, shop: &Place, phone: &Pod) -> Result<()> {
    eventually("both ends are known by their accounts", || async {
        phone.asks("http://web/").await?;
        let records = test.mesh().access(&phone.node, test.began).await?;
        let known = records.iter().any(|record| {
            record.outbound()
                && record.field("src.identity") == shop.identity("phone")
                && record.field("dst.identity") == shop.identity("web")
        });
        ensure!(known, "{} other connections", records.len());
        Ok(())
    })
    .await
}

/// No trace on any node, no mark on any pod.
async fn gone(test: &Test, pods: &[&Pod]) -> Result<()> {
    for pod in pods {
        pod.left_the_mesh().await?;
    }
    let nodes: Api<Node> = Api::all(test.cluster.client.clone());
    for node in nodes.list(&ListParams::default()).await?.items {
        let name = node.name_any();
        eventually(&format!("nothing of the mesh is on {name}"), || async {
            let said = run("docker".into(), &["exec", &name, "sh", "-c", TRACES], "")
                .await?
                .with(0)?;
            ensure!(said.out.trim().is_empty(), "{}", said.out);
            Ok(())
        })
        .await?;
    }
    let all: Api<PodObject> = Api::all(test.cluster.client.clone());
    for pod in all.list(&ListParams::default()).await?.items {
        let marked = pod
            .annotations()
            .contains_key(api::k8s::labels::REDIRECTION);
        ensure!(!marked, "{} is still marked as captured", pod.name_any());
    }
    Ok(())
}

/// What users and the mesh wrote went too.
async fn purged(test: &Test) -> Result<()> {
    eventually("what was purged is gone", || async {
        let maps: Api<ConfigMap> = Api::all(test.cluster.client.clone());
        let roots = ListParams::default().fields("metadata.name=istio-ca-root-cert");
        let left = maps.list(&roots).await?.items.len();
        ensure!(left == 0, "{left} ConfigMaps with roots");
        let kinds = "customresourcedefinitions,clusterroles,clusterrolebindings,validatingwebhookconfigurations,mutatingwebhookconfigurations,\
            validatingadmissionpolicies,validatingadmissionpolicybindings,namespaces";
        let names = kubectl(&["get", kinds, "-o", "name"], "").await?.with(0)?.out;
        let left: Vec<&str> =
            names.lines().filter(|name| name.contains("istio") || name.contains("ztunnel")).collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}
