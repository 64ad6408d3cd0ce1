//! Whom the app sees as its client (`ENABLE_ORIG_SRC`), on each of the three ways in, and that the log says so where
//! it is not the client.

use std::net::SocketAddr;

use crate::log;
use crate::world::{At, CLIENT, SERVER, World, WorldPod, echo, greeting};

const NOTE: &str = "note=\"the app sees this pod's address instead of the client's\"";

#[tokio::test(flavor = "multi_thread")]
async fn the_app_sees_its_client_unless_the_operator_says_otherwise() {
    for (suffix, flags, kept) in [
        ("ba", &[][..], true),
        ("bb", &["--require-original-source", "true"], true),
        ("bc", &["--require-original-source", "false"], false),
    ] {
        let mut world = World::new(flags);
        let name = |pod: &str| format!("{pod}-{suffix}");
        let far = world.pod(&name("far"), At::Node(0), &CLIENT).await;
        let near = world
            .pod(&name("near"), At::Node(1), &["10.77.0.3", "fd77::3"])
            .await;
        let outsider = world
            .pod(&name("outsider"), At::Nowhere, &["10.77.0.4", "fd77::4"])
            .await;
        let server = world.pod(&name("server"), At::Node(1), &SERVER).await;
        server.serve(9000);
        for client in [&far, &near, &outsider] {
            for family in [0, 1] {
                let mut tcp = client.connect(server.at(family, 9000)).await;
                // Over a tunnel the port is that of the tunnel's own connection.
                let source = SocketAddr::new(client.ips[family], 0).to_string();
                let source = format!("src.addr={}", source.trim_end_matches('0'));
                let seen = if kept { client } else { &server };
                assert_eq!(
                    greeting(&mut tcp).await.unwrap(),
                    seen.ips[family].to_string(),
                    "{flags:?} {source}"
                );
                echo(tcp, b"x").await;
                let line = log::line(&[&source, "inbound", &name("server")]).await;
                assert_eq!(line.contains(NOTE), !kept, "{flags:?}: {line}");
            }
        }
    }
}

/// The pod's connection tracking has the client's connection under the client's address and port. If our own to the app
/// were under the same, its first packet would take the other's way and cut it, unheard by the client.
#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_never_called_from_a_port_that_its_client_may_have_open() {
    let mut world = World::new(&[]);
    let outsider = world
        .pod("outsider-d", At::Nowhere, &["10.77.0.4", "fd77::4"])
        .await;
    let server = world.pod("server-d", At::Node(1), &SERVER).await;
    server.serve(9000);
    // So few ports that the kernel could hardly choose another.
    for pod in ["outsider-d", "server-d"] {
        world.sysctl(pod, "net/ipv4/ip_local_port_range", "40000 40007");
    }
    for family in [0, 1] {
        let mut open = Vec::new();
        for _ in 0..8 {
            let mut tcp = outsider.connect(server.at(family, 9000)).await;
            let seen = greeting(&mut tcp).await.unwrap();
            assert_eq!(seen, outsider.ips[family].to_string());
            open.push(tcp);
        }
        for tcp in open {
            echo(tcp, b"still here").await;
        }
    }
}

/// An address that means nothing without the link it is on cannot be taken over: the one source that no capability helps to keep.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_cannot_be_kept_is_said_or_refused_as_the_operator_wants() {
    for (suffix, flags, served) in [
        ("ca", &[][..], true),
        ("cb", &["--require-original-source", "true"], false),
    ] {
        let mut world = World::new(flags);
        let outsider = world.pod("outsider-c", At::Nowhere, &["fe80::77"]).await;
        let name = format!("server-{suffix}");
        let server: WorldPod = world.pod(&name, At::Node(1), &SERVER).await;
        server.serve(9000);
        if served {
            let mut tcp = outsider.connect(server.at(1, 9000)).await;
            assert_eq!(greeting(&mut tcp).await.unwrap(), SERVER[1]);
            echo(tcp, b"x").await;
        } else {
            outsider.is_reset(server.at(1, 9000)).await;
        }
        let line = log::line(&["fe80::77", "inbound", &name]).await;
        if served {
            assert!(line.starts_with("info\t") && line.contains(NOTE), "{line}");
        } else {
            let why = "error=\"the client's address fe80::77 could not be kept, as ENABLE_ORIG_SRC demands";
            assert!(line.starts_with("error\t") && line.contains(why), "{line}");
        }
    }
}
