//! What a scrape shows.

use api::workload as wire;

use super::*;
use crate::testing::{pod, service, snapshot};

fn text(traffic: &Traffic) -> String {
    let mut registry = Registry::default();
    traffic.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

fn identity(account: &str) -> Option<Identity> {
    Some(Identity::new("cluster.local", "default", account).unwrap())
}

/// (name, labels) of the first sample line of a metric.
fn sample<'a>(text: &'a str, metric: &str) -> (&'a str, Vec<(&'a str, &'a str)>) {
    let line = text.lines().find(|line| line.starts_with(metric)).unwrap();
    let (name, rest) = line.split_once('{').unwrap();
    let labels = rest.rsplit_once('}').unwrap().0;
    let labels = labels
        .split("\",")
        .filter_map(|pair| pair.split_once("=\""));
    (
        name,
        labels
            .map(|(key, value)| (key, value.trim_end_matches('"')))
            .collect(),
    )
}

#[test]
fn names_labels_and_their_order_are_those_of_istio() {
    let mesh = snapshot(|mesh| {
        mesh.set_workload(pod("client", &["10.99.0.2"]));
        mesh.set_workload(pod("server", &["10.99.0.3"]));
    });
    let traffic = Traffic::default();
    let ends = Ends {
        source: mesh.workload("client").cloned(),
        source_identity: identity("client"),
        destination: mesh.workload("server").cloned(),
        destination_identity: identity("server"),
        service: None,
        secured: true,
    };
    let series = traffic.series(Reporter::Source, &ends, None);
    series.opened();
    series.moved(78, 78);
    series.closed(Flag::Connect);
    series.failed(Flag::Connect);
    let ours = text(&traffic);
    let golden = include_str!("../../testdata/admin/metrics-client-node.txt");
    for metric in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_connections_failed_total",
        "istio_tcp_sent_bytes_total",
        "istio_tcp_received_bytes_total",
        "istio_tcp_sockets_open",
    ] {
        let (ours, golden) = (sample(&ours, metric), sample(golden, metric));
        assert_eq!(ours.0, golden.0);
        let keys = |labels: &[(&str, &str)]| {
            labels
                .iter()
                .map(|label| label.0.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(keys(&ours.1), keys(&golden.1), "{metric}");
    }
    let (_, opened) = sample(&ours, "istio_tcp_connections_opened_total");
    assert!(
        sample(golden, "istio_tcp_connections_opened_total").1 == opened,
        "same values too: {opened:?}"
    );
}

#[test]
fn who_was_revoked_is_counted_under_the_name_that_istio_has_for_it() {
    let traffic = Traffic::default();
    traffic.revoked(Reporter::Destination);
    traffic.revoked(Reporter::Destination);
    let text = text(&traffic);
    for line in [
        "# TYPE istio_crl_policy_rejections counter",
        "istio_crl_policy_rejections_total{reporter=\"source\"} 0",
        "istio_crl_policy_rejections_total{reporter=\"destination\"} 2",
    ] {
        assert!(
            text.lines().any(|printed| printed == line),
            "{line} is missing in\n{text}"
        );
    }
}

#[test]
fn one_series_per_pair_however_often_its_objects_are_replaced() {
    let traffic = Traffic::default();
    for _ in 0..3 {
        let mesh = snapshot(|mesh| {
            mesh.set_workload(pod("server", &["10.0.0.3"]));
            mesh.set_service(service("web.svc", &["10.1.0.1"], &[]));
        });
        let destination = mesh.workload("server").cloned();
        let service = mesh.service("default", "web.svc").cloned();
        let ends = Ends {
            destination,
            service,
            ..Ends::default()
        };
        traffic.series(Reporter::Destination, &ends, None).opened();
    }
    let text = text(&traffic);
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("istio_tcp_connections_opened_total"))
        .collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].contains("destination_service=\"web.svc\"") && lines[0].ends_with(" 3"),
        "{lines:?}"
    );
}

#[test]
fn baggage_fills_labels_of_unknown_sources_only_and_never_the_namespace_of_a_proven_one() {
    let traffic = Traffic::default();
    let said = Baggage {
        namespace: Some("forged"),
        workload: Some("web"),
        ..Baggage::default()
    };
    let ends = Ends {
        source_identity: identity("client"),
        ..Ends::default()
    };
    traffic
        .series(Reporter::Destination, &ends, Some(said))
        .opened();
    let shown = text(&traffic);
    assert!(
        shown.contains("source_workload=\"web\"")
            && shown.contains("source_workload_namespace=\"default\"")
    );
    assert!(!shown.contains("forged"));

    let mesh = snapshot(|mesh| mesh.set_workload(pod("client", &["10.0.0.1"])));
    let known = Ends {
        source: mesh.workload("client").cloned(),
        ..ends
    };
    let traffic = Traffic::default();
    traffic
        .series(Reporter::Destination, &known, Some(said))
        .opened();
    assert!(!text(&traffic).contains("web"));
}

