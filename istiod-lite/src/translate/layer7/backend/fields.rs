//! Each field of a traffic policy, as the wire has it.

use api::k8s::istio::destination_rule as k8s;
use api::waypoint as wire;
use wire::consistent_hash::{Algorithm, Key};
use wire::locality::likeness::By;

use super::super::duration;
use super::Alike;
use crate::translate::credential;

/// The policy, and what of it has no effect. `whole`: fields that are not set are told as their defaults, so
/// that nothing more general shows through.
pub(super) fn policy(
    policy: &k8s::TrafficPolicy,
    whole: bool,
    namespace: &str,
    alike: &Alike<'_>,
) -> (wire::BackendPolicy, Vec<String>) {
    let mut faults = Vec::new();
    let balancer = policy.load_balancer.as_ref();
    let pool = policy.connection_pool.as_ref();
    let outliers = policy.outlier_detection.as_ref();
    let tls = policy.tls.as_ref();
    let secure = tls.map(|it| self::tls(it, namespace));
    let refused = secure.iter().filter(|it| !it.invalid.is_empty());
    faults.extend(refused.map(|it| format!("tls: {}: connections are refused", it.invalid)));
    let mut made = wire::BackendPolicy {
        load_balancer: balancer.map(|it| load_balancer(it, alike, &mut faults)),
        limits: pool.map(|it| limits(it, &mut faults)),
        outliers: outliers.map(|it| self::outliers(it, &mut faults)),
        tls: secure,
        retry_budget: policy.retry_budget.as_ref().map(budget),
        proxy_protocol: match &policy.proxy_protocol {
            None => 0,
            Some(it) if it.version == k8s::ProxyVersion::V1 => 1,
            Some(_) => 2,
        },
        ..wire::BackendPolicy::default()
    };
    if policy.tunnel.is_some() {
        faults.push(
            "tunnel has no effect: connections are not tunnelled to other proxies".to_owned(),
        );
    }
    if whole {
        made.load_balancer.get_or_insert_default();
        made.limits.get_or_insert_default();
        made.outliers.get_or_insert_with(off);
        made.tls.get_or_insert_default();
    }
    (made, faults)
}

/// A duration that cannot be read is as if it were not there, and said.
fn time(field: &str, text: Option<&str>, faults: &mut Vec<String>) -> u64 {
    duration::optional(text).unwrap_or_else(|why| {
        faults.push(format!("{field}: {why}"));
        0
    })
}

fn load_balancer(
    it: &k8s::LoadBalancer,
    alike: &Alike<'_>,
    faults: &mut Vec<String>,
) -> wire::LoadBalancer {
    use wire::load_balancer::Simple;
    let simple = match it.simple.unwrap_or_default() {
        k8s::SimpleBalancer::Unspecified => Simple::Unspecified,
        k8s::SimpleBalancer::Random => Simple::Random,
        k8s::SimpleBalancer::Passthrough => Simple::Passthrough,
        k8s::SimpleBalancer::RoundRobin => Simple::RoundRobin,
        k8s::SimpleBalancer::LeastRequest | k8s::SimpleBalancer::LeastConn => Simple::LeastRequest,
    };
    let warmup = it.warmup.as_ref();
    let duration = warmup.and_then(|it| it.duration.as_deref());
    let duration = duration.or(it.warmup_duration_secs.as_deref());
    wire::LoadBalancer {
        simple: simple.into(),
        hash: it.consistent_hash.as_ref().map(|it| hash(it, faults)),
        locality: it
            .locality_lb_setting
            .as_ref()
            .map(|it| locality(it, alike)),
        warm_up: time("warmup.duration", duration, faults),
        warm_up_aggression: warmup.and_then(|it| it.aggression).unwrap_or_default(),
        warm_up_minimum: percent(warmup.and_then(|it| it.minimum_percent)),
    }
}

