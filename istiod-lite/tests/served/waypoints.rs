//! What a waypoint is told: what is for its gateway, to a pod that is labelled as one of it, and to nobody else.

use api::discovery::{DeltaDiscoveryRequest, ErrorDetail};
use api::waypoint::{Refused, Resource, resource::Kind};
use prost::Message as _;
use tonic::{Code, Status};

use crate::support::{ADDRESS, PATIENCE, Proxy, Server, node, pod, uid, ztunnel_node};

const WAYPOINT: &str = api::WAYPOINT_TYPE;
const GATEWAY: &str = "shop/way/gateway/shop/way";
const FRONTED: &str = "shop/way/fronted/service/shop/web.shop.svc.cluster.local";
const WEB: &str = "shop/web.shop.svc.cluster.local";

/// A namespace with a waypoint, a service behind it, and the waypoint's pod.
fn shop() -> String {
    let way = pod("shop", "way-1", "way", "node-1", "10.10.3.1").replace(
        "labels: { app: web }",
        "labels: { gateway.networking.k8s.io/gateway-name: way }",
    );
    let web = pod("shop", "web-1", "web", "node-1", "10.10.3.2");
    let other =
        pod("shop", "other-1", "way", "node-1", "10.10.3.3").replace("app: web", "app: other");
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{ name: shop, labels: {{ istio.io/use-waypoint: way }} }}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{ name: way, namespace: shop }}
spec: {{ gatewayClassName: istio-waypoint, listeners: [{{ name: mesh, port: 15008, protocol: HBONE }}] }}
---
apiVersion: v1
kind: Service
metadata: {{ name: web, namespace: shop }}
spec: {{ clusterIP: 10.0.3.1, selector: {{ app: web }}, ports: [{{ name: http, port: 80 }}] }}
{way}{web}{other}"
    )
}

async fn server() -> Server {
    Server::prepared(&[], |config| {
        std::fs::write(config.join("shop.yaml"), shop()).unwrap();
    })
    .await
}

/// A stream of a pod in `shop` that says it is of that gateway.
async fn stream(server: &Server, account: &str, pod: &str, bound: bool) -> Proxy {
    let bound = bound.then_some(pod);
    let token = format!("Bearer {}", server.token("shop", account, bound));
    Proxy::open(server.channel().await, Some(&token))
        .await
        .unwrap()
}

fn first(type_url: &str, pod: &str, gateway: &str) -> DeltaDiscoveryRequest {
    let id = format!("waypoint~10.10.3.1~{pod}.shop~shop.svc.cluster.local");
    let metadata = [("NAMESPACE", "shop"), ("GATEWAY_NAME", gateway)];
    let is_address = type_url == ADDRESS;
    let stars: Vec<String> = is_address.then(|| "*".to_owned()).into_iter().collect();
    DeltaDiscoveryRequest {
        node: Some(node(&id, &metadata)),
        type_url: type_url.to_owned(),
        resource_names_subscribe: stars.clone(),
        resource_names_unsubscribe: stars,
        ..Default::default()
    }
}

async fn waypoint(server: &Server) -> Proxy {
    let mut proxy = stream(server, "way", "way-1", true).await;
    for type_url in [ADDRESS, WAYPOINT] {
        proxy.send(first(type_url, "way-1", "way")).await;
    }
    proxy.until(|proxy| proxy.held.len() == 2).await;
    proxy
}

async fn refused(proxy: &mut Proxy) -> Status {
    proxy.receive().await.unwrap_err()
}

#[tokio::test]
async fn it_has_its_gateway_and_the_addresses_of_what_that_fronts() {
    let server = server().await;
    let mut proxy = waypoint(&server).await;
    assert_eq!(proxy.names(WAYPOINT), [FRONTED, GATEWAY]);
    assert_eq!(proxy.names(ADDRESS), [&*uid("shop", "web-1"), WEB]);
    let held = &proxy.held[WAYPOINT][GATEWAY];
    let resource = Resource::decode(&*held.value).unwrap();
    assert_eq!(format!("shop/way/{}", resource.key), GATEWAY);
    assert!(matches!(resource.kind, Some(Kind::Gateway(_))));
    let gateway = held.version.clone();

    // A second service and its endpoints come before the word that they are behind the gateway, which is no other
    // for it.
    let more = shop()
        .replace("name: web,", "name: more,")
        .replace("10.0.3.1", "10.0.3.9");
    let service = more
        .split("---")
        .find(|text| text.contains("kind: Service"));
    server.write("more.yaml", service.unwrap());
    proxy
        .until(|proxy| proxy.has(ADDRESS, "shop/more.shop.svc.cluster.local"))
        .await;
    let more = "shop/way/fronted/service/shop/more.shop.svc.cluster.local";
    assert!(!proxy.has(WAYPOINT, more), "the addresses came first");
    proxy.until(|proxy| proxy.has(WAYPOINT, more)).await;
    assert_eq!(proxy.held[WAYPOINT][GATEWAY].version, gateway);
}

