//! Who may open a stream, and how streams end. `testdata/xds/auth.json` is what Istio answers.

use std::collections::BTreeMap;
use std::time::Duration;

use api::discovery::DeltaDiscoveryRequest;
use ops::drain::Drained;
use serde::Deserialize;
use tonic::Code;

use crate::support::{ADDRESS, AUTHORIZATION, Held, PATIENCE, Proxy, Server, node, uid};

#[derive(Deserialize)]
struct Case {
    case: String,
    result: String,
    message: Option<String>,
    responses: usize,
}

/// What the case's words mean: token and node.
fn client(server: &Server, case: &str) -> (Option<String>, api::discovery::Node) {
    let ztunnel = || server.token("istio-system", "ztunnel", Some("ztunnel-node1"));
    let alpha = || server.token("alpha", "client", Some("client"));
    let id = "ztunnel~10.20.0.9~ztunnel-node1.istio-system~istio-system.svc.cluster.local";
    let alpha_id = "ztunnel~10.10.0.7~client.alpha~alpha.svc.cluster.local";
    let system = [("NAMESPACE", "istio-system"), ("NODE_NAME", "node-1")];
    let (token, node) = match case {
        "good token of ztunnel, node id in istio-system" => (ztunnel(), node(id, &system)),
        "no token" => return (None, node(id, &system)),
        "garbage token" => ("garbage".into(), node(id, &system)),
        "token for audience 'other'" => {
            let lifetime = Duration::from_secs(600);
            let token = server.issue(
                "istio-system",
                "ztunnel",
                Some("ztunnel-node1"),
                "other",
                lifetime,
            );
            (token, node(id, &system))
        }
        "token of alpha/client, node id says istio-system, metadata NAMESPACE alpha" => {
            (alpha(), node(id, &[("NAMESPACE", "alpha")]))
        }
        "token of alpha/client, node id and metadata NAMESPACE say istio-system" => {
            (alpha(), node(id, &system))
        }
        "token of alpha/client, metadata NAMESPACE empty, node id in istio-system" => {
            (alpha(), node(id, &[("NAMESPACE", "")]))
        }
        "token of alpha/client, node id in alpha, type ztunnel" => {
            (alpha(), node(alpha_id, &[("NAMESPACE", "alpha")]))
        }
        "token of alpha/client, node id in alpha, metadata SERVICE_ACCOUNT=other" => (
            alpha(),
            node(
                alpha_id,
                &[("NAMESPACE", "alpha"), ("SERVICE_ACCOUNT", "other")],
            ),
        ),
        "ztunnel, metadata SERVICE_ACCOUNT=ztunnel" => (
            ztunnel(),
            node(
                id,
                &[
                    ("NAMESPACE", "istio-system"),
                    ("SERVICE_ACCOUNT", "ztunnel"),
                ],
            ),
        ),
        "node id with three parts" => (
            ztunnel(),
            node("ztunnel~10.20.0.9~ztunnel-node1.istio-system", &system),
        ),
        "node id with unknown type" => {
            (ztunnel(), node(&id.replacen("ztunnel", "foo", 1), &system))
        }
        "node id empty" => (ztunnel(), node("", &system)),
        "node id without address" => (ztunnel(), node(&id.replace("10.20.0.9", ""), &system)),
        "node id with IPv6" => (
            ztunnel(),
            node(&id.replace("10.20.0.9", "fd00::9"), &system),
        ),
        other => panic!("unknown case {other:?}"),
    };
    (Some(format!("Bearer {token}")), node)
}

#[tokio::test]
async fn callers_are_let_in_and_sent_away_as_istio_does_it() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../testdata/xds/auth.json")).unwrap();
    assert_eq!(cases.len(), 15);
    let server = Server::start().await;
    for case in &cases {
        let (authorization, node) = client(&server, &case.case);
        let ended = talk(&server, authorization.as_deref(), node).await;
        let expected = match case.result.as_str() {
            "OK" => Ok(()),
            "UNAUTHENTICATED" => Err(Code::Unauthenticated),
            "PERMISSION_DENIED" => Err(Code::PermissionDenied),
            "INVALID_ARGUMENT" => Err(Code::InvalidArgument),
            other => panic!("{other}"),
        };
        match ended {
            Ok(responses) => assert!(
                expected.is_ok() && responses == 2 && case.responses >= 2,
                "{}",
                case.case
            ),
            Err(status) => {
                assert_eq!(Err(status.code()), expected, "{}", case.case);
                assert_eq!(
                    Some(status.message()),
                    case.message.as_deref(),
                    "{}",
                    case.case
                );
            }
        }
    }
}

