//! An owner's own signer: an intermediate under the mesh's root, plugged in or named in the chart's values, and replaced while traffic runs.

use anyhow::{Context as _, Result, anyhow, ensure};
use http::Method;
use k8s_openapi::{
    ByteString,
    api::{apps::v1::Deployment, core::v1::Secret},
    jiff::Timestamp,
};
use kube::{Api, ResourceExt, api::DeleteParams};
use serde_json::{Value, json};

use crate::{
    inside,
    mesh::{Part, SYSTEM},
    place::Place,
    pod::{Pod, is_ready},
    program::chart,
    run::Test,
    wait::eventually,
};

const PLUGGED: &str = "cacerts";
const OWN: &str = "istio-ca-secret";
const NAMED: &str = "owners-authority";

/// Under Istio's names first, then as cert-manager writes it, then away again. Each time who comes new has its certificate from that
/// signer, speaks to those who have one from another, and nothing fails.
pub(super) async fn an_intermediate_is_plugged_in_replaced_and_taken_away_under_load(
    test: &Test,
) -> Result<()> {
    let result = plug(test).await;
    let gone = secrets(test)
        .delete(PLUGGED, &DeleteParams::default())
        .await;
    result?;
    ensure!(gone.is_err(), "Secret {PLUGGED} was still there");
    Ok(())
}

async fn plug(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.server("web").on(test.node(0)).start().await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    phone.reaches("http://web/").await?;
    let root = Root::read(test, &phone).await?;
    let load = phone.load("http://web/", &[]).await?;
    let held = phone.holds("web:9000").await?;

    let one = Signer::make(&phone, "one").await?;
    let data = json!({ "ca-cert.pem": one.certificate, "ca-key.pem": one.key, "cert-chain.pem": one.certificate, "root-cert.pem": root.certificate });
    let since = Timestamp::now();
    write(test, PLUGGED, "Opaque", data).await?;
    taken_up(test, PLUGGED, since).await?;
    signed(test, &shop, &phone, "first", "one").await?;

    let two = Signer::make(&phone, "two").await?;
    let since = Timestamp::now();
    secrets(test)
        .delete(PLUGGED, &DeleteParams::default())
        .await?;
    write(test, PLUGGED, TLS, two.under(&root)).await?;
    taken_up(test, PLUGGED, since).await?;
    signed(test, &shop, &phone, "second", "two").await?;

    let since = Timestamp::now();
    secrets(test)
        .delete(PLUGGED, &DeleteParams::default())
        .await?;
    taken_up(test, OWN, since).await?;
    signed(test, &shop, &phone, "third", "root").await?;

    let tally = load.tally().await?;
    test.note(tally.to_string()).await;
    ensure!(tally.failures() == 0, "{tally}");
    held.still_held().await.map(drop)
}

/// As cert-manager writes it, named by the chart's `istiod.caSecret`: waited for while it is missing, taken up when it is there and each
/// time it is written again; without the value the mesh has its own signer back. Nothing fails meanwhile.
pub(super) async fn a_signer_that_the_chart_names_is_waited_for_replaced_and_left_under_load(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.server("web").on(test.node(0)).start().await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    phone.reaches("http://web/").await?;
    let load = phone.load("http://web/", &[]).await?;
    let held = phone.holds("web:9000").await?;

    let result = name(test, &shop, &phone).await;
    // Also after a failure: the chart that is put back does not know of it.
    let gone = secrets(test).delete(NAMED, &DeleteParams::default()).await;
    result?;
    gone?;
    signed(test, &shop, &phone, "last", "root").await?;

    let tally = load.tally().await?;
    test.note(tally.to_string()).await;
    ensure!(tally.failures() == 0, "{tally}");
    held.still_held().await.map(drop)
}

async fn name(test: &Test, shop: &Place, phone: &Pod) -> Result<()> {
    let root = Root::read(test, phone).await?;
    chart(&["--set", &format!("istiod.caSecret={NAMED}")]).await?;
    waits(test).await?;
    signed(test, shop, phone, "early", "root").await?;

    let one = Signer::make(phone, "one").await?;
    write(test, NAMED, TLS, one.under(&root)).await?;
    let istiod = Part::Istiod.name();
    test.mesh()
        .rolled_out_in::<Deployment>(SYSTEM, istiod)
        .await?;
    signed(test, shop, phone, "first", "one").await?;

    let two = Signer::make(phone, "two").await?;
    let since = Timestamp::now();
    write(test, NAMED, TLS, two.under(&root)).await?;
    taken_up(test, NAMED, since).await?;
    signed(test, shop, phone, "second", "two").await?;

    chart(&["--wait", "--timeout", "4m"]).await?;
    test.mesh().well().await
}

/// A new replica says which Secret it lacks, and is not ready; so those that serve stay.
async fn waits(test: &Test) -> Result<()> {
    let lacks = format!("there is no Secret {NAMED}");
    let waiting = eventually("a new replica says what it waits for", || async {
        for pod in test.mesh().staying(Part::Istiod).await? {
            let name = pod.name_any();
            let log = test.mesh().log(&name, None).await.unwrap_or_default();
            if log.contains(&lacks) {
                return Ok(pod);
            }
        }
        Err(anyhow!("no log says {lacks:?}"))
    })
    .await?;
    ensure!(
        !is_ready(Some(&waiting)),
        "{} is ready without a signer",
        waiting.name_any()
    );
    Ok(())
}

