//! What one proxy tells the next beside the authority: `baggage` (who calls), `forwarded` (from where, by which name)
//! and `traceparent`. Written by the source's end, read by the destination's end; labels only, never proof: the
//! proof is the certificate.

use std::fmt::Write as _;
use std::net::SocketAddr;

use mesh::Workload;
use mesh::workload::WorkloadType;
pub(crate) use ops::random::random;

/// The `baggage` header of a workload. Empty values are left out, and so are values that would need encoding: no
/// Kubernetes name or label value does, and what cannot be written must not break the header.
pub(crate) fn baggage(workload: &Workload) -> String {
    let kind = match workload.workload_type {
        WorkloadType::Deployment => "k8s.deployment.name",
        WorkloadType::CronJob => "k8s.cronjob.name",
        WorkloadType::Pod => "k8s.pod.name",
        WorkloadType::Job => "k8s.job.name",
    };
    let mut out = String::with_capacity(160);
    for (key, value) in [
        ("k8s.cluster.name", &*workload.cluster),
        ("k8s.namespace.name", &*workload.namespace),
        (kind, &*workload.workload_name),
        ("service.name", &*workload.canonical_name),
        ("service.version", &*workload.canonical_revision),
        ("cloud.region", &*workload.locality.region),
        ("cloud.availability_zone", &*workload.locality.zone),
    ] {
        if value.is_empty() || !value.bytes().all(plain) {
            continue;
        }
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(key);
        out.push('=');
        out.push_str(value);
    }
    out
}

/// What a `baggage` header says of its sender. Everything is optional and nothing is trusted beyond labels.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub(crate) struct Baggage<'a> {
    pub(crate) cluster: Option<&'a str>,
    pub(crate) namespace: Option<&'a str>,
    pub(crate) workload: Option<&'a str>,
    pub(crate) service: Option<&'a str>,
    pub(crate) version: Option<&'a str>,
    pub(crate) region: Option<&'a str>,
    pub(crate) zone: Option<&'a str>,
}

impl<'a> Baggage<'a> {
    /// Reads what it knows, skips what it does not (unknown keys, properties after `;`, members without `=`).
    pub(crate) fn parse(header: &'a str) -> Self {
        let mut baggage = Self::default();
        for member in header.split(',') {
            let member = member.split(';').next().unwrap_or_default();
            let Some((key, value)) = member.split_once('=') else {
                continue;
            };
            let value = value.trim();
            let field = match key.trim() {
                "k8s.cluster.name" => &mut baggage.cluster,
                "k8s.namespace.name" => &mut baggage.namespace,
                "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.pod.name" | "k8s.job.name" => {
                    &mut baggage.workload
                }
                "service.name" => &mut baggage.service,
                "service.version" => &mut baggage.version,
                "cloud.region" => &mut baggage.region,
                "cloud.availability_zone" => &mut baggage.zone,
                _ => continue,
            };
            if !value.is_empty() {
                *field = Some(value);
            }
        }
        baggage
    }
}

/// The `forwarded` header: the app's own address, and the service name it meant, if it meant one.
pub(crate) fn forwarded(from: SocketAddr, host: Option<&str>) -> String {
    let mut out = String::with_capacity(32 + host.map_or(0, |host| host.len() + 6));
    let _ = write!(out, "for=\"{from}\"");
    if let Some(host) = host.filter(|host| host.bytes().all(plain)) {
        out.push_str(";host=");
        out.push_str(host);
    }
    out
}

/// A new `traceparent` (W3C trace context 1.0), not sampled: a node proxy makes no spans, it only gives the
/// connection a name that the next hops keep.
pub(crate) fn traceparent() -> String {
    // The specification forbids ids that are all zero.
    let (high, low, parent) = (random(), random() | 1, random() | 1);
    format!("00-{high:016x}{low:016x}-{parent:016x}-00")
}

fn plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b',' | b';' | b'=' | b'"' | b'\\' | b'%')
}

#[cfg(test)]
mod tests {
    use api::workload as wire;

    use super::*;
    use crate::testing::{pod, snapshot};

    /// What a workload of this kind says of itself.
    fn said_by(fill: impl FnOnce(&mut wire::Workload)) -> String {
        let mut web = pod("web", &["10.0.0.1"]);
        fill(&mut web);
        let mesh = snapshot(|mesh| mesh.set_workload(web));
        baggage(mesh.workload("web").unwrap())
    }

    #[test]
    fn baggage_names_its_sender_by_its_kind_and_leaves_out_what_is_not_known() {
        use wire::WorkloadType::{Cronjob, Deployment, Job, Pod};
        for (kind, key) in [
            (Deployment, "deployment"),
            (Cronjob, "cronjob"),
            (Pod, "pod"),
            (Job, "job"),
        ] {
            let said = said_by(|web| {
                web.cluster_id = "c1".into();
                web.workload_type = kind.into();
                web.workload_name = "web-owner".into();
                web.canonical_name = "web-app".into();
                web.canonical_revision = "v2".into();
                web.locality = Some(wire::Locality {
                    region: "r1".into(),
                    zone: "z1".into(),
                    subzone: "s1".into(),
                });
            });
            assert_eq!(
                said,
                format!(
                    "k8s.cluster.name=c1,k8s.namespace.name=default,k8s.{key}.name=web-owner,service.name=web-app,service.version=v2,cloud.region=r1,cloud.availability_zone=z1"
                )
            );
        }
        assert_eq!(said_by(|_| {}), "k8s.namespace.name=default");
        let odd = said_by(|web| web.canonical_name = "a,k8s.namespace.name=b".into());
        assert_eq!(odd, "k8s.namespace.name=default");
    }

    #[test]
    fn baggage_is_read_back_and_unknown_members_are_skipped() {
        let header = "k8s.cluster.name=Kubernetes, k8s.namespace.name=shop;prop=1,userId=7,k8s.deployment.name=web,service.name=web,service.version=v2,cloud.region=r,cloud.availability_zone=z,broken";
        let expected = Baggage {
            cluster: Some("Kubernetes"),
            namespace: Some("shop"),
            workload: Some("web"),
            service: Some("web"),
            version: Some("v2"),
            region: Some("r"),
            zone: Some("z"),
        };
        assert_eq!(Baggage::parse(header), expected);
        assert_eq!(Baggage::parse(""), Baggage::default());
        assert_eq!(Baggage::parse("service.name="), Baggage::default());
    }

    #[test]
    fn forwarded_carries_address_and_host_in_both_families() {
        let v4 = "10.0.0.1:80".parse().unwrap();
        let v6 = "[fd00::1]:80".parse().unwrap();
        assert_eq!(forwarded(v4, None), "for=\"10.0.0.1:80\"");
        assert_eq!(
            forwarded(v6, Some("web.shop.svc")),
            "for=\"[fd00::1]:80\";host=web.shop.svc"
        );
        assert_eq!(
            forwarded(v4, Some("evil\r\nhost: x")),
            "for=\"10.0.0.1:80\""
        );
    }

    #[test]
    fn traceparents_have_the_form_of_the_specification_and_differ() {
        let (a, b) = (traceparent(), traceparent());
        assert_ne!(a, b);
        let parts: Vec<_> = a.split('-').collect();
        assert_eq!(
            parts.iter().map(|part| part.len()).collect::<Vec<_>>(),
            [2, 32, 16, 2]
        );
        assert!(
            a.bytes()
                .all(|byte| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
        );
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_the_parsers_fail(header in ".{0,200}") {
            let _ = Baggage::parse(&header);
        }
    }
}
