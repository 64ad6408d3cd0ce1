//! Pure: our configuration under the names that Istio's ztunnel uses in `/config_dump`. What we
//! do not have is left out; `testdata/DEVIATIONS.md` lists it.

use std::time::Duration;

use hbone::limits;
use serde_json::{Value, json};

use crate::config::{Config, Mode, engine_name, ports};

/// The `config` member of the dump.
pub(super) fn settings(config: &Config) -> Value {
    let members = [
        (
            "adminAddr",
            json!({ "Localhost": [config.ipv6_enabled, config.admin_port] }),
        ),
        ("altCaHostname", json!(config.alt_ca_hostname)),
        ("altXdsHostname", json!(config.alt_xds_hostname)),
        ("caAddress", json!(config.ca_address())),
        ("caHeaders", headers(&config.ca_headers)),
        ("caRootCert", json!({ "File": config.ca_root_ca() })),
        ("clusterDomain", json!(config.cluster_domain)),
        ("clusterId", json!(config.cluster_id)),
        ("connectionWindowSize", json!(limits::CONNECTION_WINDOW)),
        ("crlPath", json!(config.crl_path)),
        ("dnsProxy", json!(config.dns_proxy)),
        (
            "dnsProxyAddr",
            json!({ "Localhost": [config.ipv6_enabled, config.dns_port] }),
        ),
        ("engine", json!(engine_name(config.engine))),
        ("fakeCa", json!(false)),
        ("fakeSelfInbound", json!(false)),
        ("forceTunnel", json!(config.force_tunnel)),
        ("frameSize", json!(limits::FRAME)),
        (
            "illegalPorts",
            json!([ports::INBOUND_PLAIN, ports::INBOUND, ports::OUTBOUND]),
        ),
        ("inboundAddr", json!(listener(ports::INBOUND))),
        (
            "inboundPlaintextAddr",
            json!(listener(ports::INBOUND_PLAIN)),
        ),
        ("inpodPortReuse", json!(config.inpod_port_reuse)),
        ("inpodUds", json!(config.inpod_uds)),
        ("ipv6Enabled", json!(config.ipv6_enabled)),
        ("localNode", json!(config.node_name)),
        ("network", json!(config.network)),
        (
            "numWorkerThreads",
            json!(config.workers(std::thread::available_parallelism().map_or(1, usize::from))),
        ),
        ("outboundAddr", json!(listener(ports::OUTBOUND))),
        ("packetMark", json!(config.packet_mark)),
        ("poolMaxStreamsPerConn", json!(config.pool_max_streams)),
        (
            "poolUnusedReleaseTimeout",
            json!(duration(config.pool_unused_release)),
        ),
        ("proxy", json!(true)),
        ("proxyArgs", json!(config.role.join(" "))),
        ("proxyMetadata", json!(config.metadata)),
        ("proxyMode", json!(mode(config.mode))),
        (
            "readinessAddr",
            json!({ "SocketAddr": config.readiness_address }),
        ),
        (
            "requireOriginalSource",
            json!(config.require_original_source),
        ),
        ("secretTtl", json!(duration(config.secret_ttl))),
        (
            "selfTerminationDeadline",
            json!(duration(config.drain_deadline())),
        ),
        (
            "socketConfig",
            json!({
                "keepaliveEnabled": config.keepalive,
                "keepaliveInterval": duration(config.keepalive_interval),
                "keepaliveRetries": config.keepalive_retries,
                "keepaliveTime": duration(config.keepalive_time),
                "userTimeoutEnabled": config.user_timeout,
            }),
        ),
        ("socks5Addr", json!(null)),
        ("statsAddr", json!({ "SocketAddr": config.stats_address })),
        ("windowSize", json!(limits::STREAM_WINDOW)),
        ("xdsAddress", json!(config.xds_address)),
        ("xdsHeaders", headers(&config.xds_headers)),
        ("xdsOnDemand", json!(config.xds_on_demand)),
        ("xdsRootCert", json!({ "File": config.xds_root_ca })),
        ("ztunnelIdentity", json!(null)),
        ("ztunnelWorkload", json!(null)),
    ];
    Value::Object(
        members
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

/// The `version` member of the dump.
pub(super) fn version() -> Value {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "gitRevision": option_env!("AMBIT_GIT_REVISION").unwrap_or("unknown"),
        "rustVersion": env!("CARGO_PKG_RUST_VERSION"),
        "buildProfile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "buildStatus": "unknown",
        "cryptoProvider": "tls-aws-lc",
        "istioVersion": "unknown",
    })
}

/// By name only: what they say may be a secret, and dumps are shown to whoever helps.
fn headers(headers: &[(String, String)]) -> Value {
    let each = headers.iter().map(|(name, _)| json!([name, "(not shown)"]));
    Value::Array(each.collect())
}

fn listener(port: u16) -> String {
    format!("[::]:{port}")
}

fn duration(duration: Duration) -> Value {
    json!({ "secs": duration.as_secs(), "nanos": duration.subsec_nanos() })
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Shared => "Shared",
        Mode::Dedicated => "Dedicated",
    }
}