/// Asks for both types; how many responses came, or how the stream ended.
async fn talk(
    server: &Server,
    authorization: Option<&str>,
    node: api::discovery::Node,
) -> Result<usize, tonic::Status> {
    let mut proxy = Proxy::open(server.channel().await, authorization).await?;
    for type_url in [ADDRESS, AUTHORIZATION] {
        let request = DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: type_url.into(),
            ..Default::default()
        };
        // A server that refused the first request does not take the second.
        proxy.send(request).await;
    }
    for _ in 0..2 {
        proxy.receive().await?.expect("ended without a status");
    }
    Ok(2)
}

#[tokio::test]
async fn a_token_is_refused_once_it_or_its_pod_is_gone() {
    let server = Server::start().await;
    let expired = server.issue(
        "istio-system",
        "ztunnel",
        Some("ztunnel-node1"),
        "istio-ca",
        Duration::ZERO,
    );
    let gone = server.token("alpha", "client", Some("nobody"));
    let other_account = server.token("alpha", "far", Some("client"));
    for (what, token) in [
        ("expired", expired),
        ("pod gone", gone),
        ("another's pod", other_account),
    ] {
        let opened = Proxy::open(server.channel().await, Some(&format!("Bearer {token}"))).await;
        let status = opened.err().expect(what);
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unauthenticated, "authentication failure"),
            "{what}"
        );
    }
}

