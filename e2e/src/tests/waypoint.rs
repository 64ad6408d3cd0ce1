//! Waypoints on a real cluster: how they come to run and go, with and without the Gateway API. What they do with requests:
//! [`requests`], [`rules`], and all of it [`features`]; whose: [`reach`], [`turns`]; more than there is room for: [`pressure`].
//! The same program between networks: [`doors`].

mod doors;
mod features;
mod pressure;
mod reach;
mod requests;
mod rules;
mod turns;

use anyhow::{Result, ensure};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

pub(super) use doors::an_east_west_gateway_runs_and_leads_who_comes_from_elsewhere_to_a_service;
pub(super) use features::every_feature_does_what_its_file_says;
pub(super) use pressure::a_waypoint_that_is_full_says_so_and_serves_the_others;
pub(super) use reach::{
    a_waypoint_of_another_namespace_takes_what_names_it_and_nothing_else,
    while_no_pod_of_a_waypoint_runs_its_traffic_is_refused,
};
pub(super) use requests::{
    a_waypoint_is_replaced_under_load_and_no_request_is_lost,
    requests_pass_a_waypoint_by_route_and_policy,
};
pub(super) use rules::tokens_faults_and_limits_hold_at_a_waypoint;
pub(super) use turns::a_canary_waypoint_takes_its_share_and_an_object_chooses_its_own;

use super::status::finds;
use crate::{
    mesh::Part,
    place::Place,
    program::{ambit, kubectl},
    run::Test,
    wait::eventually,
};

const GATEWAY: (&str, &str) = ("gateway.networking.k8s.io/v1", "Gateway");
const CLASS: (&str, &str) = ("gateway.networking.k8s.io/v1", "GatewayClass");

/// Before the Gateway API is there, with it, and when it is gone again: nothing is restarted in between.
pub(super) async fn a_waypoint_is_asked_for_runs_and_goes_with_its_gateway(
    test: &Test,
) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let gateways = GatewayApi::define(test).await?;
    if gateways.ours {
        gateways.forget(test).await?;
        let words = ["waypoint", "list", "-n", &shop.name];
        ambit(&words).await?.with(2)?.says("no Gateway API")?;
    }
    let gateways = GatewayApi::define(test).await?;
    let result = life(test, &shop).await;
    gateways.forget(test).await?;
    result
}

async fn life(test: &Test, shop: &Place) -> Result<()> {
    let waypoint = |words: &'static [&'static str]| {
        let words = ["waypoint"].iter().chain(words);
        let words: Vec<&str> = words.chain(&["-n", &shop.name]).copied().collect();
        async move { ambit(&words).await }
    };
    waypoint(&["list"]).await?.with(0)?.says("no waypoints")?;
    let yaml = waypoint(&["generate"]).await?.with(0)?.out;
    ensure!(yaml.contains("protocol: HBONE"), "{yaml}");
    waypoint(&["apply", "--wait"])
        .await?
        .with(0)?
        .says("runs")?;
    eventually("both its pods are ready", || async {
        waypoint(&["list"]).await?.with(0)?.says("2/2")
    })
    .await?;
    waypoint(&["status"]).await?.with(0)?;
    let rows: Value = waypoint(&["list", "-o", "json"]).await?.with(0)?.json()?;
    let row = &rows[0];
    ensure!(
        row["name"] == "waypoint" && row["programmed"] == "True" && row["traffic"] == "service",
        "{rows}"
    );
    let gateway = test
        .cluster
        .object(&shop.name, GATEWAY.0, GATEWAY.1, "waypoint")
        .await?;
    let host = format!("waypoint.{}.svc.cluster.local", shop.name);
    let addresses = gateway.data["status"]["addresses"].to_string();
    ensure!(addresses.contains(&host), "{addresses}");
    for (version, kind) in PIECES {
        let piece = test
            .cluster
            .object(&shop.name, version, kind, "waypoint")
            .await?;
        let owner = &piece.owner_references()[0];
        ensure!(owner.kind == "Gateway", "{kind}: {owner:?}");
    }
    // Somebody's slip is put right.
    kubectl(&["delete", "service", "waypoint", "-n", &shop.name], "")
        .await?
        .with(0)?;
    eventually("the Service is there again", || async {
        let service = test.cluster.object(&shop.name, "v1", "Service", "waypoint");
        service.await.map(drop)
    })
    .await?;
    waypoint(&["delete", "waypoint"]).await?.with(0)?;
    waypoint(&["list"]).await?.with(0)?.says("no waypoints")?;
    for (version, kind) in PIECES {
        eventually(&format!("its {kind} is gone"), || async {
            let piece = test.cluster.object(&shop.name, version, kind, "waypoint");
            ensure!(piece.await.is_err(), "it is there");
            Ok(())
        })
        .await?;
    }
    waypoint(&["delete", "waypoint"])
        .await?
        .with(2)?
        .says("there is no waypoint")?;
    Ok(())
}