#[test]
fn invented_names_do_not_fill_memory() {
    let traffic = Traffic::default();
    let ends = Ends {
        source_identity: identity("client"),
        ..Ends::default()
    };
    let believed = Bounds::default().most / BELIEVED;
    for name in 0..believed + 500 {
        let name = name.to_string();
        let said = Baggage {
            workload: Some(&name),
            ..Baggage::default()
        };
        traffic.series(Reporter::Destination, &ends, Some(said));
    }
    assert_eq!(traffic.0.series.len(), believed + 1);
}

/// Label names as Istio's `OnDemandDnsLabels` has them.
#[test]
fn resolved_names_are_counted_by_who_asked_and_for_what() {
    let mesh = snapshot(|mesh| {
        mesh.set_workload(wire::Workload {
            workload_name: "client".into(),
            canonical_name: "shop".into(),
            canonical_revision: "v1".into(),
            cluster_id: "Kubernetes".into(),
            ..pod("client", &["10.99.0.2"])
        });
    });
    let traffic = Traffic::default();
    let (source, identity) = (
        mesh.workload("client").unwrap(),
        identity("client").unwrap(),
    );
    for name in ["db.example.com", "api.example.com", "db.example.com"] {
        traffic.asked(source, &identity, &name.into());
    }
    let text = text(&traffic);
    assert!(
        text.contains("# TYPE istio_on_demand_dns counter\n"),
        "{text}"
    );
    let mut counted: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("istio_on_demand_dns_total"))
        .collect();
    counted.sort_unstable();
    let series = |name: &str| {
        format!(
            "{{source_workload=\"client\",source_canonical_service=\"shop\",\
             source_canonical_revision=\"v1\",source_workload_namespace=\"default\",\
             source_principal=\"spiffe://cluster.local/ns/default/sa/client\",source_app=\"shop\",\
             source_version=\"v1\",source_cluster=\"Kubernetes\",hostname=\"{name}\"}}"
        )
    };
    let expected = [("api.example.com", 1), ("db.example.com", 2)];
    assert_eq!(
        counted,
        expected.map(|(name, count)| format!("{} {count}", series(name)))
    );
}

fn owned(name: &str) -> wire::Workload {
    wire::Workload {
        workload_name: name.into(),
        ..pod(name, &[])
    }
}

/// Connections opened, by the values of a label.
fn opened(traffic: &Traffic, label: &str) -> Vec<String> {
    let text = text(traffic);
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("istio_tcp_connections_opened_total{"));
    let value = |line: &str| {
        let (labels, count) = line.rsplit_once("} ").unwrap();
        let found = labels
            .split("\",")
            .find_map(|pair| pair.strip_prefix(&format!("{label}=\"")));
        format!("{} {count}", found.unwrap_or("-").trim_end_matches('"'))
    };
    let mut all: Vec<_> = lines.map(value).collect();
    all.sort();
    all
}

fn to(mesh: &Snapshot, name: &str) -> Ends {
    Ends {
        destination: mesh.workload(name).cloned(),
        destination_identity: identity(name),
        ..Ends::default()
    }
}

fn bounded(most: usize, without: &str) -> Traffic {
    let expiry = std::time::Duration::from_secs(60);
    Traffic::new(Bounds { most, expiry }, Without::parse(without).unwrap())
}

#[test]
fn a_series_of_who_is_gone_expires_and_starts_from_zero_when_he_comes_again() {
    let both = snapshot(|mesh| {
        mesh.set_workload(owned("stays"));
        mesh.set_workload(owned("goes"));
    });
    let left = snapshot(|mesh| mesh.set_workload(owned("stays")));
    let traffic = bounded(100, "");
    for name in ["stays", "goes", "goes"] {
        traffic
            .series(Reporter::Destination, &to(&both, name), None)
            .opened();
    }
    let open = traffic.series(Reporter::Destination, &to(&both, "goes"), None);
    let label = "destination_workload";
    let begun = Instant::now();
    let after = |minutes: u64| begun + std::time::Duration::from_secs(minutes * 60);
    for minutes in 0..10 {
        traffic.sweep(&left, after(minutes));
    }
    assert_eq!(
        opened(&traffic, label),
        ["goes 2", "stays 1"],
        "a connection is still open"
    );
    drop(open);
    traffic.sweep(&both, after(20));
    traffic.sweep(&both, after(22));
    assert_eq!(
        opened(&traffic, label),
        ["goes 2", "stays 1"],
        "nobody is gone"
    );
    traffic.sweep(&left, after(24));
    assert_eq!(opened(&traffic, label), ["stays 1"]);
    traffic
        .series(Reporter::Destination, &to(&both, "goes"), None)
        .opened();
    assert_eq!(opened(&traffic, label), ["goes 1", "stays 1"]);
    let mut registry = Registry::default();
    registry.register_collector(Box::new(traffic.bounded()));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    for line in [
        "ambit_metrics_series{family=\"istio_tcp\"} 2",
        "ambit_metrics_series_expired_total{family=\"istio_tcp\"} 1",
        "ambit_metrics_series_merged_total{family=\"istio_tcp\"} 0",
    ] {
        assert!(
            text.lines().any(|shown| shown == line),
            "{line} is missing in\n{text}"
        );
    }
}

