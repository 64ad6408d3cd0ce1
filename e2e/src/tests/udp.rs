//! Datagrams of a namespace that opted in: in tunnels, under the policies of connections, and told of.

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt;
use serde_json::Value;

use crate::{
    capture::Capture,
    mesh::Part,
    node::Node,
    place::Place,
    pod::{Answer, Pod},
    program::ambit,
    run::Test,
    wait::eventually,
};

/// The label that opts in.
const OPT_IN: (&str, Option<&str>) = (api::k8s::labels::UDP, Some(api::k8s::labels::UDP_ENABLED));

/// A Service of UDP before our server, which answers datagrams on 9000.
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: echo}
spec: {selector: {app: web}, ports: [{name: echo, protocol: UDP, port: 5300, targetPort: 9000}]}
";

/// One datagram, and who answered it.
async fn sends(pod: &Pod, to: &str) -> Result<Answer> {
    let said = pod.exec(["/opt/e2e/app", "datagram", to]).await?;
    let text = said.success()?;
    serde_json::from_str(&text).with_context(|| format!("{to} answered {text}"))
}

/// Three in a row are answered: news of a change reaches one proxy before another.
async fn reaches(pod: &Pod, to: &str) -> Result<Answer> {
    eventually(&format!("{} reaches {to} by UDP", pod.name), || async {
        for _ in 0..2 {
            sends(pod, to).await?;
        }
        sends(pod, to).await
    })
    .await
}

/// None of three is answered.
async fn is_refused(pod: &Pod, to: &str) -> Result<()> {
    eventually(
        &format!("{} is refused at {to} by UDP", pod.name),
        || async {
            for _ in 0..3 {
                let answer = sends(pod, to).await;
                ensure!(answer.is_err(), "answered: {answer:?}");
            }
            Ok(())
        },
    )
    .await
}

async fn flows(test: &Test, node: &Node, way: &str) -> Result<f64> {
    let pod = test.mesh().pod_on(Part::Ztunnel, &node.name).await?;
    let metrics = test.mesh().metrics(&pod.name_any(), Part::Ztunnel).await?;
    Ok(metrics.sum("ambit_udp_flows_total", &[("way", way)]))
}

/// Waits until a node's ztunnel has counted a flow.
async fn counted(test: &Test, node: &Node, way: &str) -> Result<()> {
    let what = format!("a flow is counted on {} as {way}", node.name);
    eventually(&what, || async {
        let count = flows(test, node, way).await?;
        ensure!(count >= 1.0, "{count}");
        Ok(())
    })
    .await
}

/// Flows of this namespace that are open, as `ambit connections` shows them.
async fn open(place: &Place) -> Result<Vec<Value>> {
    let words = ["connections", "--protocol", "udp", "-o", "json", "-n"];
    let shown = ambit(&[&words[..], &[&place.name]].concat()).await?;
    let shown: Value = shown.with(0)?.json()?;
    Ok(shown["connections"].as_array().cloned().unwrap_or_default())
}