fn secrets(test: &Test) -> Api<Secret> {
    Api::namespaced(test.cluster.client.clone(), SYSTEM)
}

/// How cert-manager writes an authority.
const TLS: &str = "kubernetes.io/tls";

async fn write(test: &Test, name: &str, r#type: &str, texts: Value) -> Result<()> {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "type": r#type, "stringData": texts,
    });
    test.cluster.apply_object(SYSTEM, secret).await.map(drop)
}

/// Every replica signs with it from now on.
async fn taken_up(test: &Test, secret: &str, since: Timestamp) -> Result<()> {
    for pod in test.mesh().staying(Part::Istiod).await? {
        let name = pod.name_any();
        eventually(&format!("{name} signs with Secret {secret}"), || async {
            let log = test.mesh().log(&name, Some(since)).await?;
            let mut lines = log
                .lines()
                .filter(|line| line.contains("signing certificate") || line.contains("signer"));
            let last = lines.next_back().unwrap_or("nothing");
            ensure!(
                last.contains("signing certificate or roots changed") && last.contains(secret),
                "it says: {last}"
            );
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// A pod of a new account is reached, and its certificate is from that signer: of the signer's name and key.
async fn signed(test: &Test, shop: &Place, phone: &Pod, name: &str, signer: &str) -> Result<()> {
    let pod = shop.server(name).on(test.node(0)).start().await?;
    phone.reaches(&format!("http://{name}/")).await?;
    let chain = chain(test, &pod.node, &shop.identity(name)).await?;
    let leaf = chain.first().context("an empty chain")?;
    let line = format!(
        "cat >/tmp/leaf.pem <<'END'\n{leaf}\nEND\nopenssl verify -partial_chain -CAfile /tmp/{signer}.pem /tmp/leaf.pem"
    );
    phone
        .sh(&line)
        .await?
        .success()
        .with_context(|| format!("the certificate of {name} is not from {signer}"))?;
    // Peers know the root only: what lies between must come along.
    let between = format!(
        "cat >/tmp/between.pem <<'END'\n{}\nEND\nopenssl verify -CAfile /tmp/root.pem -untrusted /tmp/between.pem /tmp/leaf.pem",
        chain.concat()
    );
    phone
        .sh(&between)
        .await?
        .success()
        .with_context(|| format!("the chain of {name} does not lead to the root"))?;
    Ok(())
}

/// What the ztunnel of a node holds for an identity, the leaf first.
async fn chain(test: &Test, node: &str, identity: &str) -> Result<Vec<String>> {
    let ztunnel = test.mesh().pod_on(Part::Ztunnel, node).await?.name_any();
    let client = &test.cluster.client;
    eventually(&format!("a certificate of {identity}"), || async {
        let dump = inside::ztunnel(client, &ztunnel, Method::GET, "/config_dump").await?;
        let dump: Value = serde_json::from_str(&dump)?;
        let all = dump["certificates"].as_array().into_iter().flatten();
        let ours = all
            .into_iter()
            .find(|it| it["identity"] == identity && !it["certChain"][0].is_null())
            .context("there is none")?;
        let chain = ours["certChain"].as_array().context("no chain")?;
        chain.iter().map(|it| text(&it["pem"])).collect()
    })
    .await
}

/// PEM, in base64 once more.
fn text(pem: &Value) -> Result<String> {
    let bytes: ByteString = serde_json::from_value(pem.clone())?;
    Ok(String::from_utf8(bytes.0)?)
}

/// The mesh's own root, laid into the client's files.
struct Root {
    certificate: String,
}

impl Root {
    async fn read(test: &Test, phone: &Pod) -> Result<Self> {
        let mut data = secrets(test)
            .get(OWN)
            .await?
            .data
            .context("an empty Secret")?;
        let mut part = |key: &str| {
            let bytes = data
                .remove(key)
                .with_context(|| format!("no {key} in it"))?;
            anyhow::Ok(String::from_utf8(bytes.0)?)
        };
        let (certificate, key) = (part("ca-cert.pem")?, part("ca-key.pem")?);
        let line = format!(
            "cat >/tmp/root.pem <<'END'\n{certificate}\nEND\ncat >/tmp/root.key <<'END'\n{key}\nEND"
        );
        phone.sh(&line).await?.success()?;
        Ok(Self { certificate })
    }
}

/// An intermediate and its key.
struct Signer {
    certificate: String,
    key: String,
}

impl Signer {
    fn under(&self, root: &Root) -> Value {
        json!({ "tls.crt": self.certificate, "tls.key": self.key, "ca.crt": root.certificate })
    }

    async fn make(phone: &Pod, name: &str) -> Result<Self> {
        let line = format!(
            "openssl req -x509 -CA /tmp/root.pem -CAkey /tmp/root.key -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /tmp/{name}.key \
             -out /tmp/{name}.pem -days 365 -subj /O=cluster.local/CN={name} -addext basicConstraints=critical,CA:TRUE,pathlen:0 \
             -addext keyUsage=critical,keyCertSign"
        );
        phone.sh(&line).await?.success()?;
        Ok(Self {
            certificate: phone.sh(&format!("cat /tmp/{name}.pem")).await?.success()?,
            key: phone.sh(&format!("cat /tmp/{name}.key")).await?.success()?,
        })
    }
}
