//! Keys wear out: certificates of two minutes, and a new root by the procedure of `docs/operations.md`, while traffic runs.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    inside,
    mesh::{Part, SYSTEM},
    place::Place,
    pod::{Pod, Running},
    run::Test,
    wait::until,
};

const TTL: &str = "SECRET_TTL";
/// Certificates are renewed at half of their life.
const LIFE: Duration = Duration::from_secs(120);
/// Half a life, what kubelet takes to bring a ConfigMap into a pod, and what a busy machine takes for everything.
const STEP: Duration = Duration::from_secs(150);

const ROOTS: &str = "istio-ca-root-cert";

/// Every renewal and every step of a rotation, under traffic on new and on kept connections; nothing fails.
pub(super) async fn certificates_are_renewed_and_the_root_is_replaced_under_load(
    test: &Test,
) -> Result<()> {
    let life = format!("{}s", LIFE.as_secs());
    test.mesh()
        .environment(Part::Ztunnel, &[(TTL, Some(&life))])
        .await?;
    let result = rotate(test).await;
    test.mesh()
        .environment(Part::Ztunnel, &[(TTL, None)])
        .await?;
    result
}

async fn rotate(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.server("web").on(test.node(0)).start().await?;
    let phone = shop.client("phone").on(test.node(1)).start().await?;
    phone.reaches("http://web/").await?;
    let held = phone.holds("web:9000").await?;
    let first = Generation::of(test, &shop).await?;
    for leaf in first.0.values() {
        ensure!(leaf.roots.len() == 1, "there is more than one root already");
    }
    let (old, fresh) = (secret(test).await?.roots, Fresh::make(&phone).await?);

    let step = Step::begin(&phone, "renewal, with both roots told").await?;
    write(
        test,
        json!({ "root-cert.pem": format!("{old}{}", fresh.certificate) }),
    )
    .await?;
    let second = first
        .renewed(test, &shop, |leaf| leaf.roots.len() == 2)
        .await?;
    brought(test, &fresh.certificate, true).await?;
    step.nothing_failed(test).await?;

    let step = Step::begin(&phone, "new signer").await?;
    write(
        test,
        json!({ "ca-cert.pem": fresh.certificate, "ca-key.pem": fresh.key, "cert-chain.pem": "" }),
    )
    .await?;
    let mut third = second
        .renewed(test, &shop, |leaf| leaf.roots.len() == 2)
        .await?;
    // Who came in the moment before the new signer was read has one more of the old.
    if fresh.has_signed_all(&phone, &third).await.is_err() {
        third = third
            .renewed(test, &shop, |leaf| leaf.roots.len() == 2)
            .await?;
    }
    fresh.has_signed_all(&phone, &third).await?;
    step.nothing_failed(test).await?;

    let step = Step::begin(&phone, "old root dropped").await?;
    write(test, json!({ "root-cert.pem": fresh.certificate })).await?;
    third
        .renewed(test, &shop, |leaf| leaf.roots.len() == 1)
        .await?;
    brought(test, old.trim(), false).await?;
    step.nothing_failed(test).await?;
    held.still_held().await.map(drop)
}

/// Traffic while something happens.
struct Step {
    what: &'static str,
    load: Running,
}

impl Step {
    async fn begin(phone: &Pod, what: &'static str) -> Result<Self> {
        let load = phone.load("http://web/", &[]).await?;
        Ok(Self { what, load })
    }

    async fn nothing_failed(self, test: &Test) -> Result<()> {
        let tally = self.load.tally().await?;
        test.note(format!("{}: {tally}", self.what)).await;
        ensure!(tally.failures() == 0, "{}: {tally}", self.what);
        ensure!(
            tally.fresh.answered > 100,
            "hardly any traffic ran: {tally}"
        );
        Ok(())
    }
}

/// A certificate that a ztunnel holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Leaf {
    serial: String,
    pem: String,
    roots: Vec<String>,
}

/// Those of a namespace, by node and identity.
struct Generation(BTreeMap<(String, String), Leaf>);

