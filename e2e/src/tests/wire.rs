//! What stands between two nodes, and what an address is worth.

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join;
use k8s_openapi::jiff::Timestamp;
use kube::api::LogParams;

use super::policy::STRICT;
use crate::{
    capture::{Capture, Packet, stream, tls},
    node::Node,
    place::{Place, PodBuilder},
    pod::Pod,
    run::Test,
    wait::eventually,
};

/// Between two meshed pods the link carries TLS to port 15008, in both families and by name and address alike, and nothing else; two pods
/// outside the mesh saying the same can be read.
pub(super) async fn between_nodes_only_tls_to_15008_crosses_the_link(test: &Test) -> Result<()> {
    const SECRET: &str = "the-secret-of-this-test";
    let (shop, outside) = (test.ambient("shop").await?, test.plain("outside").await?);
    let (here, there) = (test.node(0), test.node(1));
    let web = shop.server("web").on(there).start().await?;
    let old = outside.server("old").on(there).start().await?;
    let reader = outside.client("reader").on(here).start().await?;
    let scout = shop.client("scout").on(here).start().await?;
    let phone = shop.client("phone").on(here).start().await?;
    let (v4, v6) = (&web.ips[0], web.ips.get(1).context("no second family")?);
    let urls = [
        "http://web".to_owned(),
        format!("http://{v4}:8080"),
        format!("http://[{v6}]:8080"),
    ];
    // The scout's node learns where web is, and the phone has not opened anything yet: its tunnel is seen from its first byte.
    for url in &urls {
        tunnelled(test, &scout, url).await?;
    }
    let everyone: Vec<String> = (phone.ips.iter().chain(&reader.ips))
        .map(|ip| format!("host {ip}"))
        .collect();
    let capture = Capture::start(here, "eth0", &shop.name, &everyone.join(" or ")).await?;
    for url in &urls {
        phone.asks(&format!("{url}/{SECRET}")).await?;
    }
    reader
        .asks(&format!("http://{}/{SECRET}", old.at(8080)))
        .await?;
    let packets = capture
        .end_with("the secret of the pods outside the mesh", |packet| {
            packet.between(&reader.ips, &old.ips) && packet.carries(SECRET)
        })
        .await?;
    let meshed: Vec<Packet> = packets
        .into_iter()
        .filter(|packet| packet.between(&phone.ips, &web.ips))
        .collect();
    only_tunnels(&meshed, &phone)?;
    ensure!(
        !meshed.iter().any(|packet| packet.carries(SECRET)),
        "the secret could be read on the link"
    );
    Ok(())
}

/// Waits until a pod's calls go through a tunnel: a node that has not heard of the server yet lets them pass as they are.
async fn tunnelled(test: &Test, pod: &Pod, url: &str) -> Result<()> {
    let from = pod.ips.clone();
    eventually(&format!("{} is tunnelled to {url}", pod.name), || async {
        let since = Timestamp::now();
        pod.asks(url).await?;
        let records = test.mesh().access(&pod.node, since).await?;
        let mut own = records.iter().filter(|record| {
            let source = record.field("src.addr");
            record.outbound() && from.iter().any(|ip| source.contains(ip.as_str()))
        });
        ensure!(
            own.any(|record| !record.field("dst.hbone_addr").is_empty()),
            "{records:?}"
        );
        Ok(())
    })
    .await
}

/// Whether these packets are TLS to 15008 in both families and in both directions, each connection from its first byte.
fn only_tunnels(packets: &[Packet], client: &Pod) -> Result<()> {
    let mut tunnels = Vec::new();
    for packet in packets {
        let outward = client.ips.contains(&packet.from.ip().to_string());
        let (near, far) = if outward {
            (packet.from, packet.to)
        } else {
            (packet.to, packet.from)
        };
        ensure!(
            packet.tcp.is_some() && far.port() == 15008,
            "a packet outside the tunnel: {packet:?}"
        );
        if !tunnels.contains(&(near, far)) {
            tunnels.push((near, far));
        }
    }
    for family in [4, 6] {
        let is = |(near, _): &&(std::net::SocketAddr, _)| near.is_ipv4() == (family == 4);
        let count = tunnels.iter().filter(is).count();
        ensure!(count > 0, "no tunnel over IPv{family} was seen");
    }
    for (near, far) in tunnels {
        for (from, to) in [(near, far), (far, near)] {
            let records =
                tls(&stream(packets, from, to)).with_context(|| format!("{from} to {to}"))?;
            ensure!(records > 2, "{from} to {to}: {records} records of TLS");
        }
    }
    Ok(())
}

/// A pod that gets the address of another does not get its rights: neither where one ztunnel serves client and server nor across nodes. It asks
/// from its first instruction on, while the mesh may still take it for the other.
pub(super) async fn an_address_that_changes_hands_brings_no_rights_along(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.server("web").on(test.node(0)).start().await?;
    let alice = shop.identity("alice").replace("spiffe://", "");
    shop.apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: only-alice}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  \
         rules: [{{from: [{{source: {{principals: [{alice}]}}}}]}}]"
    ))
    .await?;
    let stranger = shop.client("stranger").on(test.node(1)).start().await?;
    stranger.is_refused("http://web/").await?;
    try_join(
        Box::pin(inherits_nothing(test, &shop, test.node(0))),
        Box::pin(inherits_nothing(test, &shop, test.node(1))),
    )
    .await?;
    Ok(())
}