/// Parameters are laid over what is deployed, unless they would let it out of its sandbox; what somebody else made under
/// the same name is left alone; and the API server lets the control plane touch nothing but what a Gateway owns.
pub(super) async fn a_waypoint_is_made_as_its_parameters_say_within_bounds(
    test: &Test,
) -> Result<()> {
    let shop = test.plain("shop").await?;
    let gateways = GatewayApi::define(test).await?;
    let result = bounds(test, &shop).await;
    gateways.forget(test).await?;
    result
}

async fn bounds(test: &Test, shop: &Place) -> Result<()> {
    let wishes = |deployment: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: wishes}}\ndata:\n  podDisruptionBudget: 'null'\n  deployment: |\n    {deployment}\n"
        )
    };
    shop.apply(&wishes(
        "{spec: {replicas: 1, template: {metadata: {labels: {wished: 'yes'}}}}}",
    ))
    .await?;
    let (version, kind) = GATEWAY;
    let gateway = |name: &str| {
        format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}}}\nspec:\n  gatewayClassName: istio-waypoint\n  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]\n"
        )
    };
    shop.apply(
        &(gateway("waypoint")
            + "  infrastructure: {parametersRef: {group: '', kind: ConfigMap, name: wishes}}\n"),
    )
    .await?;
    eventually("one pod, as wished", || async {
        let pods = test.cluster.pods(&shop.name, "wished=yes").await?;
        ensure!(pods.len() == 1, "{} pods", pods.len());
        Ok(())
    })
    .await?;
    let budget = test
        .cluster
        .object(&shop.name, "policy/v1", "PodDisruptionBudget", "waypoint")
        .await;
    ensure!(budget.is_err(), "there is a budget that nobody wished");
    shop.apply(&wishes(
        "{spec: {replicas: 3, template: {spec: {hostNetwork: true}}}}",
    ))
    .await?;
    eventually("what may not be wished is said", || async {
        let said = test
            .cluster
            .condition(&shop.name, GATEWAY, "waypoint", "Accepted")
            .await?;
        let text = said["message"].as_str().unwrap_or_default();
        ensure!(
            said["reason"] == "InvalidParameters" && text.contains("hostNetwork"),
            "{said}"
        );
        Ok(())
    })
    .await?;
    let pods = test.cluster.pods(&shop.name, "wished=yes").await?;
    ensure!(pods.len() == 1, "{} pods", pods.len());

    let scaled = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: wishes}\ndata:\n  deployment: 'spec: {template: {metadata: {labels: {wished: \"yes\"}}}}'\n  horizontalPodAutoscaler: 'spec: {minReplicas: 3, maxReplicas: 5}'\n";
    shop.apply(scaled).await?;
    eventually("as many pods as the autoscaler wants at least", || async {
        let pods = test.cluster.pods(&shop.name, "wished=yes").await?;
        ensure!(pods.len() == 3, "{} pods", pods.len());
        Ok(())
    })
    .await?;
    in_the_way(test, shop, &gateway("mine")).await
}

