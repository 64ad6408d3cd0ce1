//! Who gets only a part: what it missed, or what it asks for.

use api::discovery::DeltaDiscoveryRequest;

use super::{SERVICE, workload};
use crate::support::{ADDRESS, AUTHORIZATION, Server, pod, uid};

#[tokio::test]
async fn who_comes_back_is_told_the_difference() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        let ip = format!("10.10.0.{}", name.as_bytes()[0]);
        server.write(
            &format!("{name}.yaml"),
            &pod("alpha", name, "web", "node-1", &ip),
        );
    }
    server.write("policy.yaml", crate::support::POLICY);
    let mut proxy = server.proxy().await;
    proxy.subscribe_to_all().await;
    proxy
        .until(|proxy| {
            proxy.has(ADDRESS, &uid("alpha", "c")) && proxy.has(AUTHORIZATION, "alpha/allow")
        })
        .await;
    proxy
        .until(|proxy| {
            !workload(proxy, &uid("alpha", "c"))
                .authorization_policies
                .is_empty()
        })
        .await;
    let held = proxy.held.clone();
    drop(proxy);

    let mut unchanged = server.proxy().await;
    unchanged.held = held.clone();
    unchanged.subscribe_to_all().await;
    for _ in 0..2 {
        let response = unchanged.next().await;
        assert_eq!(
            (response.resources.len(), response.removed_resources.len()),
            (0, 0)
        );
    }

    server.remove("a.yaml");
    server.write("b.yaml", &pod("alpha", "b", "web", "node-2", "10.10.0.98"));
    server.write("d.yaml", &pod("alpha", "d", "web", "node-1", "10.10.0.100"));
    unchanged
        .until(|proxy| {
            !proxy.has(ADDRESS, &uid("alpha", "a")) && proxy.has(ADDRESS, &uid("alpha", "d"))
        })
        .await;
    unchanged
        .until(|proxy| workload(proxy, &uid("alpha", "b")).node == "node-2")
        .await;

    let mut behind = server.proxy().await;
    behind.held = held;
    // Something that never was.
    let phantom = behind.held[ADDRESS][&uid("alpha", "c")].clone();
    behind
        .held
        .get_mut(ADDRESS)
        .unwrap()
        .insert("never-was".into(), phantom);
    behind.subscribe(ADDRESS).await;
    let response = behind.next().await;
    let mut names: Vec<_> = response
        .resources
        .iter()
        .map(|resource| &*resource.name)
        .collect();
    names.sort_unstable();
    assert_eq!(names, [uid("alpha", "b"), uid("alpha", "d")]);
    assert_eq!(
        response.removed_resources,
        [uid("alpha", "a"), "never-was".into()]
    );
    assert_eq!(behind.held[ADDRESS], unchanged.held[ADDRESS]);
}

#[tokio::test]
async fn on_demand_a_proxy_gets_its_node_and_what_it_asks_for() {
    let server = Server::prepared(&[], |config| {
        let text = pod("alpha", "web-0", "web", "node-2", "10.10.1.1") + SERVICE;
        std::fs::write(config.join("web.yaml"), text).unwrap();
    })
    .await;
    let mut proxy = server.proxy().await;
    proxy
        .send(DeltaDiscoveryRequest {
            node: Some(crate::support::ztunnel_node()),
            type_url: ADDRESS.into(),
            resource_names_subscribe: vec!["*".into()],
            resource_names_unsubscribe: vec!["*".into()],
            ..Default::default()
        })
        .await;
    proxy.next().await;
    assert_eq!(
        proxy.names(ADDRESS),
        [uid("alpha", "client"), uid("istio-system", "ztunnel-node1")]
    );

    let ask = |name: &str| DeltaDiscoveryRequest {
        type_url: ADDRESS.into(),
        resource_names_subscribe: vec![name.into()],
        ..Default::default()
    };
    proxy.send(ask("/10.96.0.1")).await;
    let answer = proxy.next().await;
    assert!(
        answer
            .resources
            .iter()
            .any(|resource| resource.aliases.contains(&"/10.96.0.1".into())),
        "{answer:?}"
    );
    assert!(proxy.has(ADDRESS, "alpha/web.alpha.svc.cluster.local"));
    assert!(proxy.has(ADDRESS, &uid("alpha", "web-0")));

    // An endpoint that joins later is told (Istio forgets it).
    server.write(
        "web-1.yaml",
        &pod("alpha", "web-1", "web", "node-2", "10.10.1.2"),
    );
    proxy
        .until(|proxy| proxy.has(ADDRESS, &uid("alpha", "web-1")))
        .await;

    proxy.send(ask("/10.99.99.99")).await;
    assert_eq!(proxy.next().await.removed_resources, ["/10.99.99.99"]);
    assert!(!proxy.has(ADDRESS, &uid("alpha", "far")));

    // Who knows a host only is told of it in whichever namespace it is, also of one that comes later.
    let anywhere = "*/api.example.com";
    proxy.send(ask(anywhere)).await;
    assert_eq!(proxy.next().await.removed_resources, [anywhere]);
    for namespace in ["beta", "alpha"] {
        let entry = format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: api, namespace: {namespace}}}\n\
             spec: {{hosts: [API.example.com], ports: [{{number: 443, name: tls, protocol: TLS}}], resolution: NONE}}\n"
        );
        server.write(&format!("{namespace}.yaml"), &entry);
        let told = proxy.next().await;
        let aliases = &told.resources[0].aliases;
        assert!(aliases.iter().any(|alias| alias == anywhere), "{told:?}");
        assert!(told.resources[0].name.starts_with(namespace), "{told:?}");
    }
}
