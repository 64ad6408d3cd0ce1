//! Every recorded exchange of a scripted client with Istio's ztunnel (`testdata/inbound.json`), played
//! against `accept`: the same TLS facts or the same alert, the same SETTINGS and window, and on the
//! stream the same answer, data, end and reset. What differs on purpose is in `testdata/DEVIATIONS.md`.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use common::{Ca, HOUR, Refusals, Served, identity, raw, raw::Raw, recorded};
use hbone::{Authority, Request, ResponseHeaders, Status};
use tokio::net::TcpStream;

/// The recorded pod: its address, what ztunnel keeps for itself, what nobody listens on, what policy denies.
const POD: &str = "10.99.0.3";

/// Decides as the recorded node did. Which requests reach this at all is what is tested.
fn as_recorded(request: Request) -> Served {
    Box::pin(async move {
        let status = match &request.authority {
            Authority::Ip(to) if to.ip() != POD.parse::<IpAddr>().unwrap() => {
                Some(Status::BadRequest)
            }
            Authority::Ip(to) if [15001, 15006, 15008, 4444].contains(&to.port()) => {
                Some(Status::Unavailable)
            }
            Authority::Ip(to) if to.port() == 9999 => Some(Status::Denied),
            Authority::Ip(_) => None,
            Authority::Host(..) => Some(Status::Unavailable),
        };
        match status {
            Some(status) => request.refuse(status),
            None => {
                let headers = ResponseHeaders {
                    baggage: Some("k8s.namespace.name=default".into()),
                };
                common::echo_tunnel(request.accept(headers).unwrap()).await;
            }
        }
    })
}

#[tokio::test]
async fn every_recorded_case_is_answered_as_recorded() {
    let cases = recorded::cases();
    assert_eq!(cases.len(), 24);
    for case in cases {
        let ca = Ca::new();
        let mut limits = Refusals::default().limits();
        if recorded::is_silence(&case) {
            assert_eq!(
                limits.ping_every,
                Duration::from_secs(10),
                "as recorded: a PING after 10 s"
            );
            limits.ping_every = Duration::from_millis(50);
        }
        let server = common::serve(ca.certificate(&identity("server")), limits, as_recorded).await;
        let socket = TcpStream::connect(server.address).await.unwrap();
        recorded::check(&case, recorded::play(&case, &ca, socket).await);
    }
}

#[tokio::test]
async fn an_accepted_tunnel_says_the_baggage_it_was_given() {
    // The recording's response headers beyond the status, read by a real HTTP/2 client.
    let ca = Ca::new();
    let server = common::serve(
        ca.certificate(&identity("server")),
        Refusals::default().limits(),
        as_recorded,
    )
    .await;
    let socket = TcpStream::connect(server.address).await.unwrap();
    let badge = raw::badge(
        &ca,
        &["spiffe://cluster.local/ns/default/sa/client"],
        SystemTime::now() + HOUR,
    );
    let peer = Raw::connect(socket, raw::tls_client(Some(badge), &["h2"]))
        .await
        .unwrap();
    let (mut send, connection) = h2::client::handshake(peer.io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::connect("10.99.0.3:9000").body(()).unwrap();
    let (response, _stream) = send.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers().len(), 1);
    assert_eq!(response.headers()["baggage"], "k8s.namespace.name=default");
}

#[tokio::test]
async fn the_handshake_proves_the_client_to_the_server() {
    let ca = Arc::new(Ca::new());
    let (listener, address) = common::listen().await;
    let limits = Refusals::default().limits();
    let certificate = ca.certificate(&identity("server"));
    let accepting = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        hbone::accept(socket, certificate, &limits).await.unwrap()
    });
    let client = common::client(&ca, address, hbone::PoolConfig::default());
    let opening = tokio::spawn(async move { client.open().await });
    let connection = accepting.await.unwrap();
    assert_eq!(*connection.peer(), identity("client"));
    assert_eq!(connection.session().group, "X25519MLKEM768");
    assert_eq!(connection.session().cipher, "TLS13_AES_256_GCM_SHA384");
    opening.abort();
}
