//! Destinations that the mesh does not know: reached, told of, or refused.

use std::io;

use api::egress::{Egress, egress::Mode};
use api::workload as wire;
use prost::Message as _;
use tokio::net::TcpListener;

use crate::log;
use crate::world::{At, CLIENT, SERVER, World, cut, echo, greeting, service};

const SETTING: &str = "label ambit.io/egress of namespace default";

fn says(mode: Mode) -> Vec<wire::Extension> {
    let said = Egress {
        mode: mode.into(),
        set_by: SETTING.into(),
    };
    vec![wire::Extension {
        name: api::EGRESS_EXTENSION.into(),
        config: Some(prost_types::Any {
            type_url: api::EGRESS_TYPE.into(),
            value: said.encode_to_vec(),
        }),
    }]
}

/// Whether nobody stands in its backlog.
fn is_empty(listener: TcpListener) -> bool {
    let accepted = listener.into_std().unwrap().accept();
    matches!(accepted, Err(why) if why.kind() == io::ErrorKind::WouldBlock)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_call_the_unknown_is_reset_before_anything_leaves_and_its_record_names_the_setting()
 {
    let mut world = World::new(&[]);
    let client = world
        .pod_with("client-eg1", At::Node(0), &CLIENT, |pod| {
            pod.extensions = says(Mode::Refuse);
        })
        .await;
    let outside = world.pod("outside-eg1", At::Nowhere, &SERVER).await;
    let listener = outside.listen(9000);
    for family in [0, 1] {
        client.is_reset(outside.at(family, 9000)).await;
    }
    assert!(is_empty(listener), "somebody came to the outside");

    let line = log::line(&["client-eg1", "outbound", "10.77.0.2:9000"]).await;
    let why = format!("egress refused by {SETTING}: the mesh knows nobody at 10.77.0.2:9000");
    assert!(
        line.contains("connection failed") && line.contains(&why),
        "{line}"
    );
    let node = &world.nodes[0];
    let of_client = "source_workload=\"client-eg1\"";
    let refused = [of_client, "decision=\"refused\""];
    node.counts("ambit_egress_connections_total", &refused, 2)
        .await;
    let failed = [of_client, "response_flags=\"EGRESS\""];
    node.counts("istio_tcp_connections_failed_total", &failed, 2)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_only_wants_to_know_lets_all_pass_and_tells_of_each() {
    let mut world = World::new(&[]);
    let client = world
        .pod_with("client-eg2", At::Node(0), &CLIENT, |pod| {
            pod.extensions = says(Mode::Log);
        })
        .await;
    let outside = world.pod("outside-eg2", At::Nowhere, &SERVER).await;
    outside.serve(9000);
    let mut tcp = client.connect(outside.at(0, 9000)).await;
    assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
    echo(tcp, b"x").await;
    let line = log::line(&["client-eg2", "outbound", "10.77.0.2:9000"]).await;
    let note =
        format!("note=\"egress logged by {SETTING}: the mesh knows nobody at 10.77.0.2:9000\"");
    assert!(line.contains(&note) && !line.contains("error="), "{line}");
    let logged = ["source_workload=\"client-eg2\"", "decision=\"logged\""];
    let counted = |world: &World| world.nodes[0].metric("ambit_egress_connections_total", &logged);
    assert_eq!(counted(&world), 1);
    // Nobody wants to know any more.
    world.change("client-eg2", |pod| pod.extensions = says(Mode::Allow));
    let mut tcp = client.connect(outside.at(1, 9000)).await;
    assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[1]);
    echo(tcp, b"x").await;
    let line = log::line(&["client-eg2", "outbound", "[fd77::2]:9000"]).await;
    assert!(!line.contains("note="), "{line}");
    assert_eq!(counted(&world), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_names_is_known_at_its_ports_and_so_are_pods() {
    let mut world = World::new(&[]);
    let client = world
        .pod_with("client-eg3", At::Node(0), &CLIENT, |pod| {
            pod.extensions = says(Mode::Refuse);
        })
        .await;
    let pod = world.pod("server-eg3", At::Node(1), &["10.77.0.3"]).await;
    pod.serve(8080);
    let mut tcp = client.connect(pod.at(0, 8080)).await;
    assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
    echo(tcp, b"x").await;

    let outside = world.pod("outside-eg3", At::Nowhere, &SERVER).await;
    outside.serve(9000);
    outside.serve(9001);
    client.is_reset(outside.at(0, 9000)).await;
    world.tell(|update| {
        let mut named = service("outside.example", &["10.77.0.2"], &[(9000, 9000)]);
        named.load_balancing = Some(wire::LoadBalancing {
            mode: wire::load_balancing::Mode::Passthrough.into(),
            ..Default::default()
        });
        update.set_service(named);
    });
    let mut tcp = client.connect(outside.at(0, 9000)).await;
    assert_eq!(greeting(&mut tcp).await.unwrap(), CLIENT[0]);
    echo(tcp, b"x").await;
    client.is_reset(outside.at(0, 9001)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_connection_to_the_unknown_is_cut_when_that_is_refused_and_others_go_on() {
    let mut world = World::new(&[]);
    let client = world.pod("client-eg4", At::Node(0), &CLIENT).await;
    let pod = world.pod("server-eg4", At::Node(1), &["10.77.0.3"]).await;
    let outside = world.pod("outside-eg4", At::Nowhere, &SERVER).await;
    pod.serve(8080);
    outside.serve(9000);
    let mut known = client.connect(pod.at(0, 8080)).await;
    greeting(&mut known).await.unwrap();
    let mut unknown = client.connect(outside.at(0, 9000)).await;
    greeting(&mut unknown).await.unwrap();

    world.change("client-eg4", |pod| pod.extensions = says(Mode::Refuse));
    assert!(
        cut(&mut unknown).await,
        "a cut-off connection must not look complete"
    );
    let line = log::line(&["client-eg4", "dst.addr=10.77.0.2:9000", "error="]).await;
    let why = format!("egress refused by {SETTING}: the mesh knows nobody at 10.77.0.2:9000");
    assert!(line.contains(&why), "{line}");
    let closed = [
        "source_workload=\"client-eg4\"",
        "response_flags=\"EGRESS\"",
    ];
    let counted = world.nodes[0].metric("istio_tcp_connections_closed_total", &closed);
    assert_eq!(counted, 1);
    echo(known, b"goes on").await;
}
