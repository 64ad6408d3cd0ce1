//! The way to the control plane: discovery and certificate requests over gRPC.
//!
//! Addresses, a root file and a token file enter. What leaves: a channel for the certificate
//! authority ([`channel`]), and a mesh that is kept up to date ([`run`]).
//!
//! Roots are read for each new connection and tokens for each call, so that both may be rotated
//! under our feet. `http://` addresses are spoken to in the clear: for tests on loopback.

mod channel;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use api::discovery::Node;
use api::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use hbone::ca::TokenSource;
use mesh::stream::{ClientConfig, ClientEvent, run_client};
use ops::ready::Gate;
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::{Request, Status};

use crate::config::Config;
use crate::metrics::{Reason, TypeUrl, XdsMetrics};
pub use channel::channel;

/// Keeps `writer`'s mesh up to date until `cancel`. `gate` opens with the first answer of each
/// type and stays open: a proxy that knows the mesh goes on without the control plane. `known` is told then.
pub async fn run(
    config: &Config,
    mut writer: mesh::Writer,
    gate: Gate,
    known: oneshot::Sender<()>,
    metrics: XdsMetrics,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let channel = channel(
        &config.xds_address,
        &config.xds_root_ca,
        config.alt_xds_hostname.as_deref(),
    )?;
    let caller = Caller::new(config);
    let connect = || {
        let channel = InterceptedService::new(channel.clone(), caller.clone());
        std::future::ready(Ok::<_, std::convert::Infallible>(channel))
    };
    let mut answered = Answered {
        addresses: false,
        authorizations: false,
    };
    let mut known = Some(known);
    let events = |event: ClientEvent<'_>| {
        note(&event, &metrics);
        if let ClientEvent::Applied { type_url, .. } = event
            && answered.all_with(type_url)
        {
            gate.open();
            // Nobody waits for it any more when the proxy is stopping.
            let _ = known.take().map(|known| known.send(()));
        }
    };
    run_client(
        connect,
        ClientConfig::new(node(config)),
        None,
        |update| writer.apply(update),
        events,
        cancel,
    )
    .await;
    Ok(())
}

/// The bearer token, read from its file at each call. Empty without a file name.
pub fn token_source(path: &Path) -> TokenSource {
    let path = path.to_owned();
    Arc::new(move || {
        if path.as_os_str().is_empty() {
            Ok(String::new())
        } else {
            read_token(&path)
        }
    })
}

fn read_token(path: &Path) -> io::Result<String> {
    let token = std::fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    Ok(token.trim().to_owned())
}

/// Puts our credentials on every call.
#[derive(Clone)]
struct Caller {
    token: TokenSource,
    headers: Arc<Vec<(AsciiMetadataKey, AsciiMetadataValue)>>,
}

impl Caller {
    fn new(config: &Config) -> Self {
        let cluster = ("clusterid".to_owned(), config.cluster_id.clone());
        let headers = config.xds_headers.iter().cloned().chain([cluster]);
        let parsed = headers.filter_map(|(name, value)| {
            Some((
                AsciiMetadataKey::from_bytes(name.as_bytes()).ok()?,
                value.parse().ok()?,
            ))
        });
        Self {
            token: token_source(&config.auth_token),
            headers: Arc::new(parsed.collect()),
        }
    }
}

impl Interceptor for Caller {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token =
            (self.token)().map_err(|error| Status::unauthenticated(format!("token: {error}")))?;
        if !token.is_empty() {
            let bearer = format!("Bearer {token}").parse::<AsciiMetadataValue>();
            let mut bearer = bearer
                .map_err(|_| Status::unauthenticated("token: characters that no token has"))?;
            bearer.set_sensitive(true);
            request.metadata_mut().insert("authorization", bearer);
        }
        for (name, value) in self.headers.iter() {
            request.metadata_mut().insert(name.clone(), value.clone());
        }
        Ok(request)
    }
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
    let own_ip = config.own_ip();
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
    metadata.extend(
        known
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(key, value)| (key.to_owned(), value.clone())),
    );
    metadata
        .entry("ISTIO_VERSION".to_owned())
        .or_insert_with(|| env!("CARGO_PKG_VERSION").to_owned());
    let text = |value| Value {
        kind: Some(Kind::StringValue(value)),
    };
    let fields: BTreeMap<_, _> = metadata
        .into_iter()
        .map(|(key, value)| (key, text(value)))
        .collect();
    Node {
        id: format!("ztunnel~{own_ip}~{pod_name}.{namespace}~{namespace}.svc.{cluster_domain}"),
        metadata: Some(Struct { fields }),
        ..Node::default()
    }
}

/// Which types were answered since the start.
#[derive(Debug)]
struct Answered {
    addresses: bool,
    authorizations: bool,
}

impl Answered {
    fn all_with(&mut self, type_url: &str) -> bool {
        self.addresses |= type_url == ADDRESS_TYPE;
        self.authorizations |= type_url == AUTHORIZATION_TYPE;
        self.addresses && self.authorizations
    }
}

fn note(event: &ClientEvent<'_>, metrics: &XdsMetrics) {
    match event {
        ClientEvent::Connected => tracing::info!("xds: stream open"),
        ClientEvent::Applied {
            type_url,
            bytes,
            set,
            removed,
            rejected,
        } => {
            let url = TypeUrl { url: type_url };
            metrics.messages.get_or_create(&url).inc();
            metrics
                .message_bytes
                .get_or_create(&url)
                .inc_by(*bytes as u64);
            tracing::debug!(
                type_url,
                set,
                removed,
                rejected = rejected.len(),
                "xds: applied"
            );
            for rejected in *rejected {
                tracing::warn!(type_url, resource = %rejected.name, reason = %rejected.reason, "xds: resource refused, the last good one stays");
            }
        }
        ClientEvent::Disconnected {
            reason: None,
            retry_in,
        } => {
            metrics
                .terminations
                .get_or_create(&Reason { reason: "Complete" })
                .inc();
            tracing::debug!(?retry_in, "xds: the control plane closed the stream");
        }
        ClientEvent::Disconnected {
            reason: Some(reason),
            retry_in,
        } => {
            metrics
                .terminations
                .get_or_create(&Reason { reason: "Error" })
                .inc();
            tracing::warn!(
                error = reason,
                ?retry_in,
                "xds: no stream to the control plane; going on with what is known"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

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

    #[test]
    fn token_is_read_at_each_call() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let mut caller = Caller {
            token: token_source(&path),
            headers: Arc::default(),
        };
        let bearer = |caller: &mut Caller| {
            let request = caller
                .call(Request::new(()))
                .map_err(|status| status.message().to_owned())?;
            Ok::<_, String>(
                request
                    .metadata()
                    .get("authorization")
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
            )
        };
        assert!(bearer(&mut caller).unwrap_err().contains("No such file"));
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(bearer(&mut caller).unwrap(), "Bearer one");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(bearer(&mut caller).unwrap(), "Bearer two");
    }

    #[test]
    fn ready_only_after_both_types() {
        let mut answered = Answered {
            addresses: false,
            authorizations: false,
        };
        assert!(!answered.all_with(AUTHORIZATION_TYPE));
        assert!(!answered.all_with(AUTHORIZATION_TYPE));
        assert!(answered.all_with(ADDRESS_TYPE));
    }
}
