//! DNS in a pod's namespace: the mesh at once, everything else from upstream, byte for byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::workload as wire;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use lab::Place;
use mesh::Update;
use ops::drain::Drained;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use ztunnel::dns::{Dns, Resolv};
use ztunnel::metrics::DnsMetrics;
use ztunnel::netns::From;

use crate::fixture::{Conversation, Fixture, eventually};
use crate::place::{HandedOver, place};
use crate::process::PATIENCE;

const UPSTREAM: &str = "127.0.0.53:5300";
const DEAD: &str = "127.0.0.54:5300";

struct Asking {
    fixture: Fixture,
    _agent: Conversation,
    metrics: DnsMetrics,
}

async fn asking(place: &Place, servers: &[&str]) -> Asking {
    let metrics = DnsMetrics::default();
    let servers = servers
        .iter()
        .map(|server| server.parse().unwrap())
        .collect();
    let for_dns = metrics.clone();
    let mut fixture = Fixture::new(|mesh, config| {
        Some(Dns::new(
            mesh.clone(),
            config,
            Resolv {
                servers,
                search: Vec::new(),
            },
            for_dns,
            None,
        ))
    });
    let mut update = Update::default();
    update.set_service(wire::Service {
        name: "web".into(),
        namespace: "app".into(),
        hostname: "web.app.svc.cluster.local".into(),
        addresses: vec![wire::NetworkAddress {
            address: vec![10, 96, 0, 1].into(),
            ..Default::default()
        }],
        canonical: true,
        ..Default::default()
    });
    assert_eq!(fixture.writer.apply(update), []);
    let agent = fixture.agent.accept().await;
    assert_eq!(agent.add("uid", "client", place.fd()).await, "");
    Asking {
        fixture,
        _agent: agent,
        metrics,
    }
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut query = Message::new(77, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query.to_vec().unwrap()
}

async fn ask_udp(place: &Place, proxy: &str, query: &[u8]) -> Vec<u8> {
    let proxy: SocketAddr = proxy.parse().unwrap();
    let any = if proxy.is_ipv4() {
        "127.0.0.1:0"
    } else {
        "[::1]:0"
    };
    let socket = place.netns().udp(any.parse().unwrap()).unwrap();
    socket.send_to(query, proxy).await.unwrap();
    let mut answer = vec![0; 65_535];
    let received = tokio::time::timeout(PATIENCE, socket.recv(&mut answer)).await;
    answer.truncate(received.expect("no answer").unwrap());
    answer
}

async fn ask_tcp(place: &Place, query: &[u8]) -> Vec<u8> {
    let mut stream = place
        .netns()
        .connect(From::Any, "127.0.0.1:15053".parse().unwrap())
        .await
        .unwrap();
    stream
        .write_u16(query.len().try_into().unwrap())
        .await
        .unwrap();
    stream.write_all(query).await.unwrap();
    answer(&mut stream).await
}

/// The next one on a connection.
async fn answer(stream: &mut TcpStream) -> Vec<u8> {
    let reading = async {
        let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answer).await.unwrap();
        answer
    };
    let answer = tokio::time::timeout(PATIENCE, reading).await;
    answer.expect("no answer")
}

/// An upstream that answers with the query itself, the response bit set, and bytes that no parser takes.
fn strange_upstream(place: &Place) -> JoinHandle<()> {
    let socket: UdpSocket = place.netns().udp(UPSTREAM.parse().unwrap()).unwrap();
    let listener = place.netns().listen_on(UPSTREAM.parse().unwrap()).unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        loop {
            tokio::select! {
                received = socket.recv_from(&mut buffer) => {
                    let (length, from) = received.unwrap();
                    socket.send_to(&strange(&buffer[..length]), from).await.unwrap();
                }
                accepted = listener.accept() => {
                    let (mut stream, _) = accepted.unwrap();
                    // Who asked may have given up.
                    let Ok(length) = stream.read_u16().await else { continue };
                    let mut query = vec![0; length.into()];
                    if stream.read_exact(&mut query).await.is_err() { continue }
                    let answer = strange(&query);
                    let _ = stream.write_u16(answer.len().try_into().unwrap()).await;
                    let _ = stream.write_all(&answer).await;
                }
            }
        }
    })
}

