//! What pods may call that the mesh does not know.

use anyhow::{Result, ensure};

use crate::{place::Place, run::Test};

/// An address of documentation (RFC 5737): nobody's, until a node of the test takes it.
const UNKNOWN: &str = "198.51.100.7";
const PORT: u16 = 8099;
const LABEL: &str = "ambit.io/egress";

/// The one destination that is open.
fn entry() -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: yonder}}\nspec:\n  hosts: [yonder.example]\n  addresses: [{UNKNOWN}]\n  \
         ports: [{{number: {PORT}, name: tcp-yonder}}]\n  resolution: NONE\n"
    )
}

/// A label closes a namespace to who is unknown, with the reason in the log; a ServiceEntry opens one destination, and is the
/// whole list; `log` lets everybody pass and says so.
pub(super) async fn a_label_closes_a_namespace_to_the_unknown_and_a_service_entry_opens_one(
    test: &Test,
) -> Result<()> {
    let (shop, outside) = (test.ambient("shop").await?, test.plain("outside").await?);
    let server = outside.server("yonder").on(test.node(0)).start().await?;
    let node = test.node(0);
    // The node has the address, and leads what comes there to the server.
    let open = format!(
        "ip address replace {UNKNOWN}/32 dev lo; \
         setsid socat TCP-LISTEN:{PORT},bind={UNKNOWN},fork,reuseaddr TCP:{} </dev/null >/dev/null 2>&1 & echo $! >/tmp/e2e-yonder",
        server.at(8080)
    );
    node.sh(&open).await?.success()?;
    let result = closed_and_opened(test, &shop).await;
    let close =
        format!("kill $(cat /tmp/e2e-yonder) || true; ip address delete {UNKNOWN}/32 dev lo");
    node.sh(&close).await?.success()?;
    result
}

async fn closed_and_opened(test: &Test, shop: &Place) -> Result<()> {
    let node = test.node(0);
    let phone = shop.client("phone").on(node).start().await?;
    let url = format!("http://{UNKNOWN}:{PORT}/");
    phone.reaches(&url).await?;

    shop.label(LABEL, Some("refuse")).await?;
    phone.is_refused(&url).await?;
    let why = format!(
        "egress refused by label {LABEL} of namespace {}: the mesh knows nobody at {UNKNOWN}:{PORT}",
        shop.name
    );
    let mesh = test.mesh();
    let refused = mesh.reported(&node.name, test.began, "the refusal", |it| {
        it.outbound() && it.error().contains(&why)
    });
    let refused = refused.await?;
    ensure!(refused.field("src.workload") == phone.name, "{refused:?}");

    shop.apply(&entry()).await?;
    phone.reaches(&url).await?;
    shop.remove(&entry()).await?;
    phone.is_refused(&url).await?;

    shop.label(LABEL, Some("log")).await?;
    phone.reaches(&url).await?;
    let logged = mesh.reported(&node.name, test.began, "who was let pass", |it| {
        it.outbound() && it.field("note").contains("egress logged by")
    });
    logged.await.map(drop)
}
