//! Every way in which Kubernetes lets one pod find another.

use anyhow::{Context as _, Result, ensure};

use crate::{run::Test, wait::eventually};

/// The address of a Service is shared out over its pods, through the tunnel.
pub(super) async fn a_cluster_address_reaches_every_pod_behind_it(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.deployment("web", 3).await?;
    let phone = shop.client("phone").start().await?;
    phone.reaches("http://web/").await?;
    let load = phone
        .load("http://web/", &["--fresh", "50", "--kept", "0"])
        .await?;
    let pods = shop.pods_of("web").await?;
    for pod in &pods {
        let identity = shop.identity("web");
        test.mesh()
            .reported(&pod.node, test.began, "an arrival at each pod", |record| {
                record.inbound()
                    && record.field("dst.workload") == pod.name
                    && record.field("dst.identity") == identity
            })
            .await?;
    }
    let tally = load.tally().await?;
    ensure!(
        tally.failures() == 0 && tally.fresh.by.len() == pods.len(),
        "{tally} by {:?}",
        tally.fresh.by
    );
    Ok(())
}

/// From outside, at a port of any node, with either way of treating the client's address.
pub(super) async fn a_node_port_answers_on_every_node(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.server("web").on(test.node(0)).start().await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    let outside = test
        .plain("outside")
        .await?
        .client("stranger")
        .on(test.node(1))
        .start()
        .await?;
    shop.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: gate}\nspec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: local}\nspec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}",
    )
    .await?;
    let port = |name: &'static str| {
        let shop = shop.name.clone();
        async move {
            let service = test.cluster.object(&shop, "v1", "Service", name).await?;
            service.data["spec"]["ports"][0]["nodePort"]
                .as_u64()
                .with_context(|| format!("{name} has no port on the nodes"))
        }
    };
    let (gate, local) = (port("gate").await?, port("local").await?);
    for node in test.cluster.workers() {
        for client in [&phone, &outside] {
            let answer = client
                .reaches(&format!("http://{}:{gate}/", node.address()))
                .await?;
            ensure!(answer.pod == "web", "{answer:?}");
        }
        let ask = format!(
            "curl --silent --fail --max-time 5 http://{}:{gate}/",
            node.address()
        );
        eventually("a node is answered there too", || async {
            test.node(0).sh(&ask).await?.success()
        })
        .await?;
    }
    let answer = outside
        .reaches(&format!("http://{}:{local}/", test.node(0).address()))
        .await?;
    ensure!(
        answer.from == outside.ip,
        "externalTrafficPolicy Local shows the client: {answer:?}"
    );
    Ok(())
}

/// A headless Service gives its pods' own names and addresses.
pub(super) async fn a_headless_service_with_a_stateful_set_gives_each_pod_a_name(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.account("db").await?;
    let set = serde_json::json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "db" },
        "spec": {
            "serviceName": "db", "replicas": 2, "podManagementPolicy": "Parallel", "selector": { "matchLabels": { "app": "db" } },
            "template": shop.server("db").template(),
        },
    });
    shop.apply("apiVersion: v1\nkind: Service\nmetadata: {name: db}\nspec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 8080}]}").await?;
    test.cluster.apply_object(&shop.name, set).await?;
    test.mesh()
        .rolled_out_in::<k8s_openapi::api::apps::v1::StatefulSet>(&shop.name, "db")
        .await?;
    let phone = shop.client("phone").start().await?;
    for name in ["db-0", "db-1"] {
        let answer = phone.reaches(&format!("http://{name}.db:8080/")).await?;
        ensure!(answer.pod == name, "{name} is answered by {}", answer.pod);
        let identity = shop.identity("db");
        test.mesh()
            .reported(&phone.node, test.began, "the pod's own account", |record| {
                record.outbound()
                    && record.field("dst.workload") == name
                    && record.field("dst.identity") == identity
            })
            .await?;
    }
    let mut addresses: Vec<String> = shop
        .pods_of("db")
        .await?
        .into_iter()
        .map(|pod| pod.ip)
        .collect();
    addresses.sort();
    eventually("the name of all leads to each", || async {
        let names = phone.sh("dig +short +search db | sort").await?.success()?;
        ensure!(
            names
                .split_whitespace()
                .eq(addresses.iter().map(String::as_str)),
            "dig said {names:?}, the pods are {addresses:?}"
        );
        Ok(())
    })
    .await?;
    phone.reaches("http://db:8080/").await?;
    Ok(())
}