/// Alice on this node is served; mallory, who gets her address, is not.
async fn inherits_nothing(test: &Test, shop: &Place, node: &Node) -> Result<()> {
    let name = |person: &str| format!("{person}-on-{}", node.name);
    let alice = shop.client(&name("alice")).account("alice").on(node);
    let alice = alice.start().await?;
    alice.reaches("http://web/").await?;
    let held = alice.holds("web:9000").await?;
    alice.delete().await?;
    drop(held);
    let mallory = || impatient(shop, &name("mallory"));
    let mallory = take_over(node, &alice.ip, mallory).await?;
    let answers = answers(&mallory).await?;
    ensure!(
        answers.iter().all(|code| code == "000"),
        "mallory at alice's address was served on {}: {answers:?}",
        node.name
    );
    let (address, identity) = (format!("{}:", mallory.ip), shop.identity("mallory"));
    let refusal = test
        .mesh()
        .reported(
            &test.node(0).name,
            test.began,
            "mallory's refusal",
            |record| {
                record.inbound()
                    && record.field("src.addr").starts_with(&address)
                    && record.field("src.identity") == identity
            },
        )
        .await?;
    ensure!(!refusal.error().is_empty(), "{refusal:?}");
    Ok(())
}

/// Asks thirty times from its first instruction on, and says how it went.
fn impatient(shop: &Place, name: &str) -> PodBuilder {
    let script = "for _ in $(seq 30); do curl --silent --output /dev/null --max-time 5 --write-out '%{http_code}\\n' http://web/; done; echo done; exec sleep infinity";
    shop.pod(name, &["sh", "-c", script]).account("mallory")
}

/// What it said, once it is done.
async fn answers(pod: &Pod) -> Result<Vec<String>> {
    eventually("mallory has asked thirty times", || async {
        let log = pod.api().logs(&pod.name, &LogParams::default()).await?;
        let mut lines: Vec<String> = log.lines().map(Into::into).collect();
        ensure!(lines.pop().as_deref() == Some("done"), "so far: {log:?}");
        ensure!(lines.len() == 30, "{} answers", lines.len());
        Ok(lines)
    })
    .await
}

/// While the address of a server goes to another pod, no connection to it reaches the new pod under the old one's identity, nor the other way
/// round: who answered and whom the client's ztunnel spoke to are the same, connection by connection.
pub(super) async fn an_address_that_changes_hands_is_reached_under_the_right_identity_only(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.apply(STRICT).await?;
    let (here, there) = (test.node(0), test.node(1));
    let first = shop.server("first").on(there).start().await?;
    let url = format!("http://{}/", first.at(8080));
    let scout = shop.client("scout").on(here).start().await?;
    let phone = shop.client("phone").on(here).start().await?;
    scout.reaches(&url).await?;
    let load = phone
        .load(
            &url,
            &[
                "--fresh",
                "30",
                "--kept",
                "0",
                "--patience",
                &PATIENCE.to_string(),
            ],
        )
        .await?;
    let to = |who: &'static str| reached(test, &phone, shop.identity(who));
    eventually("the load is under way", || async {
        ensure!(to("first").await? > 0, "nothing has arrived");
        Ok(())
    })
    .await?;
    first.delete().await?;
    take_over(there, &first.ip, || shop.server("second")).await?;
    eventually("the new pod answers at the old address", || async {
        ensure!(to("second").await? > 0, "nothing has arrived");
        Ok(())
    })
    .await?;
    let tally = load.tally().await?;
    test.note(tally.fresh.to_string()).await;
    eventually("every answer has its line in the log", || async {
        for who in ["first", "second"] {
            let answered = tally.fresh.by.get(who).copied().unwrap_or(0);
            let reported = to(who).await?;
            ensure!(
                answered > 0 && answered == reported,
                "{who} answered {answered} times, and was spoken to {reported} times: {tally}"
            );
        }
        Ok(())
    })
    .await
}

/// How long that client waits for an answer, in milliseconds: none of the moments at which a kernel tries again to connect.
const PATIENCE: u64 = 5000;

/// How many of a client's connections ended well with a server of this identity while the client was there to hear it: a
/// connection that is opened at the second try may outlast its patience.
async fn reached(test: &Test, client: &Pod, identity: String) -> Result<u64> {
    let from = format!("{}:", client.ip);
    let records = test.mesh().access(&client.node, test.began).await?;
    let well = records.iter().filter(|record| {
        record.outbound()
            && record.field("src.addr").starts_with(&from)
            && record.field("dst.identity") == identity
            && record.error().is_empty()
            && record
                .field("duration")
                .trim_end_matches("ms")
                .parse()
                .is_ok_and(|took: u64| took < PATIENCE)
    });
    Ok(well.count() as u64)
}

/// Starts pods on a node until one has this address.
async fn take_over(node: &Node, address: &str, pod: impl Fn() -> PodBuilder) -> Result<Pod> {
    let (network, last) = address.rsplit_once('.').context("an IPv4 address")?;
    let before = last.parse::<u8>()? - 1;
    // The node's address management (host-local) goes on after the address that it gave last.
    let line = format!(
        "printf %s {network}.{before} >$(ls -d /run/podnet/podnet /run/cni-ipam-state/* 2>/dev/null | head -n 1)/last_reserved_ip.0"
    );
    eventually(&format!("a pod gets {address} again"), || async {
        node.own(&line).await?.success()?;
        let taken = pod().on(node).start().await?;
        if taken.ip != address {
            taken.delete().await?;
        }
        ensure!(taken.ip == address, "it got {}", taken.ip);
        Ok(taken)
    })
    .await
}
