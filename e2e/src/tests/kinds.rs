//! Kinds of workloads where something more is promised than that they are in the mesh.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use serde_json::json;

use super::policy::STRICT;
use crate::{pod::Pod, run::Test, wait::eventually};

/// A Service that keeps its traffic on the node (internalTrafficPolicy) leads to the DaemonSet's pod there, through the mesh.
pub(super) async fn a_daemon_set_behind_a_local_service_answers_on_the_callers_node(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.apply(STRICT).await?;
    shop.account("each").await?;
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "each" },
        "spec": { "selector": { "matchLabels": { "app": "each" } }, "template": shop.server("each").template() },
    });
    test.cluster.apply_object(&shop.name, set).await?;
    shop.apply("apiVersion: v1\nkind: Service\nmetadata: {name: each}\nspec: {internalTrafficPolicy: Local, selector: {app: each}, ports: [{port: 80, targetPort: 8080}]}").await?;
    test.mesh()
        .rolled_out_in::<DaemonSet>(&shop.name, "each")
        .await?;
    let pods = shop.pods_of("each").await?;
    for node in test.cluster.workers() {
        let name = format!("on-{}", node.name);
        let client = shop.client(&name).on(node).start().await?;
        let own = pods
            .iter()
            .find(|pod| pod.node == node.name)
            .with_context(|| format!("no pod on {}", node.name))?;
        client.reaches("http://each/").await?;
        for _ in 0..6 {
            let answer = client.asks("http://each/").await?;
            ensure!(
                answer.pod == own.name && answer.from == client.ip,
                "{} is asked from {} and not {}: {answer:?}",
                own.name,
                client.ip,
                node.name
            );
        }
    }
    Ok(())
}

/// A pod of a StatefulSet that comes back with another address is reached by the same name, and never is another.
pub(super) async fn a_stateful_pod_keeps_its_name_when_its_address_changes(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.apply(STRICT).await?;
    shop.account("db").await?;
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "db" },
        "spec": {
            "serviceName": "db", "replicas": 2, "podManagementPolicy": "Parallel", "selector": { "matchLabels": { "app": "db" } },
            "template": shop.server("db").template(),
        },
    });
    shop.apply("apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 8080}]}").await?;
    test.cluster.apply_object(&shop.name, set).await?;
    test.mesh()
        .rolled_out_in::<StatefulSet>(&shop.name, "db")
        .await?;
    let phone = shop.client("phone").start().await?;
    phone.reaches("http://db-0.db:8080/").await?;
    let before = Pod::ready(&test.cluster, &shop.name, "db-0").await?;
    before.delete().await?;
    let after = Pod::ready(&test.cluster, &shop.name, "db-0").await?;
    ensure!(
        before.ip != after.ip,
        "the pod got its old address {} again",
        after.ip
    );
    eventually("the name leads to the new pod", || async {
        let said = phone.sh("curl --silent --show-error --fail --max-time 5 --write-out '\\n%{remote_ip}' http://db-0.db:8080/").await?.success()?;
        let (answer, address) = said.rsplit_once('\n').context("no address")?;
        // Whatever is known of it meanwhile: nobody else answers for it.
        ensure!(answer.contains("\"db-0\""), "{answer}");
        ensure!(after.ips.iter().any(|ip| ip == address), "{address}");
        Ok(())
    })
    .await?;
    let other = phone.reaches("http://db-1.db:8080/").await?;
    ensure!(other.pod == "db-1", "{other:?}");
    Ok(())
}

/// A port of the node that leads to a meshed pod (hostPort) does so for clients inside and outside the mesh; in STRICT for neither, as what
/// comes by the node has no identity.
pub(super) async fn a_host_port_leads_to_a_meshed_pod_until_strict(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let outside = test.plain("outside").await?;
    let node = test.node(0);
    let mut server = shop.server("web").on(node);
    server.container["ports"] = json!([{ "containerPort": 8080, "hostPort": 18081 }]);
    let web = server.start().await?;
    web.enrolled().await?;
    let url = format!("http://{}:18081/", node.address());
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    let stranger = outside.client("stranger").on(test.node(1)).start().await?;
    for client in [&phone, &stranger] {
        let answer = client.reaches(&url).await?;
        ensure!(answer.pod == "web", "{answer:?}");
    }
    shop.apply(STRICT).await?;
    for client in [&phone, &stranger] {
        client.is_refused(&url).await?;
    }
    phone.reaches("http://web/").await?;
    Ok(())
}

/// What runs in a pod before its program (an init container) is in the mesh already: STRICT serves it, under the pod's account.
pub(super) async fn an_init_container_is_in_the_mesh_already(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let web = shop.server("web").on(test.node(0)).start().await?;
    shop.apply(STRICT).await?;
    let scout = shop.client("scout").on(test.node(1)).start().await?;
    scout.reaches("http://web/").await?;
    let mut late = shop.client("late").on(test.node(1));
    let mut first = shop.container(&[
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "10",
        "http://web/",
    ]);
    first["name"] = json!("first");
    late.spec["initContainers"] = json!([first]);
    let late = late.start().await?;
    let object = late.object().await?;
    let restarts = object
        .status
        .iter()
        .flat_map(|status| status.init_container_statuses.iter().flatten())
        .map(|container| container.restart_count);
    ensure!(
        restarts.sum::<i32>() == 0,
        "the init container failed at first"
    );
    let identity = shop.identity("late");
    test.mesh()
        .reported(
            &web.node,
            test.began,
            "the init container's call",
            |record| record.inbound() && record.field("src.identity") == identity,
        )
        .await?;
    Ok(())
}

/// A pod in its node's network has no identity of its own: STRICT refuses it on the server's node and on others, whoever it runs as.
pub(super) async fn a_pod_in_the_nodes_network_is_refused_in_strict(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let web = shop.server("web").on(test.node(0)).start().await?;
    let url = format!("http://{}/", web.at(8080));
    let mut hosts = Vec::new();
    for (name, index, user) in [("near", 0, 0), ("far", 1, 0), ("nobody", 0, 65534)] {
        let mut host = shop.client(name).host_network().on(test.node(index));
        host.container["securityContext"] = json!({ "runAsUser": user });
        let host = host.start().await?;
        host.reaches(&url).await?;
        hosts.push(host);
    }
    shop.apply(STRICT).await?;
    for host in &hosts {
        host.is_refused(&url).await?;
        host.is_refused("http://web/").await?;
    }
    Ok(())
}
