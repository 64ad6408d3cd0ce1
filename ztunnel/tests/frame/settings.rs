//! The variables that Istio's chart and people's own set, and what holds where nobody sets them: a part of the contract as
//! much as any message.

use clap::CommandFactory;
use ztunnel::config::{Config, ports};

/// Name, and what counts where it is not set.
const CONTRACT: [(&str, Option<&str>); 34] = [
    ("XDS_ADDRESS", Some("https://istiod.istio-system.svc:15012")),
    ("XDS_ROOT_CA", Some("/var/run/secrets/istio/root-cert.pem")),
    ("ALT_XDS_HOSTNAME", None),
    ("XDS_ON_DEMAND", Some("false")),
    ("CA_ADDRESS", None),
    ("CA_ROOT_CA", None),
    ("ALT_CA_HOSTNAME", None),
    ("CRL_PATH", None),
    ("AUTH_TOKEN", Some("/var/run/secrets/tokens/istio-token")),
    ("CLUSTER_ID", Some("Kubernetes")),
    ("CLUSTER_DOMAIN", Some("cluster.local")),
    ("NETWORK", Some("")),
    ("NODE_NAME", Some("")),
    ("POD_NAME", Some("")),
    ("POD_NAMESPACE", Some("istio-system")),
    ("PROXY_MODE", Some("shared")),
    ("PROXY_WORKLOAD_INFO", None),
    ("INPOD_UDS", Some("/var/run/ztunnel/ztunnel.sock")),
    ("INPOD_PORT_REUSE", Some("true")),
    ("PACKET_MARK", Some("0x539")),
    ("IPV6_ENABLED", Some("true")),
    ("ENABLE_ORIG_SRC", None),
    ("SECRET_TTL", Some("86400s")),
    ("POOL_MAX_STREAMS_PER_CONNECTION", Some("100")),
    ("POOL_UNUSED_RELEASE_TIMEOUT", Some("300s")),
    ("KEEPALIVE_ENABLED", Some("true")),
    ("KEEPALIVE_TIME", Some("180s")),
    ("KEEPALIVE_INTERVAL", Some("180s")),
    ("KEEPALIVE_RETRIES", Some("9")),
    ("USER_TIMEOUT_ENABLED", Some("false")),
    ("ZTUNNEL_WORKER_THREADS", None),
    ("ZTUNNEL_CPU_LIMIT", None),
    ("TERMINATION_GRACE_PERIOD_SECONDS", Some("30")),
    ("CONNECTION_TERMINATION_DEADLINE", None),
];

#[test]
fn istios_variables_have_istios_names_and_defaults() {
    let command = Config::command();
    for (name, default) in CONTRACT {
        let argument = command
            .get_arguments()
            .find(|argument| argument.get_env().is_some_and(|env| env == name))
            .unwrap_or_else(|| panic!("nobody reads {name}"));
        let defaults = argument.get_default_values();
        let ours = defaults.first().map(|value| value.to_str().unwrap());
        assert_eq!(ours, default, "{name}");
    }
}

#[test]
fn ports_are_where_packet_rules_and_probes_look_for_them() {
    let inside = (ports::OUTBOUND, ports::INBOUND_PLAIN, ports::INBOUND);
    assert_eq!(inside, (15001, 15006, 15008));
    let command = Config::command();
    for (name, at) in [
        ("AMBIT_DNS_PORT", "15053"),
        ("AMBIT_ADMIN_PORT", "15000"),
        ("AMBIT_STATS_ADDRESS", "[::]:15020"),
        ("AMBIT_READINESS_ADDRESS", "[::]:15021"),
    ] {
        let mut arguments = command.get_arguments();
        let argument = arguments.find(|it| it.get_env().is_some_and(|env| env == name));
        let argument = argument.unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(argument.get_default_values(), [at], "{name}");
    }
}