fn strange(query: &[u8]) -> Vec<u8> {
    let mut answer = query.to_vec();
    answer[2] |= 0x80;
    answer.extend([0xde, 0xad, 0xbe, 0xef]);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn mesh_names_are_answered_on_every_socket() {
    let place = place();
    let asking = asking(&place, &[]).await;
    let query = query("web.", RecordType::A);
    let answers = [
        ask_udp(&place, "127.0.0.1:15053", &query).await,
        ask_udp(&place, "[::1]:15053", &query).await,
        ask_tcp(&place, &query).await,
    ];
    for answer in answers {
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(
            (answer.metadata.id, answer.metadata.authoritative),
            (77, true)
        );
        assert_eq!(answer.answers[0].data.to_string(), "10.96.0.1");
    }
    drop(asking);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_else_passes_untouched_both_ways() {
    let place = place();
    let upstream = strange_upstream(&place);
    let _asking = asking(&place, &[UPSTREAM]).await;
    let mut unknown_type = query("web.", RecordType::Unknown(65_280));
    // Status, notify, update and one that nobody knows, about a name of the mesh; and the same name in class CHAOS.
    let operation = |code: u8| {
        let mut query = query("web.app.svc.cluster.local.", RecordType::A);
        query[2] |= code << 3;
        query
    };
    let mut chaos = query("web.app.svc.cluster.local.", RecordType::A);
    let class = chaos.len() - 1;
    chaos[class] = 3;
    for query in [
        query("www.example.org.", RecordType::A),
        query("WeB.app.svc.cluster.local.", RecordType::TXT),
        query("_http._tcp.web.app.svc.cluster.local.", RecordType::SRV),
        query("web.app.svc.cluster.local.", RecordType::HTTPS),
        query("web.app.svc.cluster.local.", RecordType::ANY),
        operation(2),
        operation(4),
        operation(5),
        operation(15),
        chaos,
        {
            unknown_type.extend([1, 2, 3]); // not even well formed
            unknown_type
        },
    ] {
        assert_eq!(
            ask_udp(&place, "127.0.0.1:15053", &query).await,
            strange(&query)
        );
        assert_eq!(ask_tcp(&place, &query).await, strange(&query));
    }
    upstream.abort();
}

/// An upstream that answers each query over UDP as `tell` does.
fn upstream<F>(
    place: &Place,
    tell: impl Fn(Arc<UdpSocket>, Vec<u8>, SocketAddr) -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let socket = Arc::new(place.netns().udp(UPSTREAM.parse().unwrap()).unwrap());
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            tokio::spawn(tell(socket.clone(), buffer[..length].to_vec(), from));
        }
    })
}

