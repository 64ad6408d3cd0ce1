//! Who talks to whom, as both ends see it.

use anyhow::{Result, ensure};

use crate::run::Test;

/// Both ends report the client's account, and the client's own address arrives at the server.
pub(super) async fn across_nodes_the_server_side_sees_the_clients_account(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let web = shop.server("web").on(test.node(0)).start().await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    let answer = phone.asks("http://web/").await?;
    ensure!(
        answer.from == phone.ip,
        "the server saw {} instead of {}",
        answer.from,
        phone.ip
    );
    let (caller, called) = (shop.identity("phone"), shop.identity("web"));
    let inbound = test
        .mesh()
        .reported(&web.node, test.began, "the arrival from phone", |record| {
            record.inbound() && record.field("src.identity") == caller
        })
        .await?;
    ensure!(inbound.field("dst.identity") == called, "{inbound:?}");
    Ok(())
}