async fn in_the_way(test: &Test, shop: &Place, gateway: &str) -> Result<()> {
    let theirs = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: mine}\nspec: {replicas: 0, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: a, image: a}]}}}";
    shop.apply(theirs).await?;
    shop.apply(gateway).await?;
    eventually("what is in the way is said", || async {
        let said = test
            .cluster
            .condition(&shop.name, GATEWAY, "mine", "Programmed")
            .await?;
        ensure!(
            said["reason"] == "NoResources" && said["message"].to_string().contains("left alone"),
            "{said}"
        );
        Ok(())
    })
    .await?;
    let istiod = "--as=system:serviceaccount:istio-system:istiod";
    let apply = ["apply", istiod, "--server-side", "--force-conflicts", "-n"];
    let refused = kubectl(&[&apply[..], &[&shop.name, "-f", "-"]].concat(), theirs).await?;
    refused.with(1)?.says("touches only what a Gateway owns")?;
    Ok(())
}

/// What a waypoint consists of.
const PIECES: [(&str, &str); 4] = [
    ("v1", "ServiceAccount"),
    ("v1", "Service"),
    ("apps/v1", "Deployment"),
    ("policy/v1", "PodDisruptionBudget"),
];

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
    eventually("the later one is programmed", || async {
        let said = test
            .cluster
            .condition(&shop.name, GATEWAY, "door", "Programmed")
            .await?;
        ensure!(said["status"] == "True", "{said}");
        Ok(())
    })
    .await?;
    let left = test
        .cluster
        .object(&shop.name, GATEWAY.0, GATEWAY.1, "odd")
        .await?;
    // The definitions' own defaults say that a controller is waited for.
    let said = left.data["status"]["conditions"].as_array();
    let said = said.into_iter().flatten();
    let told: Vec<_> = said.filter(|it| it["status"] != "Unknown").collect();
    ensure!(told.is_empty(), "its status: {told:?}");
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
        for [_, plural, group, ..] in KINDS {
            let name = format!("{plural}.{group}");
            let name = name.as_str();
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

    fn definitions() -> [Value; KINDS.len()] {
        KINDS.map(|[kind, plural, group, version, scope]| {
            json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {
                    "name": format!("{plural}.{group}"), "labels": { (OURS.0): OURS.1 },
                    "annotations": { "api-approved.kubernetes.io": "unapproved, as much as a test needs" },
                },
                "spec": {
                    "group": group, "scope": scope,
                    "names": { "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase() },
                    "versions": [{
                        "name": version, "served": true, "storage": true, "subresources": { "status": {} },
                        "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
                    }],
                },
            })
        })
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
/// Kind, plural, group, version, scope.
const KINDS: [[&str; 5]; 9] = [
    of("Gateway", "gateways", "v1", NAMESPACED),
    of("GatewayClass", "gatewayclasses", "v1", "Cluster"),
    of("HTTPRoute", "httproutes", "v1", NAMESPACED),
    of("GRPCRoute", "grpcroutes", "v1", NAMESPACED),
    of("TCPRoute", "tcproutes", "v1alpha2", NAMESPACED),
    of("TLSRoute", "tlsroutes", "v1", NAMESPACED),
    of("ReferenceGrant", "referencegrants", "v1beta1", NAMESPACED),
    of("BackendTLSPolicy", "backendtlspolicies", "v1", NAMESPACED),
    [
        "XBackendTrafficPolicy",
        "xbackendtrafficpolicies",
        "gateway.networking.x-k8s.io",
        "v1alpha1",
        NAMESPACED,
    ],
];
const NAMESPACED: &str = "Namespaced";

const fn of<'a>(kind: &'a str, plural: &'a str, version: &'a str, scope: &'a str) -> [&'a str; 5] {
    [kind, plural, "gateway.networking.k8s.io", version, scope]
}
