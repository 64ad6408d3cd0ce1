//! Who talks to whom, as both ends see it.

use anyhow::{Context as _, Result, ensure};

use crate::{
    node::Node,
    place::{DATAPLANE_MODE, Place},
    pod::Pod,
    run::Test,
    wait::eventually,
};

/// Both ends report the client's account, and the client's own address arrives at the server.
pub(super) async fn across_nodes_the_server_side_sees_the_clients_account(
    test: &Test,
) -> Result<()> {
    both_ends_know_each_other(test, test.node(0), test.node(1)).await
}

/// The same where one ztunnel serves both.
pub(super) async fn on_one_node_the_server_side_sees_the_clients_account(
    test: &Test,
) -> Result<()> {
    both_ends_know_each_other(test, test.node(1), test.node(1)).await
}

async fn both_ends_know_each_other(test: &Test, here: &Node, there: &Node) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let web = shop.server("web").on(there).start().await?;
    let phone = shop.client("phone").on(here).start().await?;
    let answer = phone.reaches("http://web/").await?;
    ensure!(
        answer.from == phone.ip,
        "the server saw {} instead of {}",
        answer.from,
        phone.ip
    );
    let (caller, called) = (shop.identity("phone"), shop.identity("web"));
    for (node, inbound) in [(&phone.node, false), (&web.node, true)] {
        let record = test
            .mesh()
            .reported(node, test.began, "phone calling web", |record| {
                record.inbound() == inbound
                    && record.field("src.identity") == caller
                    && record.field("dst.identity") == called
            })
            .await?;
        ensure!(
            record.field("dst.service").starts_with("web."),
            "{record:?}"
        );
    }
    Ok(())
}

/// An address that another pod gets is never answered under the name of the pod that had it, and the new pod is known by its own account.
pub(super) async fn a_reused_address_never_answers_for_the_pod_that_had_it(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    let first = shop.server("first").on(test.node(0)).start().await?;
    phone.reaches("http://first/").await?;
    let load = phone
        .load(
            "http://first/",
            &["--fresh", "20", "--kept", "2", "--patience", "3000"],
        )
        .await?;
    first.delete().await?;
    let second = take_over(test, &shop, &first).await?;
    let answer = phone.reaches("http://second/").await?;
    ensure!(answer.pod == "second", "{answer:?}");
    let tally = load.tally().await?;
    ensure!(
        tally
            .fresh
            .by
            .keys()
            .chain(tally.kept.by.keys())
            .all(|pod| pod == "first"),
        "the service of one was answered by the other: {tally}"
    );
    ensure!(
        tally.fresh.by.contains_key("first"),
        "the load never ran: {tally}"
    );
    let identity = shop.identity("second");
    test.mesh()
        .reported(
            &second.node,
            test.began,
            "the new pod under its own account",
            |record| record.inbound() && record.field("dst.identity") == identity,
        )
        .await?;
    // The old pod's account must never be seen receiving at this address once it was gone.
    let old = shop.identity("first");
    let records = test.mesh().access(&second.node, test.began).await?;
    let confused = records.iter().find(|record| {
        record.inbound()
            && record.field("dst.identity") == old
            && record.field("dst.workload") == "second"
    });
    ensure!(confused.is_none(), "{confused:?}");
    Ok(())
}

/// Starts a pod on the same node until it has the address of one that is gone.
async fn take_over(test: &Test, shop: &Place, gone: &Pod) -> Result<Pod> {
    let node = test.cluster.node(&gone.node)?;
    let (network, last) = gone.ip.rsplit_once('.').context("an IPv4 address")?;
    let before = last.parse::<u8>()? - 1;
    // host-local goes on after the address it gave last.
    let files = "$(ls -d /run/podnet/podnet /run/cni-ipam-state/* 2>/dev/null | head -n 1)/last_reserved_ip.0";
    eventually("a pod gets the address again", || async {
        node.own(&format!("printf %s {network}.{before} >{files}"))
            .await?
            .success()?;
        let second = shop.server("second").on(node).start().await?;
        if second.ip != gone.ip {
            second.delete().await?;
        }
        ensure!(
            second.ip == gone.ip,
            "it got {} instead of {}",
            second.ip,
            gone.ip
        );
        Ok(second)
    })
    .await
}

/// A pod may be taken out of a meshed namespace, and a pod of a plain one taken in, while it runs.
pub(super) async fn a_label_on_a_running_pod_wins_over_its_namespace(test: &Test) -> Result<()> {
    let (inside, outside) = (test.ambient("inside").await?, test.plain("outside").await?);
    let web = inside.server("web").start().await?;
    let other = outside.server("web").start().await?;
    web.enrolled().await?;
    inside.label_pod(&web, DATAPLANE_MODE, Some("none")).await?;
    outside
        .label_pod(&other, DATAPLANE_MODE, Some("ambient"))
        .await?;
    web.left_the_mesh().await?;
    other.enrolled().await?;
    inside.label_pod(&web, DATAPLANE_MODE, None).await?;
    web.enrolled().await?;
    Ok(())
}