/// A Service that is another name for a third.
pub(super) async fn an_external_name_leads_to_the_service_it_names(test: &Test) -> Result<()> {
    let (shop, other) = (test.ambient("shop").await?, test.ambient("other").await?);
    other.server("web").start().await?;
    let phone = shop.client("phone").start().await?;
    shop.apply(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: alias}}\nspec: {{type: ExternalName, externalName: web.{}.svc.cluster.local}}", other.name)).await?;
    let answer = phone.reaches("http://alias/").await?;
    ensure!(answer.pod == "web", "{answer:?}");
    let identity = other.identity("web");
    test.mesh()
        .reported(&phone.node, test.began, "the call in the mesh", |record| {
            record.outbound() && record.field("dst.identity") == identity
        })
        .await?;
    Ok(())
}

/// Both families, by name and by address, across nodes.
pub(super) async fn a_dual_stack_service_is_reached_by_both_families(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let web = shop
        .server("web")
        .without_service()
        .on(test.node(0))
        .start()
        .await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    shop.apply("apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ipFamilyPolicy: RequireDualStack, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}").await?;
    phone.reaches("http://web/").await?;
    for family in ["-4", "-6"] {
        let line = format!("curl {family} --silent --show-error --fail --max-time 5 http://web/");
        eventually(&line, || async {
            let said = phone.sh(&line).await?.success()?;
            ensure!(said.contains("\"web\""), "{said}");
            Ok(())
        })
        .await?;
    }
    let second = web.ips.get(1).context("the pod has no second address")?;
    let answer = phone.reaches(&format!("http://[{second}]:8080/")).await?;
    ensure!(
        phone.ips.contains(&answer.from) && answer.from.contains(':'),
        "the server saw {}",
        answer.from
    );
    let identity = shop.identity("web");
    test.mesh()
        .reported(&phone.node, test.began, "the tunnel over IPv6", |record| {
            record.outbound()
                && record.field("dst.identity") == identity
                && record.field("dst.addr").starts_with('[')
        })
        .await?;
    Ok(())
}

/// The API server and the cluster's name server, from inside the mesh.
pub(super) async fn the_api_server_and_the_name_server_are_reached_from_the_mesh(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let phone = shop.client("phone").start().await?;
    let ask = "curl --silent --fail --max-time 5 --cacert /var/run/secrets/kubernetes.io/serviceaccount/ca.crt https://kubernetes.default.svc/version";
    eventually("the API server tells its version", || async {
        let version = phone.sh(ask).await?.success()?;
        ensure!(version.contains("gitVersion"), "{version}");
        Ok(())
    })
    .await?;
    let address = test
        .cluster
        .object("default", "v1", "Service", "kubernetes")
        .await?
        .data["spec"]["clusterIP"]
        .clone();
    for transport in ["+notcp", "+tcp"] {
        let said = phone
            .exec([
                "dig",
                transport,
                "+short",
                "kubernetes.default.svc.cluster.local",
            ])
            .await?
            .success()?;
        ensure!(
            address == said.trim(),
            "{transport}: {said:?} instead of {address}"
        );
    }
    let said = phone
        .sh("dig no-such-name.shop.svc.cluster.local")
        .await?
        .success()?;
    ensure!(said.contains("NXDOMAIN"), "{said}");
    Ok(())
}
