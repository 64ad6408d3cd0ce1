//! Every call that Istio's CA was observed to answer (`testdata/ca/exchanges.json`), made to ours:
//! the same code, the same words, the same facts of the certificate. Where we differ on purpose is
//! the list below, and `testdata/DEVIATIONS.md` says why.

use std::sync::Arc;
use std::time::Duration;

use api::ca::istio_certificate_service_server::IstioCertificateService;
use api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use arc_swap::ArcSwap;
use istiod_lite::authenticate::Authenticator;
use istiod_lite::ca::{Authority, CertificateService, Lifetimes, Source};
use istiod_lite::metrics::Metrics;
use istiod_lite::roster::{Pod, Roster};
use istiod_lite::token::{self, Named, Tokens};
use prost_types::value::Kind;
use rcgen::{CertificateParams, KeyPair};
use serde::Deserialize;
use tonic::{Code, Request, Status};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

#[derive(Deserialize)]
struct Exchange {
    case: String,
    request: Asked,
    grpc_metadata: Metadata,
    token: Option<TokenFacts>,
    result: String,
    message: Option<String>,
    response: Option<Facts>,
}

#[derive(Deserialize)]
struct Asked {
    validity_duration: i64,
    metadata: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Metadata {
    clusterid: Option<String>,
    authorization: Option<String>,
}

#[derive(Deserialize)]
struct TokenFacts {
    aud: Vec<String>,
    sub: String,
    pod: Option<String>,
}

#[derive(Deserialize)]
struct Facts {
    elements: usize,
    pems_in_element: Vec<usize>,
    ends_with_newline: Vec<bool>,
    san: Vec<String>,
    san_critical: bool,
    subject: String,
    not_before_minus_now_s: i64,
    not_after_minus_now_s: i64,
    serial_bits_max: u64,
}

struct Ca {
    service: CertificateService,
    tokens: Tokens,
    _state: tempfile::TempDir,
}

impl Ca {
    fn start() -> Self {
        let state = tempfile::tempdir().unwrap();
        let source = Source::Own(state.path().into());
        let authority =
            Authority::open(source, "cluster.local".into(), Lifetimes::default()).unwrap();
        let authenticator = Authenticator {
            tokens: Tokens::open(state.path()).unwrap().into(),
            roster: Arc::new(ArcSwap::from_pointee(roster())),
            trust_domain: "cluster.local".into(),
            cluster: "Kubernetes".into(),
            trusted_nodes: vec!["istio-system/ztunnel".into()],
            machines: None,
        };
        let metrics = Metrics::register(&mut ops::metrics::Registry::new("pilot", "test"));
        Self {
            service: CertificateService::new(Arc::new(authority), Arc::new(authenticator), metrics),
            tokens: Tokens::open(state.path()).unwrap(),
            _state: state,
        }
    }

    async fn call(&self, exchange: &Exchange) -> Result<IstioCertificateResponse, Status> {
        let field = |text: &String| prost_types::Value {
            kind: Some(Kind::StringValue(text.clone())),
        };
        let metadata = exchange.request.metadata.iter();
        let mut request = Request::new(IstioCertificateRequest {
            csr: csr(&exchange.case),
            validity_duration: exchange.request.validity_duration,
            metadata: Some(prost_types::Struct {
                fields: metadata
                    .map(|(key, text)| (key.clone(), field(text)))
                    .collect(),
            }),
        });
        if let Some(cluster) = &exchange.grpc_metadata.clusterid {
            request
                .metadata_mut()
                .insert("clusterid", cluster.parse().unwrap());
        }
        if let Some(authorization) = &exchange.grpc_metadata.authorization {
            let authorization = authorization
                .replace("<token>", &self.token(exchange.token.as_ref()))
                .replace("<good token>", &self.token(Some(&ztunnel())));
            request
                .metadata_mut()
                .insert("authorization", authorization.parse().unwrap());
        }
        self.service
            .create_certificate(request)
            .await
            .map(tonic::Response::into_inner)
    }

    fn token(&self, facts: Option<&TokenFacts>) -> String {
        let Some(facts) = facts else {
            return String::new();
        };
        let (namespace, account) = facts
            .sub
            .strip_prefix("system:serviceaccount:")
            .unwrap()
            .split_once(':')
            .unwrap();
        let request = token::Request {
            namespace: namespace.into(),
            service_account: account.into(),
            pod: facts.pod.clone().map(|name| Named {
                uid: format!("uid-of-{name}"),
                name,
            }),
            node: None,
            lifetime: Duration::from_secs(600),
            audience: facts.aud[0].clone(),
        };
        self.tokens.issue(&request).unwrap()
    }
}

fn ztunnel() -> TokenFacts {
    TokenFacts {
        aud: vec![token::AUDIENCE.into()],
        sub: "system:serviceaccount:istio-system:ztunnel".into(),
        pod: Some("ztunnel-node1".into()),
    }
}

fn roster() -> Roster {
    let mut roster = Roster::default();
    for (namespace, name, account, node, failed) in [
        ("istio-system", "ztunnel-node1", "ztunnel", "node-1", false),
        ("ca-test", "client", "client", "node-1", false),
        ("ca-test", "plain", "default", "node-1", false),
        ("ca-test", "far", "far", "node-2", false),
        ("ca-test", "done", "done", "node-1", false),
        ("ca-test", "failed", "failed", "node-1", true),
        ("ca-test", "pending", "pending", "node-1", false),
    ] {
        roster.set(Pod {
            namespace: namespace.into(),
            name: name.into(),
            uid: format!("uid-of-{name}"),
            service_account: account.into(),
            node: node.into(),
            gateway: None,
            failed,
        });
    }
    roster
}

fn csr(case: &str) -> String {
    let key = match case {
        "csr-empty" => return String::new(),
        "csr-not-pem" => return "hello".into(),
        "csr-garbage-pem" => return "-----BEGIN CERTIFICATE REQUEST-----\naGVsbG8=\n-----END CERTIFICATE REQUEST-----\n".into(),
        "impersonated-rsa1024" => return include_str!("../../testdata/ca/csr-rsa1024.pem").into(),
        "impersonated-rsa2048" => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048),
        "impersonated-p384" => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
        _ => KeyPair::generate(),
    };
    let key = key.unwrap();
    let san = match case {
        "impersonated-csr-without-san" => None,
        "impersonated-csr-san-differs" => Some("spiffe://cluster.local/ns/kube-system/sa/admin"),
        _ => Some("spiffe://cluster.local/ns/ca-test/sa/client"),
    };
    let mut params = CertificateParams::default();
    params.subject_alt_names = san
        .map(|san| rcgen::SanType::URI(san.try_into().unwrap()))
        .into_iter()
        .collect();
    let csr = params.serialize_request(&key).unwrap();
    if case != "csr-bad-signature" {
        return csr.pem().unwrap();
    }
    // The name inside the signed part changes; lengths and the signature's form stay.
    let mut der = csr.der().to_vec();
    let at = der
        .windows(6)
        .position(|window| window == b"client")
        .unwrap();
    der[at] = b'k';
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
}

