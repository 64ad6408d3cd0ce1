//! Into the mesh and out of it while traffic runs: nothing is restarted, nothing is lost.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::{
    load::Tally,
    place::Place,
    pod::{Pod, Running},
    run::Test,
};

/// Clients and servers on two nodes, and traffic between them of all kinds.
struct Traffic {
    phone: Pod,
    near: Running,
    direct: Running,
    held: Running,
    everyone: Vec<Pod>,
}

impl Traffic {
    async fn start(test: &Test, shop: &Place) -> Result<Self> {
        shop.deployment("web", 3).await?;
        let phone = shop.client("phone").on(test.node(1)).start().await?;
        let fixed = shop.server("fixed").on(test.node(0)).start().await?;
        phone.reaches("http://web/").await?;
        phone.reaches("http://fixed/").await?;
        let mut everyone = shop.pods_of("web").await?;
        everyone.extend([phone.clone(), fixed.clone()]);
        Ok(Self {
            near: phone.load("http://web/", &[]).await?,
            direct: phone
                .load(
                    &format!("http://{}/", fixed.at(8080)),
                    &["--fresh", "5", "--kept", "2"],
                )
                .await?,
            held: phone.holds("fixed:9000").await?,
            phone,
            everyone,
        })
    }

    /// Nothing was lost: no request failed, no connection that was open ended.
    async fn untouched(self, test: &Test) -> Result<()> {
        // What is lost late counts too: both states get their share of the traffic.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let (service, direct): (Tally, Tally) =
            (self.near.tally().await?, self.direct.tally().await?);
        test.note(format!("to the service: {service}")).await;
        test.note(format!("to the pod: {direct}")).await;
        ensure!(
            service.failures() + direct.failures() == 0,
            "requests failed; to the service: {service}; to the pod: {direct}"
        );
        ensure!(
            service.fresh.answered > 20 && direct.kept.answered > 20,
            "hardly any traffic ran: {service}; {direct}"
        );
        self.held.still_held().await.map(drop)
    }
}

/// A namespace is labelled while it is busy.
pub(super) async fn a_busy_namespace_enters_the_mesh_and_nothing_fails(test: &Test) -> Result<()> {
    let shop = test.plain("shop").await?;
    let traffic = Traffic::start(test, &shop).await?;
    shop.enrol().await?;
    for pod in &traffic.everyone {
        pod.enrolled().await?;
    }
    let (caller, called) = (shop.identity("phone"), shop.identity("web"));
    test.mesh()
        .reported(
            &traffic.phone.node,
            test.began,
            "new connections with both identities",
            |record| {
                record.outbound()
                    && record.field("src.identity") == caller
                    && record.field("dst.identity") == called
            },
        )
        .await?;
    traffic.untouched(test).await
}

/// The label is taken off while it is busy.
pub(super) async fn a_busy_namespace_leaves_the_mesh_and_nothing_fails(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let traffic = Traffic::start(test, &shop).await?;
    shop.unenrol().await?;
    for pod in &traffic.everyone {
        pod.left_the_mesh().await?;
    }
    // Connections that the mesh carries already go on in it; new ones are the pods' own.
    traffic.phone.reaches("http://fixed/").await?;
    traffic.untouched(test).await
}

/// Pods of a Deployment are replaced while it is busy.
pub(super) async fn a_busy_deployment_is_replaced_and_nothing_fails(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.deployment("web", 3).await?;
    let phone = shop.client("phone").start().await?;
    phone.reaches("http://web/").await?;
    let load = phone.load("http://web/", &[]).await?;
    shop.restart("web").await?;
    let newest = shop.pods_of("web").await?;
    phone.reaches("http://web/").await?;
    let tally = load.tally().await?;
    test.note(tally.to_string()).await;
    ensure!(tally.failures() == 0, "{tally}");
    ensure!(
        newest
            .iter()
            .any(|pod| tally.fresh.by.contains_key(&pod.name)),
        "no new pod was ever reached: {tally}"
    );
    Ok(())
}

/// One pod of several is deleted while they are busy.
pub(super) async fn a_busy_pod_is_deleted_and_nothing_fails(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.deployment("web", 2).await?;
    let phone = shop.client("phone").start().await?;
    phone.reaches("http://web/").await?;
    let load = phone.load("http://web/", &[]).await?;
    for pod in shop.pods_of("web").await? {
        pod.delete().await?;
        shop.all_ready("web").await?;
    }
    let tally = load.tally().await?;
    test.note(tally.to_string()).await;
    ensure!(tally.failures() == 0, "{tally}");
    Ok(())
}
