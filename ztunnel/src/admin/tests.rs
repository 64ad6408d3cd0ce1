//! `/config_dump` against what Istio's ztunnel printed, member by member.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::{security, workload as wire};
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use futures_util::StreamExt;
use hbone::tls::CertificateText;
use hbone::{
    Certificates, CertificatesConfig, Identity, Limits, Pool, PoolConfig, SignError, Signer,
};
use mesh::{Mesh, Update, Writer};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::certificates::CertificateTextShape;
use super::dump::{Policies, Services, Workloads, pod_state};
use super::settings::{settings, version};
use super::*;
use crate::agent::{Description, Listed};
use crate::config::Config;
use crate::connections;
use crate::workers::Workers;

fn golden() -> Value {
    serde_json::from_str(include_str!(
        "../../testdata/admin/config_dump-client-node.json"
    ))
    .unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item.as_str().unwrap().to_owned())
        .collect()
}

/// The workload that the golden dump shows, as the control plane sends it.
fn workload(shown: &Value) -> wire::Workload {
    let text = |key: &str| shown[key].as_str().unwrap().to_owned();
    let bytes = |ip: &String| match ip.parse::<IpAddr>().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec().into(),
        IpAddr::V6(ip) => ip.octets().to_vec().into(),
    };
    wire::Workload {
        uid: text("uid"),
        name: text("name"),
        namespace: text("namespace"),
        service_account: text("serviceAccount"),
        trust_domain: text("trustDomain"),
        node: text("node"),
        cluster_id: text("clusterId"),
        addresses: strings(&shown["workloadIps"]).iter().map(bytes).collect(),
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        ..wire::Workload::default()
    }
}

fn mesh(fill: impl FnOnce(&mut Update)) -> (Arc<Mesh>, Writer) {
    let (mesh, mut writer) = Mesh::new();
    let mut update = Update::default();
    fill(&mut update);
    assert_eq!(writer.apply(update), []);
    (mesh, writer)
}

#[test]
fn workloads_are_shown_as_istio_shows_them() {
    let golden = golden();
    let (mesh, _writer) = mesh(|update| {
        for shown in golden["workloads"].as_array().unwrap() {
            update.set_workload(workload(shown));
        }
    });
    assert_eq!(
        serde_json::to_value(Workloads(&mesh.load())).unwrap(),
        golden["workloads"]
    );
}

#[test]
fn policies_are_shown_as_istio_shows_them() {
    let (mesh, _writer) = mesh(|update| {
        let ports = security::Match {
            destination_ports: vec![9999],
            ..Default::default()
        };
        let rule = security::Rules {
            matches: vec![ports],
        };
        update.set_policy(security::Authorization {
            name: "deny-9999".into(),
            namespace: "default".into(),
            scope: security::Scope::Namespace.into(),
            action: security::Action::Deny.into(),
            groups: vec![security::Group { rules: vec![rule] }],
            ..Default::default()
        });
    });
    assert_eq!(
        serde_json::to_value(Policies(&mesh.load())).unwrap(),
        golden()["policies"]
    );
}

#[test]
fn every_field_of_a_match_has_its_name() {
    let exact = |text: &str| security::StringMatch {
        match_type: Some(security::string_match::MatchType::Exact(text.into())),
    };
    let presence = security::StringMatch {
        match_type: Some(security::string_match::MatchType::Presence(())),
    };
    let (mesh, _writer) = mesh(|update| {
        let all = security::Match {
            namespaces: vec![exact("alpha")],
            not_principals: vec![presence],
            source_ips: vec![security::Address {
                address: vec![10, 0, 0, 0].into(),
                length: 8,
            }],
            not_destination_ports: vec![80],
            service_accounts: vec![security::ServiceAccountMatch {
                namespace: "alpha".into(),
                service_account: "web".into(),
            }],
            ..Default::default()
        };
        update.set_policy(security::Authorization {
            name: "p".into(),
            namespace: "alpha".into(),
            groups: vec![security::Group {
                rules: vec![security::Rules { matches: vec![all] }],
            }],
            ..Default::default()
        });
    });
    let shown = serde_json::to_value(Policies(&mesh.load())).unwrap();
    assert_eq!(
        shown[0]["rules"][0][0][0],
        json!({
            "namespaces": [{ "Exact": "alpha" }],
            "notPrincipals": [{ "Presence": null }],
            "sourceIps": ["10.0.0.0/8"],
            "notDestinationPorts": [80],
            "serviceAccounts": [{ "namespace": "alpha", "serviceAccount": "web" }],
        })
    );
}

