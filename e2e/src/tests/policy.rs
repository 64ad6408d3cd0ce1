//! Who may speak to whom: by name, by address, by port; and plain text where it is forbidden.

use anyhow::{Result, ensure};

use crate::{place::Place, pod::Pod, program::ambit, run::Test};

/// Nothing but the mesh's own tunnels.
pub(super) const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict}
spec: {mtls: {mode: STRICT}}
";

/// A policy named `rule` for the pods of `web`.
fn rule(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: rule}}\nspec:\n  selector: {{matchLabels: {{app: web}}}}\n{spec}"
    )
}

/// A server `web` on one node, and two clients on the other.
struct Cast {
    shop: Place,
    web: Pod,
    friend: Pod,
    stranger: Pod,
}

const WEB: &str = "http://web/";

impl Cast {
    async fn meet(test: &Test) -> Result<Self> {
        let shop = test.ambient("shop").await?;
        let web = shop.server("web").on(test.node(0)).start().await?;
        let friend = shop.client("friend").on(test.node(1)).start().await?;
        let stranger = shop.client("stranger").on(test.node(0)).start().await?;
        friend.reaches(WEB).await?;
        stranger.reaches(WEB).await?;
        Ok(Self {
            shop,
            web,
            friend,
            stranger,
        })
    }

    /// Under this policy the friend is served and the stranger refused.
    async fn only_the_friend_under(&self, policy: &str) -> Result<()> {
        self.shop.apply(policy).await?;
        self.stranger.is_refused(WEB).await?;
        self.friend.reaches(WEB).await?;
        Ok(())
    }
}

/// ALLOW by the client's identity; the refusal is reported with the policy's name.
pub(super) async fn a_policy_allows_by_principal_and_the_refusal_names_it(
    test: &Test,
) -> Result<()> {
    let cast = Cast::meet(test).await?;
    let principal = cast.shop.identity("friend").replace("spiffe://", "");
    let deny = cast.shop.identity("stranger");
    cast.only_the_friend_under(&rule(&format!(
        "  rules: [{{from: [{{source: {{principals: [{principal}]}}}}]}}]"
    )))
    .await?;
    let record = test
        .mesh()
        .reported(
            &cast.web.node,
            test.began,
            "the stranger's refusal",
            |record| {
                record.inbound()
                    && record.field("src.identity") == deny
                    && !record.error().is_empty()
            },
        )
        .await?;
    ensure!(
        record.error().contains("policy") || record.error().contains("allow"),
        "the refusal does not speak of policies: {record:?}"
    );
    Ok(())
}

/// DENY by identity names the policy in the log of the server's end.
pub(super) async fn a_policy_denies_by_principal_and_names_itself(test: &Test) -> Result<()> {
    let cast = Cast::meet(test).await?;
    let principal = cast.shop.identity("stranger").replace("spiffe://", "");
    cast.only_the_friend_under(&rule(&format!(
        "  action: DENY\n  rules: [{{from: [{{source: {{principals: [{principal}]}}}}]}}]"
    )))
    .await?;
    let name = format!("{}/rule", cast.shop.name);
    test.mesh()
        .reported(
            &cast.web.node,
            test.began,
            "a denial that names the policy",
            |record| record.inbound() && record.error().contains(&name),
        )
        .await?;
    explained(&cast, &name).await
}

/// The live proxies say the same to who asks before trying.
async fn explained(cast: &Cast, policy: &str) -> Result<()> {
    let ask = |who: &Pod| format!("{}/{}", who.namespace, who.name);
    let stranger = ambit(&["explain", &ask(&cast.stranger), "web:80"]).await?;
    stranger
        .with(1)?
        .says("REFUSED (decided at the destination)")?
        .says(&format!("explicitly denied by: {policy}"))?
        .says("must not match any more")?;
    let friend = ambit(&["explain", &ask(&cast.friend), "web:80"]).await?;
    friend
        .with(0)?
        .says("ALLOWED (decided at the destination)")?;
    ambit(&["connections", "-n", &cast.shop.name])
        .await?
        .with(0)?;
    let busy = ambit(&["top", "--once", "-n", &cast.shop.name]).await?;
    busy.with(0)?.says("stranger").map(drop)
}

