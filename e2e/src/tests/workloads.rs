//! Every kind of workload, and ordinary programs instead of ours.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::{apps::v1::DaemonSet, batch::v1::Job};
use kube::Api;
use serde_json::json;

use crate::{
    node::Node,
    place::Place,
    run::Test,
    wait::{PATIENCE, eventually, until_within},
};

/// A pod in its node's network is never captured, and speaks with the mesh in plain text.
pub(super) async fn a_pod_in_the_nodes_network_stays_outside(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let web = shop.server("web").on(test.node(0)).start().await?;
    let host = shop
        .client("host")
        .host_network()
        .on(test.node(1))
        .start()
        .await?;
    let phone = shop.client("phone").on(test.node(0)).start().await?;
    host.reaches("http://web/").await?;
    host.reaches(&format!("http://{}/", web.at(8080))).await?;
    let annotations = host
        .object()
        .await?
        .metadata
        .annotations
        .unwrap_or_default();
    ensure!(
        !annotations.contains_key(api::k8s::labels::REDIRECTION),
        "{annotations:?}"
    );
    // And the other way: a server in the node's network.
    let mut served = shop.server("served").host_network().on(test.node(1));
    served.container["command"] = json!([
        "/opt/e2e/app",
        "serve",
        "--http",
        "18080",
        "--echo",
        "19000"
    ]);
    served.container["readinessProbe"] =
        json!({ "httpGet": { "port": 18080 }, "periodSeconds": 1 });
    let served = served.without_service().start().await?;
    phone
        .reaches(&format!("http://{}/", served.at(18080)))
        .await?;
    Ok(())
}

/// A DaemonSet's pods are in the mesh on every node.
pub(super) async fn a_daemon_set_is_in_the_mesh_on_every_node(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.account("each").await?;
    let set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "each" },
        "spec": { "selector": { "matchLabels": { "app": "each" } }, "template": shop.server("each").template() },
    });
    test.cluster.apply_object(&shop.name, set).await?;
    test.mesh()
        .rolled_out_in::<DaemonSet>(&shop.name, "each")
        .await?;
    let phone = shop.client("phone").start().await?;
    let pods = shop.pods_of("each").await?;
    ensure!(
        pods.len() == test.cluster.workers().len(),
        "{} pods",
        pods.len()
    );
    let identity = shop.identity("phone");
    for pod in pods {
        pod.enrolled().await?;
        phone.reaches(&format!("http://{}/", pod.at(8080))).await?;
        test.mesh()
            .reported(&pod.node, test.began, "the caller's account", |record| {
                record.inbound()
                    && record.field("dst.workload") == pod.name
                    && record.field("src.identity") == identity
            })
            .await?;
    }
    Ok(())
}

/// A Job calls the mesh from its first instruction on, and completes.
pub(super) async fn a_job_calls_the_mesh_from_its_first_instruction_and_completes(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.apply(super::policy::STRICT).await?;
    shop.server("web").start().await?;
    shop.account("once").await?;
    let mut pod = shop
        .pod(
            "once",
            &[
                "curl",
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "10",
                "http://web/",
            ],
        )
        .template();
    pod["spec"]["restartPolicy"] = json!("Never");
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "once" },
        "spec": { "completions": 3, "parallelism": 1, "backoffLimit": 0, "template": pod },
    });
    test.cluster.apply_object(&shop.name, job).await?;
    let jobs: Api<Job> = Api::namespaced(test.cluster.client.clone(), &shop.name);
    let ended = |job: Option<&Job>| {
        let conditions = job
            .and_then(|job| job.status.as_ref())
            .and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|conditions| {
            conditions
                .iter()
                .any(|c| c.status == "True" && ["Complete", "Failed"].contains(&c.type_.as_str()))
        })
    };
    // Three pods, one after the other.
    let job = until_within(3 * PATIENCE, &jobs, "once", "ended", ended)
        .await?
        .context("it was deleted")?;
    let status = job.status.unwrap_or_default();
    ensure!(
        status.succeeded == Some(3) && status.failed.unwrap_or(0) == 0,
        "{status:?}"
    );
    Ok(())
}

/// nginx, redis and postgres with their own clients, across nodes.
pub(super) async fn nginx_redis_and_postgres_serve_their_own_clients(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.apply(super::policy::STRICT).await?;
    let client = shop.client("client").on(test.node(1)).start().await?;
    ordinary_servers(&shop, test.node(0)).await?;
    for (line, expected) in [
        (
            "curl --silent --fail --max-time 5 http://nginx/",
            "from nginx",
        ),
        (
            "redis-cli -h redis set answer 42 && redis-cli -h redis get answer",
            "42",
        ),
        (&format!("{PSQL} -c 'select 6 * 7'"), "42"),
    ] {
        eventually(line, || async {
            let said = client.sh(line).await?.success()?;
            ensure!(said.contains(expected), "{said}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// nginx, redis and postgres on a node, each with a Service of its name.
pub(super) async fn ordinary_servers(shop: &Place, node: &Node) -> Result<()> {
    let script = "mkdir -p /tmp/www && echo from nginx >/tmp/www/index.html && \
        echo 'daemon off; events {} http { server { listen 80; root /tmp/www; } }' >/tmp/nginx.conf && exec nginx -c /tmp/nginx.conf";
    for (name, port, command) in [
        ("nginx", 80, script),
        (
            "redis",
            6379,
            "exec redis-server --protected-mode no --save ''",
        ),
        (
            "postgres",
            5432,
            "d=/tmp/db; b=$(ls -d /usr/lib/postgresql/*/bin); install -d -o postgres $d; run() { setpriv --reuid=postgres --regid=postgres --clear-groups \"$@\"; }; \
             run $b/initdb -D $d -A trust >/dev/null && echo 'host all all all trust' >>$d/pg_hba.conf && exec setpriv --reuid=postgres --regid=postgres --clear-groups $b/postgres -D $d -h '*' -k /tmp",
        ),
    ] {
        let pod = shop
            .pod(name, &["sh", "-c", command])
            .readiness(json!({ "tcpSocket": { "port": port }, "periodSeconds": 1 }))
            .on(node);
        pod.start().await?;
        shop.apply(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{selector: {{app: {name}}}, ports: [{{port: {port}}}]}}")).await?;
    }
    Ok(())
}

/// psql, where Debian has it, as the superuser of that postgres.
pub(super) const PSQL: &str = "$(ls -d /usr/lib/postgresql/*/bin)/psql -h postgres -U postgres -At";
