//! Names that pods of nodes ask for that follow nobody beforehand: the control plane is asked for whoever may have them.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::workload as wire;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use mesh::Update;

use crate::on_demand::{eventually, known, times};
use crate::world::{At, CLIENT, PATIENCE, SERVER, World, WorldPod, service};

const HOST: &str = "web.default.svc.cluster.local";

/// A pod whose upstream resolver knows no name at all, and remembers what it was asked for.
struct Asker {
    pod: WorldPod,
    upstream: Arc<Mutex<Vec<String>>>,
}

impl Asker {
    async fn start(world: &mut World, name: &str) -> Self {
        let pod = world.pod(name, At::Node(0), &CLIENT).await;
        let socket = pod.udp(World::RESOLVER.parse().unwrap());
        let upstream = Arc::new(Mutex::new(Vec::new()));
        let asked = upstream.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let query = Message::from_vec(&buffer[..length]).unwrap();
                let name = query.queries[0].name().to_ascii();
                asked.lock().unwrap().push(name);
                let mut answer =
                    Message::error_msg(query.metadata.id, OpCode::Query, ResponseCode::NXDomain);
                answer.add_queries(query.queries);
                socket
                    .send_to(&answer.to_vec().unwrap(), from)
                    .await
                    .unwrap();
            }
        });
        Self { pod, upstream }
    }

    /// The addresses of a name, or why there are none.
    async fn ask(&self, name: &str) -> Result<Vec<String>, ResponseCode> {
        let mut query = Message::new(4711, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        let socket = self.pod.udp("127.0.0.1:0".parse().unwrap());
        let resolver: SocketAddr = "127.0.0.1:15053".parse().unwrap();
        let query = query.to_vec().unwrap();
        socket.send_to(&query, resolver).await.unwrap();
        let mut buffer = [0; 4096];
        let answered = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer));
        let length = answered.await.expect("no answer").unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        match answer.metadata.response_code {
            ResponseCode::NoError => {
                let records = answer.answers.iter();
                let addresses = records.filter(|record| record.record_type() == RecordType::A);
                Ok(addresses.map(|record| record.data.to_string()).collect())
            }
            code => Err(code),
        }
    }

    /// Until it has that address: a busy machine may be slower than a question waits.
    async fn finds(&self, name: &str, address: &str) {
        for _ in 0..1200 {
            match self.ask(name).await {
                Ok(addresses) => return assert_eq!(addresses, [address], "{name}"),
                Err(code) => assert_eq!(code, ResponseCode::NXDomain, "{name}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{name} is never found");
    }

    fn upstream_was_asked_for(&self, name: &str) -> bool {
        self.upstream
            .lock()
            .unwrap()
            .iter()
            .any(|asked| asked == name)
    }
}

/// As a ServiceEntry of that namespace becomes one.
fn entry(namespace: &str, host: &str, vip: &str) -> wire::Service {
    wire::Service {
        namespace: namespace.into(),
        canonical: false,
        ..service(host, &[vip], &[(443, 443)])
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_nobody_followed_is_asked_for_and_answered_in_every_spelling() {
    let (mut world, control) = World::asking(&[]).await;
    let asker = Asker::start(&mut world, "client-nm1").await;
    world.tell(|update| {
        update.set_service(service(HOST, &["10.78.0.1"], &[(80, 8080)]));
        update.set_service(entry("elsewhere", "API.example.com", "240.240.0.1"));
        update.set_service(entry("elsewhere", "*.wild.example", "240.240.0.2"));
        update.set_service(entry("default", "idle.example.com", "240.240.0.9"));
    });
    assert_eq!(known(&world, 0), ["client-nm1"]);
    for (name, address) in [
        (HOST, "10.78.0.1"),
        ("web.", "10.78.0.1"),
        ("web.default.", "10.78.0.1"),
        ("web.default.default.svc.cluster.local.", "10.78.0.1"),
        ("api.example.com.", "240.240.0.1"),
        ("Api.Example.com.default.svc.cluster.local.", "240.240.0.1"),
        ("a.b.wild.example.", "240.240.0.2"),
    ] {
        asker.finds(name, address).await;
    }
    assert!(!known(&world, 0).contains(&"idle.example.com".to_owned()));

    // What is followed is not asked for again, and what changes is told.
    let its_name = format!("default/{HOST}");
    let asked = times(&control, "node-1", &its_name);
    assert!(asked > 0);
    world.tell(|update| update.set_service(service(HOST, &["10.78.0.7"], &[(80, 8080)])));
    eventually("the new address is told", || {
        let snapshot = world.nodes[0].node.mesh.load();
        let network = mesh::Network::new("");
        snapshot
            .service_at(&network, "10.78.0.7".parse().unwrap(), "default")
            .is_some()
    })
    .await;
    asker.finds("web.", "10.78.0.7").await;
    assert_eq!(times(&control, "node-1", &its_name), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_own_service_is_found_although_another_of_that_host_is_known_already() {
    let (mut world, _control) = World::asking(&[]).await;
    let asker = Asker::start(&mut world, "client-nm2").await;
    world.tell(|update| {
        update.set_service(entry("elsewhere", "api.example.com", "240.240.0.1"));
        update.set_service(entry("default", "api.example.com", "240.240.0.2"));
        update.set_service(entry("elsewhere", "*.example.com", "240.240.0.3"));
    });
    // The first and the last become known for their addresses, as whom connections went to.
    let snapshot = |host: &str| known(&world, 0).contains(&host.to_owned());
    for ip in ["240.240.0.1", "240.240.0.3"] {
        let to = SocketAddr::new(ip.parse().unwrap(), 443);
        let _ = asker.pod.try_connect(to).await;
    }
    eventually("both are known", || {
        snapshot("api.example.com") && snapshot("*.example.com")
    })
    .await;
    asker.finds("api.example.com.", "240.240.0.2").await;
    asker.finds("other.example.com.", "240.240.0.3").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_headless_service_are_found_by_its_name_and_their_own() {
    let (mut world, _control) = World::asking(&[]).await;
    let asker = Asker::start(&mut world, "client-nm3").await;
    let host = "db.default.svc.cluster.local";
    let member = |pod: &mut wire::Workload| {
        let key = format!("default/{host}");
        pod.services.insert(key, wire::PortList::default());
    };
    let _db = world.pod_with("db-0", At::Node(1), &SERVER, member).await;
    world.tell(|update| update.set_service(service(host, &[], &[(5432, 5432)])));
    for name in [
        "db-0.db.",
        "db.",
        "db-0.db.default.svc.cluster.local.",
        host,
    ] {
        asker.finds(name, SERVER[0]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn that_nobody_has_a_name_is_remembered_and_whoever_comes_is_known() {
    let (mut world, control) = World::asking(&[]).await;
    let asker = Asker::start(&mut world, "client-nm4").await;
    let name = "api.example.com.";
    for _ in 0..3 {
        assert_eq!(asker.ask(name).await, Err(ResponseCode::NXDomain));
    }
    assert!(asker.upstream_was_asked_for(name));
    // A question is relayed after a moment, whether or not it has been heard by then.
    eventually("it is asked for", || {
        times(&control, "node-1", "*/api.example.com") > 0
    })
    .await;
    assert_eq!(times(&control, "node-1", "*/api.example.com"), 1);
    world.tell(|update| update.set_service(entry("elsewhere", "api.example.com", "240.240.0.1")));
    asker.finds(name, "240.240.0.1").await;
    world.tell(|update: &mut Update| {
        let gone = "elsewhere/api.example.com".into();
        update.addresses.removed.push(gone);
    });
    eventually("it has gone", || {
        !known(&world, 0).contains(&"api.example.com".to_owned())
    })
    .await;
    assert_eq!(asker.ask(name).await, Err(ResponseCode::NXDomain));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_mute_or_away_holds_up_no_name() {
    let (mut world, control) = World::asking(&[]).await;
    let asker = Asker::start(&mut world, "client-nm5").await;
    world.tell(|update| {
        update.set_service(service(HOST, &["10.78.0.1"], &[(80, 8080)]));
        update.set_service(entry("elsewhere", "api.example.com", "240.240.0.1"));
    });
    asker.finds("web.", "10.78.0.1").await;
    control.talks(false);
    let on_demand = "*/api.example.com";
    for _ in 0..50 {
        // Relayed after a moment, and the later ones at once; what is known is answered.
        assert_eq!(
            asker.ask("api.example.com.").await,
            Err(ResponseCode::NXDomain)
        );
        assert_eq!(asker.ask("web.").await, Ok(vec!["10.78.0.1".into()]));
    }
    assert_eq!(times(&control, "node-1", on_demand), 0, "it says nothing");
    control.talks(true);
    asker.finds("api.example.com.", "240.240.0.1").await;

    control.goes_away();
    asker.finds("web.", "10.78.0.1").await;
    assert_eq!(
        asker.ask("other.example.com.").await,
        Err(ResponseCode::NXDomain)
    );
    world.tell(|update| update.set_service(entry("default", "new.example.com", "240.240.0.5")));
    control.comes_back();
    asker.finds("new.example.com.", "240.240.0.5").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_nobody_asks_for_any_more_is_given_up_and_asked_for_again() {
    let flags = ["--on-demand-wait", "1s", "--on-demand-unused", "1s"];
    let (mut world, control) = World::asking(&flags).await;
    let asker = Asker::start(&mut world, "client-nm6").await;
    let told = |update: &mut Update| {
        update.set_service(entry("elsewhere", "api.example.com", "240.240.0.1"));
    };
    world.tell(told);
    asker.finds("api.example.com.", "240.240.0.1").await;
    eventually("it is given up", || known(&world, 0) == ["client-nm6"]).await;
    asker.finds("api.example.com.", "240.240.0.1").await;
    assert!(times(&control, "node-1", "*/api.example.com") >= 2);
}