#[test]
fn beyond_the_bound_connections_are_counted_together() {
    let names: Vec<_> = (0..10).map(|number| format!("pod-{number}")).collect();
    let mesh = snapshot(|mesh| names.iter().for_each(|name| mesh.set_workload(owned(name))));
    let traffic = bounded(3, "");
    for name in &names {
        traffic
            .series(Reporter::Destination, &to(&mesh, name), None)
            .opened();
    }
    let counted = opened(&traffic, "destination_workload");
    assert_eq!(counted, ["overflow 7", "pod-0 1", "pod-1 1", "pod-2 1"]);
}

#[test]
fn what_labels_that_are_left_out_told_apart_is_one_series_and_logs_still_know_who_it_was() {
    let mesh = snapshot(|mesh| {
        mesh.set_workload(owned("a"));
        mesh.set_workload(owned("b"));
    });
    let left_out = "destination_workload,destination_principal,destination_canonical_service";
    let traffic = bounded(100, left_out);
    for name in ["a", "b", "b"] {
        let series = traffic.series(Reporter::Destination, &to(&mesh, name), None);
        series.opened();
        let principal = format!("spiffe://cluster.local/ns/default/sa/{name}");
        assert_eq!(series.destination_principal(), Some(&*principal));
    }
    assert_eq!(opened(&traffic, "destination_workload"), ["- 3"]);
    assert_eq!(
        opened(&traffic, "destination_workload_namespace"),
        ["default 3"]
    );
    assert_eq!(opened(&traffic, "reporter"), ["destination 3"]);
    // It names nobody, so nobody whom it names is gone.
    let nobody = snapshot(|_| {});
    let later = Instant::now() + std::time::Duration::from_secs(3600);
    traffic.sweep(&nobody, Instant::now());
    traffic.sweep(&nobody, later);
    traffic.sweep(&nobody, later + std::time::Duration::from_secs(3600));
    assert_eq!(opened(&traffic, "reporter"), ["destination 3"]);
}

/// The names that dashboards and `istioctl` know, and two of ours.
#[test]
fn every_way_to_fail_has_the_flag_that_istio_has_for_it() {
    use crate::outbound::Failed;
    use crate::report::Failure as _;
    use hbone::{Alert, OpenError, TlsError};

    let labels = Flag::ALL.map(Flag::label);
    assert_eq!(
        labels,
        [
            "-",
            "DENY",
            "CONNECT",
            "TLS_FAILURE",
            "H2_HANDSHAKE_FAILURE",
            "NETWORK_POLICY",
            "IDENTITY_ERROR",
            "CERT_REVOKED",
            "EGRESS",
            "OVERLOAD",
        ]
    );
    let address = "10.0.0.2:15008".parse().unwrap();
    let within = std::time::Duration::from_secs(10);
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    for (why, flag) in [
        (OpenError::DialTimeout { address, within }, "NETWORK_POLICY"),
        (
            OpenError::Dial {
                address,
                error: Arc::new(refused),
            },
            "CONNECT",
        ),
        (OpenError::HandshakeTimeout(within), "TLS_FAILURE"),
        (OpenError::Tls(TlsError::NoCertificate), "TLS_FAILURE"),
        (OpenError::Tls(TlsError::Revoked), "CERT_REVOKED"),
        (
            OpenError::Tls(TlsError::Alert(Alert::CERTIFICATE_REVOKED)),
            "CERT_REVOKED",
        ),
        (
            OpenError::Tls(TlsError::Alert(Alert::CERTIFICATE_EXPIRED)),
            "TLS_FAILURE",
        ),
        (
            OpenError::IdentityMismatch(TlsError::IdentityMismatch {
                presented: identity("somebody").unwrap(),
                expected: vec![identity("server").unwrap()],
            }),
            "IDENTITY_ERROR",
        ),
        (
            OpenError::Http2("no preface".into()),
            "H2_HANDSHAKE_FAILURE",
        ),
        (OpenError::Refused(400), "CONNECT"),
        (OpenError::Refused(401), "DENY"),
        (OpenError::Refused(503), "CONNECT"),
        (OpenError::Reset("by the peer".into()), "CONNECT"),
        (OpenError::ConnectionLost("closed".into()), "CONNECT"),
        (OpenError::AnswerTimeout(within), "CONNECT"),
        (OpenError::Malformed("no authority".into()), "CONNECT"),
    ] {
        let failed = Failed::from(why);
        assert_eq!(failed.flag().label(), flag, "{failed}");
    }
}