#[tokio::test]
async fn a_client_is_looked_up_by_address_and_followed_until_it_is_given_up() {
    let server = server().await;
    let mut proxy = waypoint(&server).await;
    let client = uid("alpha", "client");
    let ask = |subscribe: bool| {
        let names = vec!["/10.10.0.7".to_owned()];
        let mut request = DeltaDiscoveryRequest {
            type_url: ADDRESS.to_owned(),
            ..Default::default()
        };
        if subscribe {
            request.resource_names_subscribe = names;
        } else {
            request.resource_names_unsubscribe = names;
        }
        request
    };
    proxy.send(ask(true)).await;
    proxy.until(|proxy| proxy.has(ADDRESS, &client)).await;
    let version = proxy.held[ADDRESS][&client].version.clone();
    let again = pod("alpha", "client", "client", "node-2", "10.10.0.7");
    server.write("client.yaml", &again);
    server.write(
        "base.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata: { name: alpha }\n",
    );
    proxy
        .until(|proxy| {
            proxy.held[ADDRESS]
                .get(&client)
                .is_some_and(|held| held.version != version)
        })
        .await;
    proxy.send(ask(false)).await;
    proxy.until(|proxy| !proxy.has(ADDRESS, &client)).await;
    assert!(proxy.has(ADDRESS, WEB));
}

#[tokio::test]
async fn only_a_pod_that_is_labelled_so_and_runs_as_it_is_told() {
    let server = server().await;
    for (what, account, pod, bound, gateway, code) in [
        (
            "another gateway",
            "way",
            "way-1",
            true,
            "other",
            Code::PermissionDenied,
        ),
        (
            "no label",
            "way",
            "other-1",
            true,
            "way",
            Code::PermissionDenied,
        ),
        (
            "another's pod",
            "web",
            "way-1",
            false,
            "way",
            Code::PermissionDenied,
        ),
        (
            "bound to another pod",
            "web",
            "web-1",
            true,
            "way",
            Code::PermissionDenied,
        ),
        (
            "no such pod yet",
            "way",
            "way-2",
            false,
            "way",
            Code::Unavailable,
        ),
    ] {
        let mut proxy = stream(&server, account, pod, bound).await;
        proxy.send(first(WAYPOINT, pod, gateway)).await;
        assert_eq!(refused(&mut proxy).await.code(), code, "{what}");
    }
    let mut unbound = stream(&server, "way", "way-1", false).await;
    unbound.send(first(WAYPOINT, "way-1", "way")).await;
    unbound.until(|proxy| proxy.has(WAYPOINT, GATEWAY)).await;
}

#[tokio::test]
async fn a_ztunnel_is_told_nothing_of_it() {
    let server = server().await;
    let mut proxy = server.proxy().await;
    proxy
        .send(DeltaDiscoveryRequest {
            node: Some(ztunnel_node()),
            type_url: WAYPOINT.to_owned(),
            ..Default::default()
        })
        .await;
    proxy.subscribe(ADDRESS).await;
    proxy.until(|proxy| proxy.has(ADDRESS, WEB)).await;
    assert_eq!(proxy.held.keys().collect::<Vec<_>>(), [ADDRESS]);
}

#[tokio::test]
async fn what_it_refuses_stands_in_the_objects_status_while_it_does() {
    let server = server().await;
    let proxy = waypoint(&server).await;
    let answer = |details| DeltaDiscoveryRequest {
        type_url: WAYPOINT.to_owned(),
        response_nonce: "2".to_owned(),
        error_detail: Some(ErrorDetail {
            code: 3,
            message: "refused".to_owned(),
            details,
        }),
        ..Default::default()
    };
    let refused = Refused {
        name: GATEWAY.to_owned(),
        reason: "too many listeners".to_owned(),
    };
    let detail = prost_types::Any {
        type_url: api::REFUSED_TYPE.to_owned(),
        value: refused.encode_to_vec(),
    };
    proxy.send(answer(vec![detail])).await;
    let mirror = server.path(".status/Gateway/shop/way.yaml");
    let says = async |what: bool| {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let text = std::fs::read_to_string(&mirror).unwrap_or_default();
                if text.contains("shop/way: too many listeners") == what {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        });
        assert!(waited.await.is_ok(), "refusal shown: {what}");
    };
    says(true).await;
    drop(proxy);
    says(false).await;
}
