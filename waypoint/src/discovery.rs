//! Discovery: the mesh and the resources that are for us, kept up to date from the control plane.
//!
//! Asked for are addresses on demand and resources whole. Which services' addresses come is for the control plane to
//! say: those that a resource names, before it names them. Clients are looked up when they first arrive ([`Clients`]).
//! An east-west gateway may be asked for any service, so it follows all addresses, as a ztunnel does, and nothing else.

mod clients;

use std::sync::Arc;

use api::discovery::Node;
use hbone::control_plane::{Credentials, channel, token_source};
use mesh::node::{self, Name};
use mesh::stream::FirstAnswers;
use mesh::{ClientConfig, ClientEvent, Demand, Kind, Wish, run_client};
use ops::discovery::DiscoveryMetrics;
use ops::ready::Gate;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;

use crate::config::Config;
use crate::state::{Compile, Keeper};
pub use clients::Clients;
pub(crate) use clients::alias;

/// What asks for clients' addresses, and the end of it that [`run`] takes.
pub fn clients(mesh: Arc<mesh::Mesh>, config: &Config) -> (Clients, mpsc::Receiver<Demand>) {
    // Where we are ourselves decides which endpoints are near.
    let own = config.own_addresses().into_iter();
    Clients::new(mesh, &config.network, own)
}

/// Keeps what `keeper` writes up to date until `end`. `gate` opens when each type was answered once, and stays open: a
/// proxy that knows its resources goes on without the control plane.
///
/// # Errors
/// When the address is of no use.
pub async fn run<C: Compile>(
    config: &Config,
    mut keeper: Keeper<C>,
    demands: mpsc::Receiver<Demand>,
    gate: Gate,
    metrics: DiscoveryMetrics,
    end: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let channel = channel(&config.xds_address, &config.xds_root_ca, None)?;
    let token = token_source(&config.auth_token);
    let caller = Credentials::new(token, &config.cluster_id, &[]);
    let connect = || {
        let channel = InterceptedService::new(channel.clone(), caller.clone());
        std::future::ready(Ok::<_, std::convert::Infallible>(channel))
    };
    let east_west = config.is_east_west();
    let (follows, addresses) = match east_west {
        true => (vec![Kind::Addresses], Wish::Everything),
        false => (vec![Kind::Addresses, Kind::Resources], Wish::OnDemand),
    };
    let wish = ClientConfig {
        follows,
        addresses,
        ..ClientConfig::new(node(config))
    };
    let demands = (!east_west).then_some(demands);
    let mut first = FirstAnswers::of(&wish.follows);
    let events = |event: ClientEvent<'_>| {
        event.log();
        match &event {
            ClientEvent::Connected => {}
            ClientEvent::Applied {
                type_url, bytes, ..
            } => metrics.received(type_url, *bytes),
            ClientEvent::Disconnected { reason, .. } => metrics.ended(reason.is_none()),
        }
        if first.are_complete_with(&event) {
            gate.open();
        }
    };
    let apply = |update| keeper.apply(update);
    run_client(connect, wish, demands, apply, events, end).await;
    Ok(())
}

/// Who we say we are. The control plane believes it only of a pod that runs as our identity and is labelled as one of
/// that Gateway. An east-west gateway names none: there are no resources for it.
pub fn node(config: &Config) -> Node {
    let nobody = String::new();
    let gateway = match config.is_east_west() {
        true => &nobody,
        false => &config.gateway_name,
    };
    let known = [
        ("NAME", &config.pod_name),
        ("NAMESPACE", &config.pod_namespace),
        ("INSTANCE_IPS", &config.instance_ip),
        ("NODE_NAME", &config.node_name),
        ("CLUSTER_ID", &config.cluster_id),
        ("NETWORK", &config.network),
        ("SERVICE_ACCOUNT", &config.service_account),
        (node::GATEWAY_NAME, gateway),
    ];
    let known = known.map(|(key, value)| (key.to_owned(), value.clone()));
    let version = (
        "ISTIO_VERSION".to_owned(),
        env!("CARGO_PKG_VERSION").to_owned(),
    );
    let metadata = known.into_iter().chain([version]);
    let name = Name {
        kind: "waypoint",
        address: config.own_ip(),
        pod: &config.pod_name,
        namespace: &config.pod_namespace,
        domain: &config.cluster_domain,
    };
    node::node(name, metadata.filter(|(_, value)| !value.is_empty()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_node_says_which_gateway_it_is_of() {
        let arguments = "waypoint --pod-name way-1 --pod-namespace shop --gateway-name way \
                         --instance-ip 10.0.0.7 --network far";
        let config = Config::try_parse_from(arguments.split_whitespace()).unwrap();
        let said = node(&config);
        assert_eq!(
            said.id,
            "waypoint~10.0.0.7~way-1.shop~shop.svc.cluster.local"
        );
        for (key, value) in [
            (node::GATEWAY_NAME, "way"),
            ("NAMESPACE", "shop"),
            ("NETWORK", "far"),
            ("NODE_NAME", ""),
        ] {
            assert_eq!(node::metadata(&said, key), value, "{key}");
        }
        let east_west = format!("{arguments} proxy east-west");
        let config = Config::try_parse_from(east_west.split_whitespace()).unwrap();
        assert_eq!(node::metadata(&node(&config), node::GATEWAY_NAME), "");
    }
}