/// ALLOW by service account.
pub(super) async fn a_policy_allows_by_service_account(test: &Test) -> Result<()> {
    let cast = Cast::meet(test).await?;
    let account = format!("{}/friend", cast.shop.name);
    cast.only_the_friend_under(&rule(&format!(
        "  rules: [{{from: [{{source: {{serviceAccounts: [{account}]}}}}]}}]"
    )))
    .await
}

/// ALLOW by namespace.
pub(super) async fn a_policy_allows_by_namespace(test: &Test) -> Result<()> {
    let cast = Cast::meet(test).await?;
    let elsewhere = test.ambient("elsewhere").await?;
    let guest = elsewhere.client("guest").start().await?;
    let url = format!("http://web.{}/", cast.shop.name);
    guest.reaches(&url).await?;
    cast.shop
        .apply(&rule(&format!(
            "  rules: [{{from: [{{source: {{namespaces: [{}]}}}}]}}]",
            cast.shop.name
        )))
        .await?;
    guest.is_refused(&url).await?;
    cast.friend.reaches(WEB).await?;
    Ok(())
}

/// ALLOW by address.
pub(super) async fn a_policy_allows_by_address(test: &Test) -> Result<()> {
    let cast = Cast::meet(test).await?;
    let block = &cast.friend.ip;
    cast.only_the_friend_under(&rule(&format!(
        "  rules: [{{from: [{{source: {{ipBlocks: [{block}]}}}}]}}]"
    )))
    .await
}

/// DENY by port leaves the others.
pub(super) async fn a_policy_denies_one_port_and_leaves_the_other(test: &Test) -> Result<()> {
    let cast = Cast::meet(test).await?;
    cast.shop
        .apply(&rule(
            "  action: DENY\n  rules: [{to: [{operation: {ports: ['8080']}}]}]",
        ))
        .await?;
    cast.friend.is_refused(WEB).await?;
    echoes(&cast.friend, "web").await
}

/// A selector leaves everybody else alone.
pub(super) async fn a_policy_with_a_selector_leaves_other_pods_alone(test: &Test) -> Result<()> {
    let cast = Cast::meet(test).await?;
    let other = cast.shop.server("other").start().await?;
    cast.shop
        .apply(&rule("  action: DENY\n  rules: [{}]"))
        .await?;
    cast.friend.is_refused(WEB).await?;
    cast.friend
        .reaches(&format!("http://{}/", other.at(8080)))
        .await?;
    Ok(())
}

/// What one policy denies, no other allows.
pub(super) async fn deny_comes_before_allow(test: &Test) -> Result<()> {
    let cast = Cast::meet(test).await?;
    let principal = cast.shop.identity("stranger").replace("spiffe://", "");
    let allow = rule("  rules: [{}]").replace("name: rule", "name: everybody");
    cast.shop.apply(&allow).await?;
    cast.only_the_friend_under(&rule(&format!(
        "  action: DENY\n  rules: [{{from: [{{source: {{principals: [{principal}]}}}}]}}]"
    )))
    .await?;
    cast.shop.remove(&rule("")).await?;
    cast.stranger.reaches(WEB).await?;
    Ok(())
}

/// A policy without rules denies all, until it is gone.
pub(super) async fn a_policy_without_rules_denies_everybody(test: &Test) -> Result<()> {
    let cast = Cast::meet(test).await?;
    let nothing = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nothing}\nspec: {}";
    cast.shop.apply(nothing).await?;
    cast.friend.is_refused(WEB).await?;
    cast.stranger.is_refused(WEB).await?;
    cast.shop.remove(nothing).await?;
    cast.friend.reaches(WEB).await?;
    Ok(())
}

/// A policy that begins to deny ends what is open.
pub(super) async fn a_new_denial_ends_connections_that_are_open(test: &Test) -> Result<()> {
    let cast = Cast::meet(test).await?;
    let held = cast.stranger.holds("web:9000").await?;
    let principal = cast.shop.identity("stranger").replace("spiffe://", "");
    cast.only_the_friend_under(&rule(&format!(
        "  action: DENY\n  rules: [{{from: [{{source: {{principals: [{principal}]}}}}]}}]"
    )))
    .await?;
    held.was_broken().await?;
    Ok(())
}

