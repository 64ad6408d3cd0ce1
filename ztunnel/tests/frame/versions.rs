//! A node agent of another version: an older one, which says less, and a later one, which says more than this ztunnel knows.

use api::zds;
use api::zds::workload_request::Payload;
use prost::Message;

use crate::fixture::{Conversation, Fixture, eventually};
use crate::place::{HandedOver, place};

/// A field of bytes; its number is below 16.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(number < 16 && length < 128, "one byte each");
    [&[(number << 3) | 2, length][..], content].concat()
}

/// `message` with what only later versions know of.
fn later(message: &[u8]) -> Vec<u8> {
    [message, &field(14, b"new"), &[15 << 3, 1]].concat()
}

/// An Add, later in each of its parts.
fn later_add(uid: &str, name: &str) -> Vec<u8> {
    let info = zds::WorkloadInfo {
        name: name.into(),
        namespace: "app".into(),
        service_account: "default".into(),
    };
    let info = field(2, &later(&info.encode_to_vec()));
    let add = later(&[field(1, uid.as_bytes()), info].concat());
    later(&field(1, &add))
}

/// Of a kind that nobody knows yet.
async fn ask_something_new(agent: &Conversation) -> String {
    answered(agent, field(9, b"new"), Vec::new()).await
}

async fn answered(
    agent: &Conversation,
    request: Vec<u8>,
    fds: Vec<std::os::fd::OwnedFd>,
) -> String {
    let answer = agent.exchange(request, fds).await;
    let answer = zds::WorkloadResponse::decode(&*answer).unwrap();
    match answer.payload.unwrap() {
        zds::workload_response::Payload::Ack(ack) => ack.error,
    }
}

fn served(fixture: &Fixture) -> Vec<String> {
    let all = fixture.roster.list();
    let up = all.iter().filter(|pod| pod.state == "Up");
    let mut names: Vec<_> = up.map(|pod| pod.pod.name.clone()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_later_agent_says_beside_what_is_known_is_passed_over() {
    let place = place();
    let fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    let add = later_add("uid-1", "one");
    assert_eq!(answered(&agent, add, vec![place.fd()]).await, "");
    assert_eq!(served(&fixture), ["one"]);
    let sent = later(&field(3, &later(&[])));
    assert_eq!(answered(&agent, sent, Vec::new()).await, "");
    eventually("ready", || fixture.readiness.missing().is_empty()).await;
    let del = later(&field(2, &later(&field(2, b"uid-1"))));
    assert_eq!(answered(&agent, del, Vec::new()).await, "");
    eventually("it is gone", || fixture.roster.list().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_a_later_kind_is_refused_by_name_and_those_after_it_are_answered() {
    let place = place();
    let fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    assert_eq!(agent.snapshot_sent().await, "");
    for descriptors in [0, 1, 3] {
        let fds = (0..descriptors).map(|_| place.fd()).collect();
        let answer = answered(&agent, field(9, b"new"), fds).await;
        assert!(
            answer.contains("of a kind this version does not know"),
            "{answer}"
        );
    }
    assert_eq!(agent.add("uid-1", "one", place.fd()).await, "");
    eventually("ready", || fixture.readiness.missing().is_empty()).await;
}

/// It may have named the pod in words of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_understood_in_part_takes_no_pod_out_of_service() {
    let (one, two) = (place(), place());
    let fixture = Fixture::new(|_, _| None);
    let agent = fixture.agent.accept().await;
    agent.add("uid-1", "one", one.fd()).await;
    agent.add("uid-2", "two", two.fd()).await;
    assert_eq!(agent.snapshot_sent().await, "");
    drop(agent);

    let later = fixture.agent.accept().await;
    assert_ne!(ask_something_new(&later).await, "");
    assert_eq!(later.snapshot_sent().await, "");
    eventually("ready", || fixture.readiness.missing().is_empty()).await;
    assert_eq!(served(&fixture), ["one", "two"]);
    // What it takes back in words that are known goes.
    assert_eq!(later.del("uid-1").await, "");
    eventually("one is gone", || served(&fixture) == ["two"]).await;
    drop(later);

    // And one that is understood whole is the truth again.
    let earlier = fixture.agent.accept().await;
    let add = Payload::Add(zds::AddWorkload {
        uid: "uid-1".into(),
        workload_info: Some(zds::WorkloadInfo {
            name: "one".into(),
            namespace: "app".into(),
            service_account: "default".into(),
        }),
    });
    assert_eq!(earlier.ask(add, Some(one.fd())).await, "");
    assert_eq!(earlier.snapshot_sent().await, "");
    eventually("two is gone", || served(&fixture) == ["one"]).await;
}