/// Somebody who sees that a pod asks, and is faster than who was asked.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_answer_to_what_was_asked_of_who_was_asked_is_passed_over() {
    let place = place();
    let liar = Arc::new(
        place
            .netns()
            .udp("127.0.0.55:5300".parse().unwrap())
            .unwrap(),
    );
    let upstream = upstream(&place, move |socket, query, from| {
        let liar = liar.clone();
        async move {
            let answer = strange(&query);
            let (mut other_id, mut other_name, mut no_answer) =
                (answer.clone(), answer.clone(), query.clone());
            other_id[0] ^= 0xff;
            other_name[13] ^= 1;
            no_answer[3] = 0xff;
            // From another address; and from the right one, with another id, about another name, no answer at all.
            liar.send_to(&answer[..answer.len() - 4], from)
                .await
                .unwrap();
            for lie in [other_id, other_name, no_answer] {
                socket.send_to(&lie, from).await.unwrap();
            }
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    let _asking = asking(&place, &[UPSTREAM]).await;
    for _ in 0..10 {
        let query = query("www.example.org.", RecordType::A);
        assert_eq!(
            ask_udp(&place, "127.0.0.1:15053", &query).await,
            strange(&query)
        );
    }
    upstream.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upstream_is_still_heard_when_others_have_been_asked_beside_it() {
    let place = place();
    let _dead = place.netns().udp(DEAD.parse().unwrap()).unwrap();
    let upstream = upstream(&place, |socket, query, from| async move {
        tokio::time::sleep(Duration::from_millis(2000)).await;
        // The asker may have its answer already.
        let _ = socket.send_to(&strange(&query), from).await;
    });
    let asking = asking(&place, &[UPSTREAM, DEAD]).await;
    let query = query("www.example.org.", RecordType::A);
    assert_eq!(
        ask_udp(&place, "127.0.0.1:15053", &query).await,
        strange(&query)
    );
    assert_eq!(asking.metrics.sum(|counts| &counts.upstream_failures), 0);
    upstream.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_longer_than_can_be_passed_on_says_that_it_was_cut() {
    let place = place();
    let upstream = upstream(&place, |socket, query, from| async move {
        let mut answer = strange(&query);
        answer.resize(6000, 7);
        socket.send_to(&answer, from).await.unwrap();
    });
    let _asking = asking(&place, &[UPSTREAM]).await;
    let answer = ask_udp(
        &place,
        "127.0.0.1:15053",
        &query("www.example.org.", RecordType::TXT),
    )
    .await;
    assert_eq!((answer.len(), answer[2] & 0x02), (4096, 0x02));
    upstream.abort();
}

/// The libraries of some languages put both families' questions on one connection.
#[tokio::test(flavor = "multi_thread")]
async fn on_one_connection_a_mesh_name_does_not_wait_for_the_outside() {
    let place = place();
    // It takes connections, and says nothing.
    let _mute = place.netns().listen_on(DEAD.parse().unwrap()).unwrap();
    let asking = asking(&place, &[DEAD]).await;
    let to = "127.0.0.1:15053".parse().unwrap();
    let mut stream = place.netns().connect(From::Any, to).await.unwrap();
    let mut outside = query("www.example.org.", RecordType::A);
    outside[0] = 1; // another id
    // In one piece: whatever comes between two would count as the outside's time.
    let mut both: Vec<u8> = Vec::new();
    for query in [&outside, &query("web.app.", RecordType::A)] {
        both.extend(u16::try_from(query.len()).unwrap().to_be_bytes());
        both.extend_from_slice(query);
    }
    stream.write_all(&both).await.unwrap();
    let mut codes = Vec::new();
    for _ in 0..2 {
        let answer = Message::from_vec(&answer(&mut stream).await).unwrap();
        codes.push((answer.metadata.id, answer.metadata.response_code));
    }
    let (outside, mesh) = (u16::from_be_bytes([1, 77]), 77);
    assert_eq!(
        codes,
        [
            (mesh, ResponseCode::NoError),
            (outside, ResponseCode::ServFail)
        ]
    );
    drop(asking.fixture);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_starts_without_ipv6_and_without_anybody_to_relay_to() {
    let place = place();
    place.sysctl("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    let _asking = asking(&place, &[]).await;
    let answer = ask_udp(&place, "127.0.0.1:15053", &query("web.app.", RecordType::A)).await;
    assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
    let answer = ask_udp(
        &place,
        "127.0.0.1:15053",
        &query("www.example.org.", RecordType::A),
    )
    .await;
    let code = Message::from_vec(&answer).unwrap().metadata.response_code;
    assert_eq!(code, ResponseCode::ServFail);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_resolver_is_passed_over_and_then_avoided() {
    let place = place();
    // Bound but mute: datagrams vanish.
    let _dead = place.netns().udp(DEAD.parse().unwrap()).unwrap();
    let upstream = strange_upstream(&place);
    let asking = asking(&place, &[DEAD, UPSTREAM]).await;
    let query = query("www.example.org.", RecordType::A);
    for _ in 0..20 {
        assert_eq!(
            ask_udp(&place, "127.0.0.1:15053", &query).await,
            strange(&query)
        );
    }
    assert_eq!(
        asking.metrics.sum(|counts| &counts.upstream_failures),
        0,
        "the second server answered each time"
    );
    upstream.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_upstream_never_delays_mesh_names_and_is_admitted() {
    let place = place();
    let _dead = place.netns().udp(DEAD.parse().unwrap()).unwrap();
    let asking = asking(&place, &[DEAD]).await;
    let place = Arc::new(place);
    let flood = place.netns().udp("127.0.0.1:0".parse().unwrap()).unwrap();
    // Room for all the answers that come at once in the end.
    SockRef::from(&flood).set_recv_buffer_size(1 << 20).unwrap();
    let outside = query("www.example.org.", RecordType::A);
    let proxy: SocketAddr = "127.0.0.1:15053".parse().unwrap();
    // More than may be under way: the rest is refused at once. In bursts that fit socket buffers.
    let (mut sent, mut refused, mut buffer) = (0, 0, [0; 512]);
    while sent < 400 {
        for _ in 0..50 {
            flood.send_to(&outside, proxy).await.unwrap();
            sent += 1;
        }
        eventually("the burst is taken", || {
            asking.metrics.sum(|counts| &counts.requests) >= sent
        })
        .await;
        while let Ok(length) = flood.try_recv(&mut buffer) {
            refused += 1;
            assert_eq!(
                Message::from_vec(&buffer[..length])
                    .unwrap()
                    .metadata
                    .response_code,
                ResponseCode::ServFail
            );
        }
    }
    // The upstream will be silent for seconds; a mesh name does not wait for it.
    let answer = ask_udp(&place, "127.0.0.1:15053", &query("web.app.", RecordType::A)).await;
    assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
    while refused < 400 - 256 {
        let received = tokio::time::timeout(PATIENCE, flood.recv(&mut buffer)).await;
        let length = received.expect("nobody is refused").unwrap();
        assert_eq!(
            Message::from_vec(&buffer[..length])
                .unwrap()
                .metadata
                .response_code,
            ResponseCode::ServFail
        );
        refused += 1;
    }
    // And in the end everyone gets an answer, so that resolvers do not hang.
    for _ in refused..400 {
        tokio::time::timeout(PATIENCE, flood.recv(&mut buffer))
            .await
            .expect("no answer at all")
            .unwrap();
    }
    drop(asking.fixture);
}

/// While the pod's connections may go on, the applications at their ends still ask for names.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_answered_until_the_last_connection_has_drained() {
    let place = place();
    let asking = asking(&place, &[]).await;
    let pod = asking.fixture.roster.up("uid").unwrap();
    let connection = pod.drain.hold();
    let stopping = {
        let drain = asking.fixture.drain.clone();
        tokio::spawn(async move { drain.drain(Duration::from_secs(60)).await })
    };
    pod.drain.accepting().cancelled().await;
    let query = query("web.", RecordType::A);
    for _ in 0..3 {
        for answer in [
            ask_udp(&place, "127.0.0.1:15053", &query).await,
            ask_tcp(&place, &query).await,
        ] {
            assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
        }
    }
    assert!(!stopping.is_finished());
    drop(connection);
    assert_eq!(
        stopping.await.unwrap(),
        Drained::Quiet,
        "answering names holds up nobody's end"
    );
    eventually("the sockets are closed", || is_free(&place, "127.0.0.1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_half_way_leaves_no_socket_open() {
    let place = place();
    let in_the_way = place
        .within(|| std::net::UdpSocket::bind("[::1]:15053").unwrap())
        .unwrap();
    let fixture = Fixture::new(|mesh, config| {
        let none = Resolv {
            servers: Vec::new(),
            search: Vec::new(),
        };
        let metrics = DnsMetrics::default();
        Some(Dns::new(mesh.clone(), config, none, metrics, None))
    });
    let agent = fixture.agent.accept().await;
    let error = agent.add("uid", "client", place.fd()).await;
    assert!(error.contains("port 15053"), "{error}");
    eventually("what was opened before, for IPv4, is closed", || {
        is_free(&place, "127.0.0.1")
    })
    .await;

    drop(in_the_way);
    let mut answer = agent.add("uid", "client", place.fd()).await;
    let begun = Instant::now();
    while answer.contains("Address already in use") {
        assert!(begun.elapsed() < PATIENCE, "{answer}");
        tokio::time::sleep(Duration::from_millis(5)).await;
        answer = agent.add("uid", "client", place.fd()).await;
    }
    assert_eq!(answer, "");
    assert!(!is_free(&place, "127.0.0.1"));
}

/// Nobody has the DNS port of this address; a socket of another program would not share it. Not at once after somebody let
/// go of it: a program that another test starts at that moment has a copy of every socket from its fork until its exec.
fn is_free(place: &Place, ip: &'static str) -> bool {
    place
        .within(|| std::net::UdpSocket::bind((ip, 15053)).is_ok())
        .unwrap()
}
