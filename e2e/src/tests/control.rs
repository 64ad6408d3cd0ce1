//! The control plane loses one of its replicas while users write. Loud: it has part in everything.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt};

use crate::{
    mesh::{Part, SYSTEM},
    place::Place,
    run::Test,
    wait::eventually,
};

/// Who gives addresses to ServiceEntries, and who writes statuses of policies.
const LEASES: [&str; 2] = ["istio-ip-autoallocate", "istio-status-leader"];
const ENTRY: (&str, &str) = ("networking.istio.io/v1", "ServiceEntry");
const POLICY: (&str, &str) = ("security.istio.io/v1", "AuthorizationPolicy");
/// Written before, while and after another takes over.
const WRITES: usize = 30;

/// A replica that leads is killed with no chance to hand over. Another leads, and nothing that was written meanwhile goes without
/// its address or its status; traffic does not notice.
pub(super) async fn the_leader_is_killed_under_writes_and_another_goes_on(
    test: &Test,
) -> Result<()> {
    test.mesh().well().await?;
    let shop = test.ambient("shop").await?;
    shop.server("web").on(test.node(0)).start().await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    phone.reaches("http://web/").await?;
    let load = phone.load("http://web/", &[]).await?;

    write(&shop, 0).await?;
    answered(test, &shop, 0).await?;
    let killed = holder(test, LEASES[0]).await?;
    let writes = async {
        for number in 1..WRITES {
            write(&shop, number).await?;
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
        Ok(())
    };
    let (written, taken) = tokio::join!(writes, replaced(test, &killed));
    written.and(taken)?;

    let mut given = BTreeSet::new();
    for number in 0..WRITES {
        for address in answered(test, &shop, number).await? {
            ensure!(given.insert(address.clone()), "{address} was given twice");
        }
    }
    test.mesh().well().await?;
    let tally = load.tally().await?;
    test.note(tally.to_string()).await;
    ensure!(tally.failures() == 0, "{tally}");
    Ok(())
}

/// Kills the process that leads, and waits until others hold all that it held.
async fn replaced(test: &Test, killed: &str) -> Result<()> {
    let mut held = Vec::new();
    for lease in LEASES {
        if holder(test, lease).await? == killed {
            held.push(lease);
        }
    }
    kill(test, killed).await?;
    for lease in held {
        eventually(&format!("another holds {lease}"), || async {
            let now = holder(test, lease).await?;
            ensure!(now != killed && !now.is_empty(), "held by {now:?}");
            test.note(format!("{lease}: {killed}, then {now}")).await;
            Ok(())
        })
        .await?;
    }
    Ok(())
}

async fn holder(test: &Test, lease: &str) -> Result<String> {
    let leases: Api<Lease> = Api::namespaced(test.cluster.client.clone(), SYSTEM);
    let spec = leases.get(lease).await?.spec;
    spec.and_then(|spec| spec.holder_identity)
        .with_context(|| format!("nobody has ever held {lease}"))
}

/// `kill -9`, on its node; the holder's name begins with its pod's.
async fn kill(test: &Test, holder: &str) -> Result<()> {
    let pods = test.mesh().staying(Part::Istiod).await?;
    let pod = pods
        .iter()
        .find(|pod| holder.starts_with(&format!("{}_", pod.name_any())))
        .with_context(|| format!("no pod of {holder}"))?;
    let name = pod.name_any();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    let node = test.cluster.node(node.unwrap_or_default())?;
    let line = format!(
        "for it in $(pgrep -x istiod-lite); do tr '\\0' '\\n' </proc/$it/environ | grep -qx POD_NAME={name} && kill -KILL $it && exit 0; done; exit 1"
    );
    node.own(&line)
        .await?
        .success()
        .with_context(|| format!("no process of {name} on {}", node.name))?;
    Ok(())
}

/// As a user does it: until the API server knows that the replica is dead it may ask that one about what is written, and refuses it.
async fn write(shop: &Place, number: usize) -> Result<()> {
    eventually(&format!("n{number} is written"), || async {
        let written = attempt(shop, number).await;
        let text = written
            .as_ref()
            .err()
            .map(|error| format!("{error:#}"))
            .unwrap_or_default();
        if written.is_err() && !text.contains("failed calling webhook") {
            return Ok(written);
        }
        written.map(Ok)
    })
    .await?
}

async fn attempt(shop: &Place, number: usize) -> Result<()> {
    shop.apply(&format!(
        "apiVersion: {}\nkind: {}\nmetadata: {{name: n{number}}}\nspec: {{hosts: [n{number}.example.com], resolution: DNS, ports: [{{number: 80, name: http, protocol: HTTP}}]}}\n",
        ENTRY.0, ENTRY.1
    ))
    .await?;
    shop.apply(&format!(
        "apiVersion: {}\nkind: {}\nmetadata: {{name: n{number}}}\nspec: {{selector: {{matchLabels: {{app: n{number}}}}}, rules: [{{}}]}}\n",
        POLICY.0, POLICY.1
    ))
    .await
}

/// The addresses that an entry was given, when its policy has its status too.
async fn answered(test: &Test, shop: &Place, number: usize) -> Result<Vec<String>> {
    let name = format!("n{number}");
    let said = test
        .cluster
        .condition(&shop.name, POLICY, &name, "ZtunnelAccepted")
        .await?;
    ensure!(said["status"] == "True", "{said}");
    eventually(&format!("{name} has its addresses"), || async {
        let entry = test
            .cluster
            .object(&shop.name, ENTRY.0, ENTRY.1, &name)
            .await?;
        let status = &entry.data["status"];
        let list = status["addresses"].as_array().into_iter().flatten();
        let list: Vec<String> = list
            .filter_map(|it| it["value"].as_str().map(str::to_owned))
            .collect();
        ensure!(list.len() == 2, "its status: {status}");
        Ok(list)
    })
    .await
}