/// Between two nodes datagrams cross in tunnels only, the server sees its client, and a policy is theirs as it is that of
/// connections: the refusal says why at both ends, and who asks before is told.
pub(super) async fn datagrams_cross_nodes_in_a_tunnel_and_a_policy_refuses_them_by_name(
    test: &Test,
) -> Result<()> {
    let (shop, outside) = (test.ambient("shop").await?, test.plain("outside").await?);
    shop.label(OPT_IN.0, OPT_IN.1).await?;
    let (here, there, mesh) = (test.node(0), test.node(1), test.mesh());
    let web = shop.server("web").on(there).start().await?;
    shop.apply(SERVICE).await?;
    let friend = shop.client("friend").on(here).start().await?;
    let stranger = shop.client("stranger").on(here).start().await?;
    let old = outside.server("old").on(there).start().await?;
    let reader = outside.client("reader").on(here).start().await?;

    let answer = reaches(&friend, "echo:5300").await?;
    ensure!(answer.pod == web.name, "{answer:?}");
    ensure!(
        friend.ips.contains(&answer.from),
        "{answer:?} is not {:?}",
        friend.ips
    );
    reaches(&stranger, "echo:5300").await?;
    eventually("open flows that are listed at both ends", || async {
        sends(&friend, "echo:5300").await?;
        let open = open(&shop).await?;
        for direction in ["inbound", "outbound"] {
            let is = |it: &&Value| {
                it["direction"] == direction
                    && it["source"]["pod"] == "friend"
                    && it["carried"] == "tunnel"
            };
            ensure!(open.iter().any(|it| is(&it)), "{direction}: {open:?}");
        }
        Ok(())
    })
    .await?;
    counted(test, here, "tunnel").await?;
    counted(test, there, "arrived").await?;

    // On the link: nothing of theirs but TCP. That of two pods outside the mesh is seen, so that theirs would be.
    let everyone: Vec<String> = (friend.ips.iter().chain(&reader.ips))
        .map(|ip| format!("host {ip}"))
        .collect();
    let capture = Capture::start(here, "eth0", &shop.name, &everyone.join(" or ")).await?;
    reaches(&friend, "echo:5300").await?;
    reaches(&reader, &old.at(9000)).await?;
    let packets = capture
        .end_with("the datagrams of the pods outside the mesh", |packet| {
            packet.between(&reader.ips, &old.ips) && packet.tcp.is_none()
        })
        .await?;
    let meshed = packets
        .iter()
        .filter(|it| it.between(&friend.ips, &web.ips));
    let (mut tunnelled, mut other) = (0, 0);
    for packet in meshed {
        let is_tunnel =
            packet.tcp.is_some() && [packet.from.port(), packet.to.port()].contains(&15008);
        *(if is_tunnel {
            &mut tunnelled
        } else {
            &mut other
        }) += 1;
    }
    ensure!(
        tunnelled > 0 && other == 0,
        "{tunnelled} packets of tunnels, {other} others"
    );

    let principal = shop.identity("stranger").replace("spiffe://", "");
    shop.apply(&format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: rule}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n  \
         action: DENY\n  rules: [{{from: [{{source: {{principals: [{principal}]}}}}], to: [{{operation: {{ports: ['9000']}}}}]}}]"
    ))
    .await?;
    is_refused(&stranger, "echo:5300").await?;
    reaches(&friend, "echo:5300").await?;
    let policy = format!("{}/rule", shop.name);
    let of_stranger = |record: &lab::AccessRecord| {
        record.field("protocol") == "udp"
            && record.field("src.identity") == shop.identity("stranger")
            && !record.error().is_empty()
    };
    let denial = mesh.reported(&web.node, test.began, "the denial", |record| {
        record.inbound() && of_stranger(record) && record.error().contains(&policy)
    });
    let denial = denial.await?;
    ensure!(denial.field("response_flags") == "DENY", "{denial:?}");
    let told = mesh.reported(&stranger.node, test.began, "that it was denied", |record| {
        record.outbound() && of_stranger(record) && record.error().contains("401")
    });
    told.await?;
    counted(test, there, "refused").await?;

    let ask = |who: &Pod| format!("{}/{}", who.namespace, who.name);
    ambit(&["explain", "--udp", &ask(&stranger), "echo:5300"])
        .await?
        .with(1)?
        .says("by UDP: REFUSED (decided at the destination)")?
        .says(&format!("explicitly denied by: {policy}"))?;
    let friends = ambit(&["explain", "--udp", &ask(&friend), "echo:5300"]).await?;
    friends.with(0)?.says("tunnel to")?;

    // A flow that ends as it should has its line too: that of a client who goes.
    let gone = friend.ips.clone();
    friend.delete().await?;
    let ended = mesh.reported(&web.node, test.began, "the flow of who went", |record| {
        record.inbound()
            && record.field("protocol") == "udp"
            && gone
                .iter()
                .any(|ip| record.field("src.addr").contains(ip.as_str()))
            && record.number("bytes_sent") > 0
    });
    let ended = ended.await?;
    ensure!(
        ended.field("src.identity") == shop.identity("friend"),
        "{ended:?}"
    );
    Ok(())
}

/// What comes in the clear is judged as a client without identity: STRICT refuses it, and the line says so. A label that is taken
/// away lets it pass as ever.
pub(super) async fn a_plain_datagram_is_refused_in_strict_where_the_server_opted_in(
    test: &Test,
) -> Result<()> {
    let (shop, outside) = (test.ambient("shop").await?, test.plain("outside").await?);
    shop.label(OPT_IN.0, OPT_IN.1).await?;
    let mesh = test.mesh();
    let web = shop.server("web").on(test.node(0)).start().await?;
    let reader = outside.client("reader").on(test.node(1)).start().await?;
    let to = web.at(9000);
    let answer = reaches(&reader, &to).await?;
    ensure!(reader.ips.contains(&answer.from), "{answer:?}");
    shop.apply(super::policy::STRICT).await?;
    is_refused(&reader, &to).await?;
    let refusal = mesh.reported(&web.node, test.began, "the refusal", |record| {
        let from = record.field("src.addr");
        record.inbound()
            && record.field("protocol") == "udp"
            && reader.ips.iter().any(|ip| from.contains(ip.as_str()))
            && !record.error().is_empty()
    });
    let refusal = refusal.await?;
    ensure!(refusal.error().contains("policy rejection"), "{refusal:?}");
    shop.label(OPT_IN.0, None).await?;
    reaches(&reader, &to).await.map(drop)
}