/// No service was recorded; the names of the members are those istioctl reads.
#[test]
fn services_carry_addresses_ports_and_endpoints() {
    let (mesh, _writer) = mesh(|update| {
        let port = wire::Port {
            service_port: 80,
            target_port: 8080,
            ..Default::default()
        };
        let address = |bytes: [u8; 4], length| wire::NetworkAddress {
            network: "n1".into(),
            address: bytes.to_vec().into(),
            length,
        };
        update.set_service(wire::Service {
            name: "web".into(),
            namespace: "alpha".into(),
            hostname: "web.alpha.svc.cluster.local".into(),
            addresses: vec![
                address([10, 96, 0, 1], None),
                address([240, 1, 0, 0], Some(24)),
            ],
            ports: vec![port],
            canonical: true,
            ..Default::default()
        });
        update.set_workload(wire::Workload {
            uid: "w".into(),
            name: "w".into(),
            namespace: "alpha".into(),
            network: "n1".into(),
            addresses: vec![vec![10, 0, 0, 7].into()],
            services: [(
                "alpha/web.alpha.svc.cluster.local".into(),
                wire::PortList { ports: vec![port] },
            )]
            .into(),
            ..Default::default()
        });
    });
    assert_eq!(
        serde_json::to_value(Services(&mesh.load())).unwrap(),
        json!([{
            "name": "web",
            "namespace": "alpha",
            "hostname": "web.alpha.svc.cluster.local",
            "vips": ["n1/10.96.0.1"],
            "cidrVips": ["n1/240.1.0.0/24"],
            "ports": { "80": 8080 },
            "endpoints": { "w": {
                "workloadUid": "w",
                "service": "alpha/web.alpha.svc.cluster.local",
                "address": "n1/10.0.0.7",
                "port": { "80": 8080 },
                "status": "Healthy",
            } },
            "subjectAltNames": [],
            "canonical": true,
            "visibility": "Public",
        }])
    );
}

#[test]
fn certificates_are_shown_as_istio_shows_them() {
    for list in ["certChain", "rootCerts"] {
        let shown = golden()["certificates"][0][list][0].clone();
        let text = |key: &str| shown[key].as_str().unwrap().to_owned();
        let pem = String::from_utf8(STANDARD.decode(text("pem")).unwrap()).unwrap();
        let (_, parsed) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        let certificate = parsed.parse_x509().unwrap();
        let instant = |time: x509_parser::time::ASN1Time| -> SystemTime {
            UNIX_EPOCH + Duration::from_secs(time.timestamp().try_into().unwrap())
        };
        let ours = CertificateTextShape::of(&CertificateText {
            serial_number: certificate.tbs_certificate.serial.to_string(),
            not_before: instant(certificate.validity().not_before),
            not_after: instant(certificate.validity().not_after),
            pem: pem.clone(),
        });
        assert_eq!(serde_json::to_value(ours).unwrap(), shown, "{list}");
    }
}

#[test]
fn pods_are_shown_as_istio_shows_them() {
    let pod = Description {
        name: "client".into(),
        namespace: "default".into(),
        service_account: "client".into(),
    };
    let listed = Listed {
        uid: "uid-c".into(),
        state: "Up",
        pod,
    };
    assert_eq!(
        pod_state(&listed, &connections::Listed::default()),
        golden()["workloadState"]["uid-c"]
    );
}

/// Same name, same value where our circumstances are the recorded ones, same kind of value elsewhere.
#[test]
fn settings_are_shown_under_istios_names() {
    // Of parts that we do not have; `testdata/DEVIATIONS.md`.
    const ABSENT: [&str; 6] = [
        "dnsResolverCfg",
        "dnsResolverOpts",
        "enableEnhancedBaggage",
        "localhostAppTunnel",
        "preferedServiceNamespace",
        "proxyWorkloadInformation",
    ];
    // Recorded with another set-up: paths, no control plane, a short deadline.
    const OTHER_VALUE: [&str; 5] = [
        "caRootCert",
        "inpodUds",
        "selfTerminationDeadline",
        "xdsRootCert",
        "xdsAddress",
    ];
    let arguments = "ztunnel proxy ztunnel --node-name na --ca-address https://localhost:15012 --worker-threads 2";
    let ours = settings(&Config::try_parse_from(arguments.split(' ')).unwrap());
    for (name, theirs) in golden()["config"].as_object().unwrap() {
        if ABSENT.contains(&name.as_str()) {
            continue;
        }
        if OTHER_VALUE.contains(&name.as_str()) {
            assert!(ours.get(name).is_some(), "{name} is missing");
            continue;
        }
        assert_eq!(&ours[name], theirs, "{name}");
    }
}

/// What the tunnels announce is not a setting: the dump must not say that it follows one. (A stream of our own engine begins
/// with less, and comes to it.)
#[test]
fn windows_are_shown_as_the_tunnels_announce_them() {
    let ours = settings(&Config::try_parse_from(["ztunnel"]).unwrap());
    assert_eq!(
        [
            &ours["windowSize"],
            &ours["connectionWindowSize"],
            &ours["frameSize"]
        ],
        [4 << 20, 16 << 20, 1 << 20]
    );
    for flag in ["--stream-window", "--connection-window", "--frame-size"] {
        assert!(
            Config::try_parse_from(["ztunnel", flag, "65536"]).is_err(),
            "{flag}"
        );
    }
}