/// Plain text is served in PERMISSIVE, both ways, and refused in STRICT; the other way it stays open.
pub(super) async fn plain_text_passes_in_permissive_and_is_refused_in_strict(
    test: &Test,
) -> Result<()> {
    let (shop, outside) = (test.ambient("shop").await?, test.plain("outside").await?);
    let web = shop.server("web").on(test.node(0)).start().await?;
    let phone = shop.client("phone").on(test.node(0)).start().await?;
    let near = outside.client("near").on(test.node(0)).start().await?;
    let far = outside.client("far").on(test.node(1)).start().await?;
    outside.server("old").on(test.node(1)).start().await?;
    let (in_mesh, out_of_mesh) = (
        format!("http://web.{}/", shop.name),
        format!("http://old.{}/", outside.name),
    );
    let direct = format!("http://{}/", web.at(8080));
    for client in [&near, &far] {
        let answer = client.reaches(&in_mesh).await?;
        ensure!(
            answer.from == client.ip,
            "the server saw {} instead of {}",
            answer.from,
            client.ip
        );
        client.reaches(&direct).await?;
    }
    phone.reaches(&out_of_mesh).await?;
    shop.apply(STRICT).await?;
    for client in [&near, &far] {
        client.is_refused(&in_mesh).await?;
        client.is_refused(&direct).await?;
    }
    phone.reaches(&in_mesh).await?;
    phone.reaches(&out_of_mesh).await?;
    Ok(())
}

/// STRICT with a port that is let off.
pub(super) async fn a_port_may_be_let_off_strict(test: &Test) -> Result<()> {
    let (shop, outside) = (test.ambient("shop").await?, test.plain("outside").await?);
    let web = shop.server("web").start().await?;
    let far = outside.client("far").start().await?;
    shop.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: web}\nspec:\n  selector: {matchLabels: {app: web}}\n  \
         mtls: {mode: STRICT}\n  portLevelMtls: {9000: {mode: PERMISSIVE}}",
    )
    .await?;
    far.is_refused(&format!("http://{}/", web.at(8080))).await?;
    echoes(&far, &web.ip).await
}

/// Waits until the echo on port 9000 answers.
async fn echoes(pod: &Pod, host: &str) -> Result<()> {
    let line = format!("echo hello | timeout 10 nc -q 3 {host} 9000");
    crate::wait::eventually(&format!("{host} echoes to {}", pod.name), || async {
        let said = pod.sh(&line).await?.success()?;
        ensure!(said.contains("hello"), "{said:?}");
        Ok(())
    })
    .await
}

/// `AuthorizationPolicy` with a notice for the person on call: what it says is known as soon as it was read.
pub(super) async fn the_status_of_a_policy_says_whether_it_is_in_force(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.server("web").start().await?;
    shop.apply(&rule("  rules: [{to: [{operation: {ports: ['8080']}}]}]"))
        .await?;
    let good = test
        .cluster
        .condition(
            &shop.name,
            ("security.istio.io/v1", "AuthorizationPolicy"),
            "rule",
            "ZtunnelAccepted",
        )
        .await?;
    ensure!(good["status"] == "True", "{good}");
    // Methods need a waypoint: ztunnel cannot see them, so what would allow them denies.
    shop.apply(&rule("  rules: [{to: [{operation: {methods: [GET]}}]}]"))
        .await?;
    crate::wait::eventually("the status names what cannot be enforced", || async {
        let bad = test
            .cluster
            .condition(
                &shop.name,
                ("security.istio.io/v1", "AuthorizationPolicy"),
                "rule",
                "ZtunnelAccepted",
            )
            .await?;
        ensure!(
            bad["reason"] == "UnsupportedValue"
                && bad["message"]
                    .as_str()
                    .is_some_and(|text| text.to_lowercase().contains("method")),
            "{bad}"
        );
        Ok(())
    })
    .await
}