impl Generation {
    async fn of(test: &Test, shop: &Place) -> Result<Self> {
        let mut all = BTreeMap::new();
        let wanted = [shop.identity("phone"), shop.identity("web")];
        for worker in test.cluster.workers() {
            let pod = test
                .mesh()
                .pod_on(Part::Ztunnel, &worker.name)
                .await?
                .name_any();
            let dump =
                inside::ztunnel(&test.cluster.client, &pod, Method::GET, "/config_dump").await?;
            let dump: Value = serde_json::from_str(&dump)?;
            for certificate in dump["certificates"].as_array().context("no certificates")? {
                let identity = certificate["identity"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                if wanted.contains(&identity) && !certificate["certChain"][0].is_null() {
                    let texts = certificate["rootCerts"].as_array().into_iter().flatten();
                    let leaf = Leaf {
                        serial: certificate["certChain"][0]["serialNumber"].to_string(),
                        pem: text(&certificate["certChain"][0]["pem"])?,
                        roots: texts.map(|it| text(&it["pem"])).collect::<Result<_>>()?,
                    };
                    all.insert((worker.name.clone(), identity), leaf);
                }
            }
        }
        ensure!(
            all.len() >= wanted.len(),
            "certificates are missing: {:?}",
            all.keys()
        );
        Ok(Self(all))
    }

    /// Waits until each is another one, and as it should be.
    async fn renewed(
        &self,
        test: &Test,
        shop: &Place,
        fits: impl Fn(&Leaf) -> bool,
    ) -> Result<Self> {
        let began = Instant::now();
        loop {
            let now = Self::of(test, shop).await?;
            let late = now.0.iter().find(|(place, leaf)| {
                !fits(leaf)
                    || self
                        .0
                        .get(*place)
                        .is_some_and(|old| old.serial == leaf.serial)
            });
            let Some((place, leaf)) = late else {
                return Ok(now);
            };
            ensure!(
                began.elapsed() < STEP,
                "{place:?} has certificate {} and {} roots after {} s",
                leaf.serial,
                leaf.roots.len(),
                STEP.as_secs()
            );
            sleep(Duration::from_secs(1)).await;
        }
    }
}

/// PEM, in base64 once more.
fn text(pem: &Value) -> Result<String> {
    let bytes: k8s_openapi::ByteString = serde_json::from_value(pem.clone())?;
    Ok(String::from_utf8(bytes.0)?)
}

/// The Secret of the mesh's own signer.
struct Signer {
    roots: String,
}

async fn secret(test: &Test) -> Result<Signer> {
    let secrets: Api<Secret> = Api::namespaced(test.cluster.client.clone(), SYSTEM);
    let mut data = secrets
        .get("istio-ca-secret")
        .await?
        .data
        .context("an empty Secret")?;
    let roots = data
        .remove("root-cert.pem")
        .context("no root-cert.pem in it")?;
    Ok(Signer {
        roots: String::from_utf8(roots.0)?,
    })
}

/// Patches the Secret of the mesh's own signer, as the documented procedure does.
async fn write(test: &Test, texts: Value) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(test.cluster.client.clone(), SYSTEM);
    let patch = Patch::Merge(json!({ "stringData": texts }));
    secrets
        .patch("istio-ca-secret", &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

/// A new root and its key.
struct Fresh {
    certificate: String,
    key: String,
}

impl Fresh {
    async fn make(phone: &Pod) -> Result<Self> {
        phone
            .sh("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /tmp/new.key -out /tmp/new.pem -days 3650 \
                 -subj /O=cluster.local -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign")
            .await?
            .success()?;
        Ok(Self {
            certificate: phone.sh("cat /tmp/new.pem").await?.success()?,
            key: phone.sh("cat /tmp/new.key").await?.success()?,
        })
    }

    async fn has_signed_all(&self, phone: &Pod, all: &Generation) -> Result<()> {
        for leaf in all.0.values() {
            self.has_signed(phone, leaf).await?;
        }
        Ok(())
    }

    async fn has_signed(&self, phone: &Pod, leaf: &Leaf) -> Result<()> {
        let line = format!(
            "cat >/tmp/leaf.pem <<'END'\n{}\nEND\nopenssl verify -CAfile /tmp/new.pem /tmp/leaf.pem",
            leaf.pem
        );
        phone
            .sh(&line)
            .await?
            .success()
            .context("a certificate of another signer")?;
        Ok(())
    }
}

/// Waits until kubelets have brought the roots, with this one or without it, to every ztunnel of the workers: by them they know istiod.
async fn brought(test: &Test, root: &str, there: bool) -> Result<()> {
    let line = root.lines().nth(1).context("no PEM")?;
    let began = Instant::now();
    for worker in test.cluster.workers() {
        let pod = test
            .mesh()
            .pod_on(Part::Ztunnel, &worker.name)
            .await?
            .uid()
            .unwrap_or_default();
        let ask = format!(
            "cat /var/lib/kubelet/pods/{pod}/volumes/kubernetes.io~configmap/*/root-cert.pem | grep -cF '{line}' || true"
        );
        while (worker.own(&ask).await?.success()?.trim() != "0") != there {
            ensure!(
                began.elapsed() < STEP,
                "the roots did not come to {}",
                worker.name
            );
            sleep(Duration::from_secs(1)).await;
        }
    }
    Ok(())
}

/// Workloads outside the mesh's reach read it too: it must be right.
pub(super) async fn the_roots_in_a_namespace_come_back_when_they_are_deleted_or_changed(
    test: &Test,
) -> Result<()> {
    let shop = test.plain("shop").await?;
    let maps: Api<ConfigMap> = Api::namespaced(test.cluster.client.clone(), &shop.name);
    let says = |text: String| {
        move |map: Option<&ConfigMap>| {
            let data = map.and_then(|map| map.data.as_ref());
            data.and_then(|data| data.get("root-cert.pem"))
                .is_some_and(|roots| *roots == text)
        }
    };
    let everywhere: Api<ConfigMap> = Api::namespaced(test.cluster.client.clone(), SYSTEM);
    let roots = everywhere
        .get(ROOTS)
        .await?
        .data
        .unwrap_or_default()
        .remove("root-cert.pem");
    let roots = roots.context("the mesh has no roots")?;
    ensure!(roots.contains("BEGIN CERTIFICATE"), "{roots}");
    until(&maps, ROOTS, "there", says(roots.clone())).await?;
    let uid = maps.get(ROOTS).await?.uid();
    maps.delete(ROOTS, &DeleteParams::default()).await?;
    until(&maps, ROOTS, "there again", says(roots.clone())).await?;
    ensure!(maps.get(ROOTS).await?.uid() != uid, "it was never deleted");
    for tampered in [
        json!({ "root-cert.pem": "none" }),
        json!({ "root-cert.pem": null }),
    ] {
        let patch = Patch::Merge(json!({ "data": tampered }));
        maps.patch(ROOTS, &PatchParams::default(), &patch).await?;
        until(&maps, ROOTS, "as it was", says(roots.clone())).await?;
    }
    Ok(())
}