#[test]
fn what_headers_to_the_control_plane_say_is_not_shown() {
    let variables = ["XDS_HEADER_X-Key", "CA_HEADER_X-Key"];
    let variables = variables.map(|name| (name.to_owned(), "open sesame".to_owned()));
    let config = Config::try_parse_from(["ztunnel"]).unwrap();
    let ours = settings(&config.with_variables(variables));
    for member in ["xdsHeaders", "caHeaders"] {
        assert_eq!(ours[member], json!([["x-key", "(not shown)"]]), "{member}");
    }
    assert!(!ours.to_string().contains("sesame"), "{ours}");
}

#[test]
fn the_dump_says_what_carries_tunnels() {
    for (arguments, shown) in [("ztunnel", "own"), ("ztunnel --engine h2", "h2")] {
        let ours = settings(&Config::try_parse_from(arguments.split(' ')).unwrap());
        assert_eq!(ours["engine"], shown);
    }
}

#[test]
fn the_dump_says_whose_proxy_it_is() {
    for (arguments, shown) in [
        ("ztunnel", "Shared"),
        (
            "ztunnel --mode dedicated --workload shop/vm-1/db",
            "Dedicated",
        ),
    ] {
        let ours = settings(&Config::try_parse_from(arguments.split(' ')).unwrap());
        assert_eq!(ours["proxyMode"], shown);
    }
}

#[test]
fn version_has_istios_members() {
    let ours = version();
    for name in golden()["version"].as_object().unwrap().keys() {
        assert!(ours[name].is_string(), "{name}");
    }
}

struct NoSigner;

impl Signer for NoSigner {
    async fn sign(&self, _: &Identity, _: String) -> Result<Vec<String>, SignError> {
        Err(SignError::Unavailable("this is a test".into()))
    }
}

fn node(mesh: Arc<Mesh>) -> Arc<Node> {
    let certificates = Certificates::new(NoSigner, CertificatesConfig::default());
    let pool = Pool::new(certificates.clone(), PoolConfig::default());
    let config = Config::try_parse_from(["ztunnel"]).unwrap();
    Node::new(
        mesh,
        certificates,
        Workers::here(pool),
        Limits::default(),
        Arc::new(config),
    )
}

#[tokio::test]
async fn a_large_mesh_is_dumped_whole_and_in_order() {
    const MANY: usize = 3000;
    let (mesh, _writer) = mesh(|update| {
        let template = golden()["workloads"][0].clone();
        for n in 0..MANY {
            let mut workload = workload(&template);
            workload.uid = format!("uid-{n:05}");
            update.set_workload(workload);
        }
    });
    let routes = admin(node(mesh), Roster::default());
    let response = routes
        .oneshot(Request::get("/config_dump").body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    let body = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let dump: Value = serde_json::from_slice(&body).unwrap();
    let uids: Vec<_> = dump["workloads"]
        .as_array()
        .unwrap()
        .iter()
        .map(|workload| workload["uid"].as_str().unwrap())
        .collect();
    assert_eq!(uids.len(), MANY);
    assert!(uids.is_sorted());
    for member in golden().as_object().unwrap().keys() {
        assert!(dump.get(member).is_some(), "{member} is missing");
    }
}

/// However large the mesh, what is on its way is a few chunks; a caller that goes ends the dump, and holds nothing of the mesh
/// from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_dump_of_a_hundred_thousand_workloads_is_small_chunks_for_as_long_as_somebody_reads() {
    let (mesh, mut writer) = mesh(|update| {
        for n in 0..100_000 {
            update.set_workload(wire::Workload {
                uid: format!("uid-{n:06}"),
                ..Default::default()
            });
        }
    });
    let routes = admin(node(mesh.clone()), Roster::default());
    let ask = Request::get("/config_dump").body(Body::empty()).unwrap();
    let response = routes.oneshot(ask).await.unwrap();
    let mut body = response.into_body().into_data_stream();
    for _ in 0..100 {
        let chunk = body.next().await.unwrap().unwrap();
        assert!(chunk.len() <= 32 << 10, "{}", chunk.len());
    }
    // He stops reading: the mesh changes meanwhile, and nobody waits for him.
    let shown = Arc::downgrade(&mesh.load_full());
    let mut update = Update::default();
    update.addresses.removed.push("uid-000000".into());
    assert_eq!(writer.apply(update), []);
    assert!(shown.upgrade().is_some(), "he is shown the mesh as it was");
    drop(body);
    for _ in 0..6000 {
        if shown.upgrade().is_none() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the dump goes on for nobody");
}
