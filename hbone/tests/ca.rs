//! The certificate authority's client against a scripted authority over gRPC.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use api::ca::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use common::{Ca, HOUR, identity};
use hbone::{CaClient, Certificates, CertificatesConfig, SignError, Signer};
use prost_types::value::Kind;
use tonic::{Request, Response, Status, transport::Channel};

/// Signs for whoever it is asked to impersonate, or fails as it is told; keeps what it was asked.
#[derive(Clone)]
struct Authority {
    ca: Arc<Ca>,
    fails: Arc<Mutex<Option<Status>>>,
    asked: Arc<Mutex<Vec<(String, String, i64)>>>,
    /// What each request had for header `x-team`.
    teams: Arc<Mutex<Vec<Option<String>>>>,
}

#[tonic::async_trait]
impl IstioCertificateService for Authority {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let header = |name: &str| {
            request
                .metadata()
                .get(name)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        let (bearer, cluster) = (header("authorization"), header("clusterid"));
        let team = request.metadata().get("x-team");
        let team = team.map(|team| team.to_str().unwrap().to_owned());
        self.teams.lock().unwrap().push(team);
        let message = request.into_inner();
        let fields = message.metadata.unwrap().fields;
        assert_eq!(fields.len(), 1, "only what the wire contract names");
        let Some(Kind::StringValue(impersonated)) = &fields["ImpersonatedIdentity"].kind else {
            panic!("a string")
        };
        self.asked
            .lock()
            .unwrap()
            .push((bearer, cluster, message.validity_duration));
        if let Some(status) = self.fails.lock().unwrap().clone() {
            return Err(status);
        }
        let cert_chain = self
            .ca
            .sign(impersonated, &message.csr, SystemTime::now() + HOUR);
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

async fn authority() -> (Authority, Channel) {
    let authority = Authority {
        ca: Arc::new(Ca::new()),
        fails: Arc::default(),
        asked: Arc::default(),
        teams: Arc::default(),
    };
    let (listener, address) = common::listen().await;
    let serving = tonic::transport::Server::builder()
        .add_service(IstioCertificateServiceServer::new(authority.clone()))
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    tokio::spawn(serving);
    let channel = Channel::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy();
    (authority, channel)
}

#[tokio::test]
async fn a_request_says_who_we_are_and_for_whom_we_ask() {
    let (authority, channel) = authority().await;
    let tokens = Mutex::new(vec!["second\n".to_owned(), "first".to_owned()]);
    let token = Arc::new(move || Ok(tokens.lock().unwrap().pop().unwrap()));
    let client = CaClient::new(channel, "Kubernetes", token, Duration::from_secs(86400)).unwrap();
    let certificates = Certificates::new(client, CertificatesConfig::default());
    for account in ["a", "b"] {
        let certificate = certificates.of(&identity(account)).await.unwrap();
        assert_eq!(*certificate.identity(), identity(account));
    }
    let asked = authority.asked.lock().unwrap();
    assert_eq!(
        *asked,
        [
            ("Bearer first".to_owned(), "Kubernetes".to_owned(), 86400),
            ("Bearer second".to_owned(), "Kubernetes".to_owned(), 86400)
        ],
        "the token is read for every call"
    );
}

#[tokio::test]
async fn headers_that_an_operator_asks_for_go_along_and_none_takes_the_place_of_the_cluster() {
    let (authority, channel) = authority().await;
    let headers = [
        ("x-team", "a"),
        ("clusterid", "another"),
        ("no header", "b"),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let client = CaClient::new(channel, "Kubernetes", Arc::new(|| Ok("t".into())), HOUR).unwrap();
    let client = client.with_headers(&headers);
    let certificates = Certificates::new(client, CertificatesConfig::default());
    certificates.of(&identity("a")).await.unwrap();
    assert_eq!(*authority.teams.lock().unwrap(), [Some("a".to_owned())]);
    assert_eq!(authority.asked.lock().unwrap()[0].1, "Kubernetes");
}

#[tokio::test]
async fn every_refusal_says_whose_fault_it_is() {
    let (authority, channel) = authority().await;
    let client = CaClient::new(channel, "Kubernetes", Arc::new(|| Ok("t".into())), HOUR).unwrap();
    let mut errors = Vec::new();
    for status in [
        Status::unauthenticated("request impersonation authentication failure"),
        Status::unavailable("starting"),
        Status::invalid_argument("CSR signing error (too long)"),
        Status::internal("no key"),
    ] {
        *authority.fails.lock().unwrap() = Some(status);
        errors.push(client.sign(&identity("a"), "csr".into()).await.unwrap_err());
    }
    assert!(
        matches!(&errors[0], SignError::Refused(text) if text.contains("impersonation")),
        "{}",
        errors[0]
    );
    assert!(
        matches!(&errors[1], SignError::Unavailable(_)),
        "{}",
        errors[1]
    );
    assert!(
        matches!(&errors[2], SignError::Failed(text) if text.contains("CSR")),
        "{}",
        errors[2]
    );
    assert!(matches!(&errors[3], SignError::Failed(_)), "{}", errors[3]);
}

#[tokio::test]
async fn no_token_and_no_authority_are_told_apart() {
    let (_authority, channel) = authority().await;
    let missing = Arc::new(|| Err(std::io::ErrorKind::NotFound.into()));
    let client = CaClient::new(channel, "Kubernetes", missing, HOUR).unwrap();
    assert!(matches!(
        client.sign(&identity("a"), String::new()).await,
        Err(SignError::Local(_))
    ));

    // Bound, and not listened on: nobody else is there.
    let silent = tokio::net::TcpSocket::new_v4().unwrap();
    silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = silent.local_addr().unwrap();
    let nobody = Channel::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy();
    let client = CaClient::new(nobody, "Kubernetes", Arc::new(|| Ok("t".into())), HOUR).unwrap();
    assert!(matches!(
        client.sign(&identity("a"), String::new()).await,
        Err(SignError::Unavailable(_))
    ));
}