fn hash(it: &k8s::ConsistentHash, faults: &mut Vec<String>) -> wire::ConsistentHash {
    let attribute = |it: &k8s::CookieAttribute| wire::Header {
        name: it.name.clone(),
        value: it.value.clone(),
    };
    let cookie = |it: &k8s::HttpCookie, faults: &mut Vec<String>| {
        Key::Cookie(wire::HashCookie {
            name: it.name.clone(),
            path: it.path.clone(),
            ttl: time("consistentHash.httpCookie.ttl", it.ttl.as_deref(), faults),
            // The app's own, as a rule: another one of its name would be taken for it.
            only_read: it.ttl.is_none(),
            attributes: it.attributes.iter().map(attribute).collect(),
        })
    };
    let header = it.http_header_name.clone().map(Key::Header);
    let query = it.http_query_parameter_name.clone().map(Key::Query);
    let source = it.use_source_ip.map(Key::SourceIp);
    let key = header
        .or_else(|| it.http_cookie.as_ref().map(|it| cookie(it, faults)))
        .or(query)
        .or(source);
    let (algorithm, size) = match (&it.maglev, &it.ring_hash) {
        (Some(maglev), _) => (Algorithm::Maglev, maglev.table_size),
        (None, ring) => {
            let size = ring.as_ref().and_then(|it| it.minimum_ring_size);
            (Algorithm::Ring, size.or(it.minimum_ring_size))
        }
    };
    wire::ConsistentHash {
        key,
        algorithm: algorithm.into(),
        size: size.unwrap_or_default(),
    }
}

fn locality(it: &k8s::LocalitySetting, alike: &Alike<'_>) -> wire::Locality {
    let distribute = it.distribute.iter().map(|it| wire::locality::Distribute {
        from: it.from.clone(),
        to: it.to.clone(),
    });
    let failover = it.failover.iter().map(|it| wire::locality::Failover {
        from: it.from.clone(),
        to: it.to.clone(),
    });
    wire::Locality {
        disabled: it.enabled == Some(false),
        distribute: distribute.collect(),
        failover: failover.collect(),
        priority: it
            .failover_priority
            .iter()
            .map(|it| likeness(it, alike))
            .collect(),
    }
}

/// What an endpoint is to have in common with the proxy, or to have at all. Where it stands proxies know of each other;
/// of other labels they are told who has them.
fn likeness(text: &str, alike: &Alike<'_>) -> wire::locality::Likeness {
    let (label, value) = parts(text);
    match place(label) {
        Some(by) => wire::locality::Likeness {
            by: by.into(),
            value: value.map(str::to_owned),
            ..Default::default()
        },
        None => wire::locality::Likeness {
            by: By::Workloads.into(),
            workloads: Some(wire::Workloads {
                uids: alike(label, value),
            }),
            ..Default::default()
        },
    }
}

/// `key`, or `key=value`.
fn parts(text: &str) -> (&str, Option<&str>) {
    match text.split_once('=') {
        Some((label, value)) => (label, Some(value)),
        None => (text, None),
    }
}

/// What of a place a label says.
fn place(label: &str) -> Option<By> {
    match label {
        "topology.kubernetes.io/region" => Some(By::Region),
        "topology.kubernetes.io/zone" => Some(By::Zone),
        "topology.istio.io/subzone" => Some(By::Subzone),
        "kubernetes.io/hostname" => Some(By::Node),
        "topology.istio.io/network" => Some(By::Network),
        "topology.istio.io/cluster" => Some(By::Cluster),
        _ => None,
    }
}

/// Whether it asks who has a label.
pub(super) fn asks_who(text: &str) -> bool {
    place(parts(text).0).is_none()
}

/// Whether it asks who has a label as the proxy's own pods have it.
pub(super) fn compares(text: &str) -> bool {
    asks_who(text) && parts(text).1.is_none()
}

fn limits(it: &k8s::ConnectionPool, faults: &mut Vec<String>) -> wire::Limits {
    use wire::limits::Upgrade;
    let (tcp, http) = (
        it.tcp.clone().unwrap_or_default(),
        it.http.clone().unwrap_or_default(),
    );
    let keepalive = tcp.tcp_keepalive.clone().unwrap_or_default();
    let upgrade = match http.h2_upgrade_policy.unwrap_or_default() {
        _ if http.use_client_protocol == Some(true) => Upgrade::AsClient,
        k8s::H2Upgrade::Default => Upgrade::AsDeclared,
        k8s::H2Upgrade::DoNotUpgrade => Upgrade::NeverHttp2,
        k8s::H2Upgrade::Upgrade => Upgrade::AlwaysHttp2,
    };
    if tcp.tcp_keepalive.is_some() {
        faults.push(
            "connectionPool.tcp.tcpKeepalive has no effect on tunnels of the mesh: it is for connections that leave it"
                .to_owned(),
        );
    }
    // As Istio has it: what is said for bytes alone holds for connections of requests, too.
    let idle = http.idle_timeout.as_deref().or(tcp.idle_timeout.as_deref());
    let silence = tcp.idle_timeout.as_deref();
    let age = tcp.max_connection_duration.as_deref();
    wire::Limits {
        connections: tcp.max_connections.unwrap_or_default(),
        connect_timeout: time("tcp.connectTimeout", tcp.connect_timeout.as_deref(), faults),
        connection_idle: time("http.idleTimeout", idle, faults),
        silence: time("tcp.idleTimeout", silence, faults),
        connection_age: time("tcp.maxConnectionDuration", age, faults),
        requests_per_connection: http.max_requests_per_connection.unwrap_or_default(),
        pending: http.http1_max_pending_requests.unwrap_or_default(),
        requests: http.http2_max_requests.unwrap_or_default(),
        retries: http.max_retries.unwrap_or_default(),
        http2: upgrade.into(),
        streams: http.max_concurrent_streams.unwrap_or_default(),
        keepalive_time: time("tcpKeepalive.time", keepalive.time.as_deref(), faults),
        keepalive_interval: time(
            "tcpKeepalive.interval",
            keepalive.interval.as_deref(),
            faults,
        ),
        keepalive_probes: keepalive.probes.unwrap_or_default(),
    }
}

