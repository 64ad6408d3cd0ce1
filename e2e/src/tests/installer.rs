//! Where the node agent puts its entry: into the network's configuration, or into one of its own. Loud: agents are replaced.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    mesh::{Part, SYSTEM},
    node::Node,
    run::Test,
    wait::eventually,
};

const NETWORK: &str = "/etc/cni/net.d/10-*.conflist";
const OWN: &str = "/etc/cni/net.d/02-istio-cni.conflist";

/// With a configuration of its own the network may write its file as it likes; back again, nothing of it is left. Traffic runs on.
pub(super) async fn the_agents_own_configuration_outlives_what_the_network_writes(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.server("web").on(test.node(0)).start().await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    phone.reaches("http://web/").await?;
    let load = phone.load("http://web/", &[]).await?;
    owned(test, true).await?;
    let outcome = async {
        let node = test.node(0);
        ensure!(has_plugin(node, OWN).await?, "{OWN} is without the plugin");
        // As the network's own installer would: its file again, without us, and with something new in it.
        let mut chain: Value = serde_json::from_str(&node.file(NETWORK).await?)?;
        let plugins = chain["plugins"].as_array_mut().context("no plugins")?;
        plugins.retain(|plugin| plugin["type"] != "istio-cni");
        plugins[0]["e2e"] = json!("new");
        let line = format!(
            "file=$(echo {NETWORK}); cat >$file.new <<'EOF' && mv $file.new $file\n{chain}\nEOF"
        );
        node.own(&line).await?.success()?;
        eventually("our configuration follows the network's", || async {
            let own = node.file(OWN).await?;
            ensure!(own.contains("e2e"), "{own}");
            Ok(())
        })
        .await?;
        ensure!(has_plugin(node, OWN).await?, "it lost the plugin");
        ensure!(
            !has_plugin(node, NETWORK).await?,
            "the network's file is its own"
        );
        let late = shop.server("late").on(node).start().await?;
        late.enrolled().await?;
        phone.reaches("http://late/").await.map(drop)
    }
    .await;
    owned(test, false).await?;
    outcome?;
    for node in test.cluster.workers() {
        eventually(&format!("{} is chained again", node.name), || async {
            ensure!(has_plugin(node, NETWORK).await?, "it is not");
            let left = node.own(&format!("test ! -e {OWN}")).await?;
            ensure!(left.success, "{OWN} stayed");
            Ok(())
        })
        .await?;
    }
    let last = shop.server("last").on(test.node(0)).start().await?;
    last.enrolled().await?;
    let tally = load.tally().await?;
    ensure!(tally.failures() == 0, "{tally}");
    Ok(())
}

/// Sets whether agents keep a configuration of their own, and replaces them.
async fn owned(test: &Test, yes: bool) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(test.cluster.client.clone(), SYSTEM);
    let patch = json!({ "data": { "ISTIO_OWNED_CNI_CONFIG": yes.to_string() } });
    maps.patch(
        "istio-cni-config",
        &PatchParams::default(),
        &Patch::Merge(patch),
    )
    .await?;
    test.mesh().restart(Part::Agent).await
}

async fn has_plugin(node: &Node, file: &str) -> Result<bool> {
    let list: Value = serde_json::from_str(&node.file(file).await?)?;
    let plugins = list["plugins"].as_array().context("no plugins")?;
    Ok(plugins.iter().any(|plugin| plugin["type"] == "istio-cni"))
}
