//! `ambit waypoint` against a real cluster, with and without the Gateway API.

use anyhow::{Result, ensure};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::status::finds;
use crate::{mesh::Part, place::Place, program::ambit, run::Test, wait::eventually};

const GATEWAY: (&str, &str) = ("gateway.networking.k8s.io/v1", "Gateway");
const CLASS: (&str, &str) = ("gateway.networking.k8s.io/v1", "GatewayClass");

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

/// As soon as there are classes there are ours, also after one was deleted. A Gateway of a class that nobody has defined is named in the log
/// and by `ambit status`, and nothing is written onto it: another's controller may come for it.
pub(super) async fn our_classes_are_accepted_and_a_gateway_of_an_unknown_class_is_left_alone(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.server("web").start().await?;
    let phone = shop.client("phone").start().await?;
    phone.reaches("http://web/").await?;
    let load = phone.load("http://web/", &[]).await?;
    let gateways = GatewayApi::define(test).await?;
    let result = classes(test, &shop).await;
    gateways.forget(test).await?;
    result?;
    let tally = load.tally().await?;
    test.note(tally.to_string()).await;
    ensure!(tally.failures() == 0, "{tally}");
    Ok(())
}

async fn classes(test: &Test, shop: &Place) -> Result<()> {
    accepted_class(test, "istio-waypoint", "istio.io/mesh-controller").await?;
    accepted_class(test, "istio-remote", "istio.io/unmanaged-gateway").await?;
    let (version, kind) = CLASS;
    let remote = format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: istio-remote}}");
    test.cluster.delete("", &remote).await?;
    eventually("the deleted class is made again", || async {
        test.cluster
            .object("", version, kind, "istio-remote")
            .await
            .map(drop)
    })
    .await?;
    accepted_class(test, "istio-remote", "istio.io/unmanaged-gateway").await?;

    let since = Timestamp::now();
    shop.apply(&gateway("odd", "no-such-class")).await?;
    let odd = format!("{}/odd", shop.name);
    for pod in test.mesh().staying(Part::Istiod).await? {
        let name = pod.name_any();
        eventually(&format!("{name} names the Gateway"), || async {
            let log = test.mesh().log(&name, Some(since)).await?;
            let lines: Vec<&str> = log
                .lines()
                .filter(|line| line.contains(&odd) && line.contains("no-such-class"))
                .collect();
            ensure!(lines.len() == 1, "it says {lines:?}");
            Ok(())
        })
        .await?;
    }
    finds(&format!("Gateway {odd}"), "warning", "no-such-class").await?;
    // Who writes statuses has come past the odd one when a later one has its own.
    shop.apply(&gateway("door", "istio-remote")).await?;
    let said = test
        .cluster
        .condition(&shop.name, GATEWAY, "door", "Programmed")
        .await?;
    ensure!(said["status"] == "True", "{said}");
    let left = test
        .cluster
        .object(&shop.name, GATEWAY.0, GATEWAY.1, "odd")
        .await?;
    let status = &left.data["status"];
    ensure!(status.is_null(), "its status: {status}");
    Ok(())
}

async fn accepted_class(test: &Test, name: &str, controller: &str) -> Result<()> {
    // Those that have just been made are there a moment before their status.
    eventually(&format!("there is a class {name}"), || async {
        let class = test.cluster.object("", CLASS.0, CLASS.1, name).await?;
        let written = &class.data["spec"]["controllerName"];
        ensure!(written == controller, "its controller is {written}");
        Ok(())
    })
    .await?;
    let said = test.cluster.condition("", CLASS, name, "Accepted").await?;
    ensure!(
        said["status"] == "True" && said["reason"] == "Accepted",
        "{said}"
    );
    Ok(())
}

fn gateway(name: &str, class: &str) -> String {
    let (version, kind) = GATEWAY;
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{gatewayClassName: {class}, listeners: [{{name: http, port: 80, protocol: HTTP}}]}}"
    )
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