fn outliers(it: &k8s::OutlierDetection, faults: &mut Vec<String>) -> wire::Outliers {
    let gateway = it.consecutive_gateway_errors.or(it.consecutive_errors);
    wire::Outliers {
        consecutive_5xx: Some(it.consecutive_5xx_errors.unwrap_or(5)),
        consecutive_gateway_errors: gateway,
        consecutive_local: it.consecutive_local_origin_failures,
        split_local: it.split_external_local_origin_errors.unwrap_or_default(),
        interval: time("interval", it.interval.as_deref(), faults),
        ejection: time("baseEjectionTime", it.base_ejection_time.as_deref(), faults),
        at_most: it.max_ejection_percent.unwrap_or_default(),
        least_healthy: it.min_health_percent.unwrap_or_default(),
    }
}

/// Nobody is left out.
fn off() -> wire::Outliers {
    wire::Outliers {
        consecutive_5xx: Some(0),
        consecutive_gateway_errors: Some(0),
        consecutive_local: Some(0),
        ..wire::Outliers::default()
    }
}

fn tls(it: &k8s::ClientTls, namespace: &str) -> wire::ClientTls {
    use wire::client_tls::Mode;
    let mode = match it.mode {
        k8s::TlsMode::Disable => Mode::Disable,
        k8s::TlsMode::Simple => Mode::Simple,
        k8s::TlsMode::Mutual => Mode::Mutual,
        k8s::TlsMode::IstioMutual => Mode::IstioMutual,
    };
    let verifies = matches!(it.mode, k8s::TlsMode::Simple | k8s::TlsMode::Mutual);
    let named = it.credential_name.as_deref().filter(|it| !it.is_empty());
    let key = named.map(|name| credential::wire_key(&credential::credential(name, namespace)));
    let files = [
        &it.client_certificate,
        &it.private_key,
        &it.ca_certificates,
        &it.ca_crl,
    ];
    let files = files.into_iter().flatten().any(|it| !it.is_empty());
    let invalid = if verifies && files {
        "files in the proxy cannot be used; name a Secret in credentialName"
    } else if it.mode == k8s::TlsMode::Mutual && key.is_none() {
        "mode MUTUAL needs credentialName, a Secret with the certificate"
    } else {
        ""
    };
    let mutual = it.mode == k8s::TlsMode::Mutual;
    wire::ClientTls {
        mode: mode.into(),
        sni: it.sni.clone().unwrap_or_default(),
        ca: key.clone().filter(|_| verifies).unwrap_or_default(),
        certificate: key.filter(|_| mutual).unwrap_or_default(),
        names: it.subject_alt_names.clone(),
        insecure: it.insecure_skip_verify.unwrap_or_default(),
        invalid: invalid.to_owned(),
    }
}

fn budget(it: &k8s::RetryBudget) -> wire::RetryBudget {
    wire::RetryBudget {
        percent: percent(Some(it.percent.unwrap_or(20.0))),
        least: it.min_retry_concurrency.unwrap_or(3),
        ..wire::RetryBudget::default()
    }
}

/// Whole percents, 0 to 100.
fn percent(number: Option<f64>) -> u32 {
    let number = number.unwrap_or_default().clamp(0.0, 100.0).ceil();
    // Within 0 and 100 after the line above.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let whole = number as u32;
    whole
}