#[tokio::test]
async fn a_client_that_does_not_trust_our_root_or_dials_another_name_gets_nowhere() {
    let server = Server::start().await;
    let roots = std::fs::read(server.state().join("root-cert.pem")).unwrap();
    let other = Server::start().await;
    let foreign = std::fs::read(other.state().join("root-cert.pem")).unwrap();
    assert!(
        crate::support::channel(server.running.grpc, &foreign, "istiod.istio-system.svc")
            .await
            .is_err()
    );
    assert!(
        crate::support::channel(server.running.grpc, &roots, "example.com")
            .await
            .is_err()
    );
    for name in [
        "istiod.istio-system.svc",
        "istio-pilot.istio-system.svc",
        "localhost",
        "127.0.0.1",
    ] {
        assert!(
            crate::support::channel(server.running.grpc, &roots, name)
                .await
                .is_ok(),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_request_that_is_too_long_ends_its_own_stream_only() {
    let server = Server::start().await;
    let (mut long, mut other) = (server.proxy().await, server.proxy().await);
    other.subscribe_to_all().await;
    long.send(DeltaDiscoveryRequest {
        node: Some(crate::support::ztunnel_node()),
        type_url: ADDRESS.into(),
        resource_names_subscribe: vec!["x".repeat(65 << 20)],
        ..Default::default()
    })
    .await;
    assert_eq!(long.receive().await.unwrap_err().code(), Code::OutOfRange);
    other.next().await;
    other.next().await;
}

#[tokio::test]
async fn what_a_client_says_is_remembered_only_as_far_as_it_is_of_use() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe(ADDRESS).await;
    let answer = proxy.receive().await.unwrap().unwrap();
    for number in 0..100 {
        proxy
            .send(DeltaDiscoveryRequest {
                type_url: format!("type.googleapis.com/nobody.knows.{number}"),
                response_nonce: "1".into(),
                ..Default::default()
            })
            .await;
    }
    proxy.nack(&answer, &"x".repeat(1 << 20)).await;
    server
        .until("/debug/syncz", |text| text.contains("REJECTED"))
        .await;
    let shown = server.json("/debug/syncz").await;
    let types = shown[0]["types"].as_object().unwrap();
    assert_eq!(types.keys().collect::<Vec<_>>(), [ADDRESS]);
    let refusal = types[ADDRESS]["rejected"].as_str().unwrap();
    assert_eq!(refusal.len(), 16 << 10);
    // Who is too long already is sent away at once.
    let token = server.token("istio-system", "ztunnel", Some("ztunnel-node1"));
    let id = "ztunnel~10.20.0.9~ztunnel-node1.istio-system~istio-system.svc.cluster.local";
    let much = "x".repeat(300 << 10);
    let node = node(id, &[("NAMESPACE", "istio-system"), ("LABELS", &much)]);
    let refused = talk(&server, Some(&format!("Bearer {token}")), node).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_proxy_that_holds_a_large_mesh_can_come_back() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    let held = |number| {
        let name =
            format!("Kubernetes//Pod/gone/deployment-7f9c6b5d48-{number:05}-of-a-large-mesh");
        let held = Held {
            version: "0123456789abcdef".into(),
            value: Vec::new(),
        };
        (name, held)
    };
    let held = (0..60_000).map(held).collect();
    proxy.held.insert(ADDRESS.into(), held);
    proxy.subscribe(ADDRESS).await;
    let answer = proxy.next().await;
    assert_eq!(answer.removed_resources.len(), 60_000);
    assert!(proxy.has(ADDRESS, &uid("alpha", "client")));
    assert_eq!(proxy.names(ADDRESS).len(), answer.resources.len());
}

#[tokio::test]
async fn an_old_connection_is_asked_to_come_back_and_loses_nothing() {
    let server = Server::with(&["--max-connection-age", "300ms"]).await;
    let token = server.token("istio-system", "ztunnel", Some("ztunnel-node1"));
    let bearer = format!("Bearer {token}");
    let open = async || Proxy::open(server.channel().await, Some(&bearer)).await;
    // One that is slow may be asked before it has its answers: then it comes back for them.
    let served = async {
        let mut held = BTreeMap::new();
        loop {
            let Ok(mut proxy) = open().await else {
                continue;
            };
            proxy.held = held;
            proxy.subscribe_to_all().await;
            // In order: no error, no status but OK.
            while let Some(response) = proxy.receive().await.unwrap() {
                proxy.ack(&response).await;
            }
            if proxy.is_ready() {
                return proxy.held;
            }
            held = proxy.held;
        }
    };
    let served = tokio::time::timeout(PATIENCE, served).await;
    let held = served.expect("no connection lives until it is answered");
    let told = async {
        loop {
            let Ok(mut again) = open().await else {
                continue;
            };
            again.held = held.clone();
            again.subscribe(ADDRESS).await;
            if let Some(answer) = again.receive().await.unwrap() {
                return answer;
            }
        }
    };
    let told = tokio::time::timeout(PATIENCE, told).await;
    let told = told.expect("no connection lives until it is told what is new");
    assert!(told.resources.is_empty());
}

#[tokio::test]
async fn the_end_of_the_process_ends_streams_in_order_and_at_once() {
    let server = Server::start().await;
    let mut proxy = server.proxy().await;
    proxy.subscribe_to_all().await;
    proxy.next().await;
    let drained = server.drain.drain(PATIENCE).await;
    assert_eq!(drained, Drained::Quiet);
    while proxy.receive().await.unwrap().is_some() {}
    assert!(server.running.connected.is_empty());
}

#[tokio::test]
async fn the_plaintext_port_is_there_only_when_asked_for_and_wants_a_token_too() {
    assert_eq!(Server::start().await.running.plaintext, None);
    let server = Server::with(&["--listen-plaintext", "127.0.0.1:0"]).await;
    let uri = format!("http://{}", server.running.plaintext.unwrap());
    let channel = tonic::transport::Endpoint::from_shared(uri)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let refused = Proxy::open(channel.clone(), None).await.err().unwrap();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let bearer = format!(
        "Bearer {}",
        server.token("istio-system", "ztunnel", Some("ztunnel-node1"))
    );
    let mut proxy = Proxy::open(channel, Some(&bearer)).await.unwrap();
    proxy.subscribe(ADDRESS).await;
    assert!(!proxy.next().await.resources.is_empty());
}

#[tokio::test]
async fn strangers_that_do_not_speak_tls_hold_nobody_up() {
    let server = Server::start().await;
    let mut silent = Vec::new();
    // More than are let in at a time: the oldest of them have to go.
    for _ in 0..300 {
        silent.push(
            tokio::net::TcpStream::connect(server.running.grpc)
                .await
                .unwrap(),
        );
    }
    let mut proxy = server.proxy().await;
    proxy.subscribe(ADDRESS).await;
    proxy.next().await;
}

#[tokio::test]
async fn methods_that_are_not_served_are_said_to_be_so() {
    let server = Server::start().await;
    let mut client = tonic::client::Grpc::new(server.channel().await);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryRequest>::default();
    let whole_state =
        "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
    let path = http::uri::PathAndQuery::from_static(whole_state);
    let request = tonic::Request::new(DeltaDiscoveryRequest::default());
    let refused = client.unary(request, path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}