/// Case, our code, our message.
const DEVIATIONS: [(&str, Code, &str); 2] = [
    (
        "impersonated-rsa1024",
        Code::InvalidArgument,
        "CSR signing error (RSA key of 1024 bits; 2048 to 8192 are accepted)",
    ),
    (
        "identity-other-trust-domain",
        Code::Unauthenticated,
        "request impersonation authentication failure",
    ),
];
/// Answered with a certificate as Istio does, but without the common name it copies.
const WITHOUT_COMMON_NAME: &str = "impersonated-csr-san-differs";

#[tokio::test]
async fn every_observed_call_is_answered_as_observed() {
    let exchanges: Vec<Exchange> =
        serde_json::from_str(include_str!("../../testdata/ca/exchanges.json")).unwrap();
    assert_eq!(exchanges.len(), 44);
    let ca = Ca::start();
    let mut deviated = 0;
    for exchange in &exchanges {
        let case = &exchange.case;
        let asked = ASN1Time::now().timestamp();
        let answer = ca.call(exchange).await;
        if let Some((_, code, message)) = DEVIATIONS.iter().find(|(name, ..)| name == case) {
            let status = answer.expect_err(case);
            assert_eq!(
                (status.code(), status.message()),
                (*code, *message),
                "{case}"
            );
            assert_eq!(exchange.result, "OK", "{case}: no longer a deviation");
            deviated += 1;
            continue;
        }
        match (exchange.result.as_str(), answer) {
            ("OK", Ok(response)) => compare(exchange, &response, asked),
            ("UNAUTHENTICATED", Err(status)) => {
                assert_refused(exchange, Code::Unauthenticated, &status)
            }
            ("INVALID_ARGUMENT", Err(status)) => {
                assert_refused(exchange, Code::InvalidArgument, &status)
            }
            (expected, answer) => panic!("{case}: expected {expected}, got {answer:?}"),
        }
    }
    assert_eq!(deviated, DEVIATIONS.len());
}

fn assert_refused(exchange: &Exchange, code: Code, status: &Status) {
    assert_eq!(status.code(), code, "{}", exchange.case);
    assert_eq!(
        Some(status.message()),
        exchange.message.as_deref(),
        "{}",
        exchange.case
    );
}

/// It was asked for in the second `asked`, and signed some time since.
fn compare(exchange: &Exchange, response: &IstioCertificateResponse, asked: i64) {
    let (case, facts) = (&exchange.case, exchange.response.as_ref().unwrap());
    let chain = &response.cert_chain;
    assert_eq!(chain.len(), facts.elements, "{case}");
    let pems: Vec<_> = chain
        .iter()
        .map(|element| element.matches("BEGIN CERTIFICATE").count())
        .collect();
    assert_eq!(pems, facts.pems_in_element, "{case}");
    let newlines: Vec<_> = chain
        .iter()
        .map(|element| element.ends_with('\n'))
        .collect();
    assert_eq!(newlines, facts.ends_with_newline, "{case}");

    let pem = Pem::iter_from_buffer(chain[0].as_bytes())
        .next()
        .unwrap()
        .unwrap();
    let (_, leaf) = X509Certificate::from_der(&pem.contents).unwrap();
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    let names: Vec<_> = facts.san.iter().map(|san| GeneralName::URI(san)).collect();
    assert_eq!(san.value.general_names, names, "{case}");
    assert_eq!(san.critical, facts.san_critical, "{case}");
    let subject = if case == WITHOUT_COMMON_NAME {
        ""
    } else {
        &facts.subject
    };
    assert_eq!(leaf.subject().to_string(), subject, "{case}");
    let now = ASN1Time::now().timestamp();
    let near = |at: i64, after: i64| (asked + after - 3..=now + after + 3).contains(&at);
    let (from, until) = (leaf.validity().not_before, leaf.validity().not_after);
    assert!(
        near(from.timestamp(), facts.not_before_minus_now_s),
        "{case}"
    );
    assert!(
        near(until.timestamp(), facts.not_after_minus_now_s),
        "{case}"
    );
    assert!(
        leaf.serial.bits() <= 128 && facts.serial_bits_max <= 128,
        "{case}"
    );
}
