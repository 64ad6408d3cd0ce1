//! Discovery: a mesh that is kept up to date from the control plane ([`run`]).

use std::sync::Arc;

use api::discovery::Node;
use hbone::control_plane::Credentials;
use mesh::Wish;
use mesh::node::{self, Name};
use mesh::stream::{ClientConfig, ClientEvent, FirstAnswers, run_client};
use ops::discovery::DiscoveryMetrics;
use ops::ready::Gate;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

use crate::config::Config;

/// Keeps `writer`'s mesh up to date until `cancel`. `gate` opens with the first answer of each
/// type and stays open: a proxy that knows the mesh goes on without the control plane. `known` is told then.
pub async fn run(
    proxy: &Arc<crate::node::Node>,
    mut writer: mesh::Writer,
    gate: Gate,
    known: oneshot::Sender<()>,
    metrics: DiscoveryMetrics,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let config = &*proxy.config;
    let channel = config.dialler().channel(
        &config.xds_address,
        &config.xds_root_ca,
        config.alt_xds_hostname.as_deref(),
    )?;
    let caller = Credentials::new(config.tokens(), &config.cluster_id, &config.xds_headers);
    let connect = || {
        let channel = InterceptedService::new(channel.clone(), caller.clone());
        std::future::ready(Ok::<_, std::convert::Infallible>(channel))
    };
    let mut wish = ClientConfig::new(node(config));
    wish.health = config.health.as_ref().map(|health| health.subscribe());
    let on_demand = proxy.on_demand.as_ref();
    if on_demand.is_some() {
        wish.addresses = Wish::OnDemand;
    }
    let mut first = FirstAnswers::of(&wish.follows);
    let mut known = Some(known);
    let events = |event: ClientEvent<'_>| {
        event.log();
        let connected = |yes| on_demand.into_iter().for_each(|it| it.connected(yes));
        match &event {
            ClientEvent::Connected => connected(true),
            ClientEvent::Applied {
                type_url, bytes, ..
            } => metrics.received(type_url, *bytes),
            ClientEvent::Disconnected { reason, .. } => {
                connected(false);
                metrics.ended(reason.is_none());
            }
        }
        if first.are_complete_with(&event) {
            gate.open();
            // Nobody waits for it any more when the proxy is stopping.
            let _ = known.take().map(|known| known.send(()));
        }
    };
    let Some(on_demand) = on_demand else {
        let apply = |update| writer.apply(update);
        run_client(connect, wish, None, apply, events, cancel).await;
        return Ok(());
    };
    on_demand.writes(writer);
    let apply = |update| on_demand.apply(update);
    let client = run_client(connect, wish, on_demand.demands(), apply, events, cancel);
    tokio::select! {
        () = client => {}
        () = on_demand.clone().tend(proxy.clone()) => {}
    }
    Ok(())
}

/// Who we say we are.
fn node(config: &Config) -> Node {
    let Config {
        pod_name,
        pod_namespace: namespace,
        instance_ip,
        cluster_domain,
        ..
    } = config;
    let mut metadata = config.metadata.clone();
    let known = [
        ("NAME", pod_name),
        ("NAMESPACE", namespace),
        ("INSTANCE_IPS", instance_ip),
        ("NODE_NAME", &config.node_name),
        ("CLUSTER_ID", &config.cluster_id),
        ("NETWORK", &config.network),
        ("SERVICE_ACCOUNT", &config.service_account),
    ];
    let known = known.map(|(key, value)| (key.to_owned(), value.clone()));
    metadata.extend(known.into_iter().filter(|(_, value)| !value.is_empty()));
    metadata
        .entry("ISTIO_VERSION".to_owned())
        .or_insert_with(|| env!("CARGO_PKG_VERSION").to_owned());
    let id = Name {
        kind: "ztunnel",
        address: config.own_ip(),
        pod: pod_name,
        namespace,
        domain: cluster_domain,
    };
    node::node(id, metadata)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use prost_types::Value;
    use prost_types::value::Kind;

    use super::*;

    fn config() -> Config {
        let arguments =
            "ztunnel --pod-name ztunnel-abc --instance-ip 10.20.0.9 --node-name na".split(' ');
        Config::try_parse_from(arguments).unwrap()
    }

    /// What Istio's ztunnel said of itself in the same place: same id, and no key of its missing.
    #[test]
    fn node_is_what_istios_ztunnel_says() {
        let golden = include_str!("../testdata/xds/15-real-ztunnel-requests.jsonl");
        let golden: serde_json::Value = golden
            .lines()
            .nth(2)
            .map(|line| serde_json::from_str(line).unwrap())
            .unwrap();
        let golden = &golden["msg"]["node"];
        let ours = node(&config());
        assert_eq!(ours.id, golden["id"]);
        let fields = ours.metadata.unwrap().fields;
        for (key, value) in golden["metadata"].as_object().unwrap() {
            let text = |value: &Value| match &value.kind {
                Some(Kind::StringValue(text)) => text.clone(),
                other => panic!("{other:?}"),
            };
            assert_eq!(&text(&fields[key]), value, "{key}");
        }
    }
}
