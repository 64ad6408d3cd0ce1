//! `ambit waypoint` against a real cluster, with and without the Gateway API.

use anyhow::{Result, ensure};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::status::finds;
use crate::{program::ambit, run::Test, wait::eventually};

/// Before the Gateway API is there, with it, and when it is gone again: nothing is restarted in between.
pub(super) async fn a_waypoint_is_asked_for_and_says_that_it_does_not_run(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let here = ["-n", shop.name.as_str()];
    let waypoint = |words: &'static [&'static str]| {
        let words: Vec<&str> = ["waypoint"]
            .iter()
            .chain(words)
            .chain(&here)
            .copied()
            .collect();
        async move { ambit(&words).await }
    };
    let gateways = GatewayApi::define(test).await?;
    if gateways.ours {
        gateways.forget(test).await?;
        waypoint(&["list"]).await?.with(2)?.says("no Gateway API")?;
    }
    let gateways = GatewayApi::define(test).await?;
    let result = async {
        waypoint(&["list"]).await?.with(0)?.says("no waypoints")?;
        waypoint(&["apply"])
            .await?
            .with(0)?
            .says("it does not run")?;
        eventually("the status says why", || async {
            waypoint(&["status"])
                .await?
                .with(1)?
                .says("AddressNotAssigned")
        })
        .await?;
        waypoint(&["list"]).await?.with(0)?.says("service")?;
        let rows: Value = waypoint(&["list", "-o", "json"]).await?.with(0)?.json()?;
        ensure!(
            rows[0]["name"] == "waypoint" && rows[0]["programmed"] == "False",
            "{rows}"
        );
        finds(
            &format!("Gateway {}/waypoint", shop.name),
            "error",
            "does not run waypoints",
        )
        .await?;
        waypoint(&["apply", "--enroll-namespace"])
            .await?
            .with(2)?
            .says("was not enrolled")?;
        waypoint(&["delete", "waypoint"]).await?.with(0)?;
        waypoint(&["list"]).await?.with(0)?.says("no waypoints")?;
        waypoint(&["delete", "waypoint"])
            .await?
            .with(2)?
            .says("there is no waypoint")?;
        Ok(())
    };
    let result = result.await;
    gateways.forget(test).await?;
    result
}

/// The Gateway API as far as these tests need it, where the cluster lacks it.
pub(super) struct GatewayApi {
    /// Whether it is gone with the test.
    ours: bool,
}

impl GatewayApi {
    pub(super) async fn define(test: &Test) -> Result<Self> {
        let version = "apiextensions.k8s.io/v1";
        let kind = "CustomResourceDefinition";
        let name = "gateways.gateway.networking.k8s.io";
        let found = test.cluster.object("", version, kind, name).await;
        if found.is_ok_and(|it| it.labels().get(OURS.0).is_none()) {
            return Ok(Self { ours: false });
        }
        for definition in Self::definitions() {
            test.cluster.apply_object("", definition).await?;
        }
        for name in [name, "gatewayclasses.gateway.networking.k8s.io"] {
            eventually(&format!("{name} is established"), || async {
                let object = test.cluster.object("", version, kind, name).await?;
                let conditions = object.data["status"]["conditions"].as_array();
                let yes = conditions
                    .into_iter()
                    .flatten()
                    .any(|it| it["type"] == "Established" && it["status"] == "True");
                ensure!(yes, "{:?}", object.data["status"]);
                Ok(())
            })
            .await?;
        }
        Ok(Self { ours: true })
    }

    fn definitions() -> [Value; 2] {
        [("Gateway", "gateways", "Namespaced"), ("GatewayClass", "gatewayclasses", "Cluster")].map(
            |(kind, plural, scope)| {
                json!({
                    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                    "metadata": {
                        "name": format!("{plural}.gateway.networking.k8s.io"), "labels": { (OURS.0): OURS.1 },
                        "annotations": { "api-approved.kubernetes.io": "unapproved, as much as a test needs" },
                    },
                    "spec": {
                        "group": "gateway.networking.k8s.io", "scope": scope,
                        "names": { "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase() },
                        "versions": [{
                            "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                            "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
                        }],
                    },
                })
            },
        )
    }

    pub(super) async fn forget(&self, test: &Test) -> Result<()> {
        if !self.ours {
            return Ok(());
        }
        for definition in Self::definitions() {
            let text = definition.to_string();
            test.cluster.delete("", &text).await?;
        }
        Ok(())
    }
}

const OURS: (&str, &str) = ("e2e", "waypoint");
