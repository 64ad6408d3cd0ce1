//! The book, without a control plane: who is asked for, who waits, who makes room.

use std::collections::BTreeSet;

use clap::Parser as _;
use hbone::{
    Certificates, CertificatesConfig, Identity, Limits, Pool, PoolConfig, SignError, Signer,
};
use tokio::time::Instant;

use super::book::{Book, For, Heard, Seen, Told};
use super::*;
use crate::workers::Workers;

fn heard(set: &[&str], absent: &[&str]) -> Heard {
    let mut update = Update::default();
    for name in set {
        update.set_workload(api::workload::Workload {
            uid: (*name).to_owned(),
            ..Default::default()
        });
    }
    update.addresses.removed = absent.iter().map(|name| Arc::from(*name)).collect();
    let mut heard = Heard::default();
    heard.note(&update);
    heard
}

fn says(seen: Seen) -> &'static str {
    match seen {
        Seen::Known(Told::There) => "there",
        Seen::Known(Told::Absent(_)) => "absent",
        Seen::Known(Told::Unreadable(_)) => "unreadable",
        Seen::Known(Told::Waiting) => "waiting",
        Seen::Wait(_) => "wait",
        Seen::Ask { again: false, .. } => "ask",
        Seen::Ask { again: true, .. } => "ask again",
        Seen::Full => "full",
    }
}

const LATER: Duration = Duration::from_secs(10);

#[test]
fn a_name_is_asked_for_once_and_an_answer_holds_for_all_who_wait() {
    let (mut book, now) = (Book::new(4), Instant::now());
    assert_eq!(says(book.see("a", For::Connection, now)), "ask");
    let Seen::Wait(waiting) = book.see("a", For::Connection, now) else {
        panic!("it was asked");
    };
    assert!(book.is_waiting());
    book.hear(heard(&["a"], &["b"]), LATER, now);
    assert_eq!(*waiting.borrow(), Told::There);
    assert_eq!(says(book.see("a", For::Connection, now)), "there");
    assert!(
        !book.is_waiting() && !book.follows("b"),
        "nobody asked for b"
    );
}

#[test]
fn that_there_is_nobody_holds_for_a_while_and_until_somebody_comes() {
    let (mut book, now) = (Book::new(4), Instant::now());
    for name in ["a", "b"] {
        assert_eq!(says(book.see(name, For::Connection, now)), "ask");
    }
    book.hear(heard(&[], &["a", "b"]), LATER, now);
    assert_eq!(
        says(book.see("a", For::Connection, now + LATER / 2)),
        "absent"
    );
    assert_eq!(
        says(book.see("a", For::Connection, now + LATER)),
        "ask again"
    );
    assert_eq!(says(book.see("a", For::Connection, now + LATER)), "wait");
    book.hear(heard(&["b"], &[]), LATER, now);
    assert_eq!(
        says(book.see("b", For::Connection, now + LATER * 2)),
        "there"
    );
    book.doubt("b", now);
    assert_eq!(says(book.see("b", For::Connection, now)), "ask again");
}

#[test]
fn who_was_not_needed_for_longest_makes_room_unless_somebody_waits_for_him() {
    let (mut book, now) = (Book::new(2), Instant::now());
    let Seen::Ask { answer, .. } = book.see("a", For::Connection, now) else {
        panic!("it is new");
    };
    assert_eq!(says(book.see("b", For::Connection, now)), "ask");
    assert_eq!(
        says(book.see("c", For::Connection, now)),
        "full",
        "somebody waits for a"
    );
    drop(answer);
    assert_eq!(says(book.see("c", For::Connection, now)), "ask");
    assert!(!book.follows("a") && book.len() == 2);
    // Needed again, b is not the next to go.
    assert!(book.need("b", now) && !book.need("a", now));
    assert_eq!(says(book.see("d", For::Connection, now)), "ask");
    assert!(book.follows("b") && !book.follows("c"));
    let given_up: BTreeSet<_> = book.take_given_up().into_iter().collect();
    assert_eq!(given_up, ["a", "c"].map(Arc::from).into());
    assert_eq!(says(book.see("c", For::Connection, now)), "ask");
    // The control plane has not been told of it: to ask once more is to ask again.
    assert_eq!(says(book.see("b", For::Connection, now)), "ask again");
}

#[test]
fn questions_have_room_of_their_own_and_push_out_nobody_whom_a_connection_needs() {
    let (mut book, now) = (Book::new(4), Instant::now());
    let needed = ["a", "b", "c", "d"];
    for name in needed {
        assert_eq!(says(book.see(name, For::Connection, now)), "ask");
    }
    for name in ["x", "y"] {
        assert_eq!(says(book.see(name, For::Question, now)), "ask");
    }
    assert!(needed.into_iter().all(|name| book.follows(name)));
    assert!(!book.follows("x") && book.follows("y"));
    // A connection goes to what a question was about: from then on it counts among the others.
    assert_eq!(says(book.see("y", For::Connection, now)), "wait");
    assert!(!book.follows("a") && book.follows("y"));
    assert_eq!(says(book.see("z", For::Question, now)), "ask");
    assert!(book.follows("y") && book.follows("z"));
    book.expire(now + LATER);
    assert_eq!(book.len(), 0);
}

#[tokio::test]
async fn questions_wait_no_more_for_a_control_plane_that_left_one_unanswered_until_it_says_something()
 {
    let terms = Terms {
        wait: Duration::from_millis(1),
        unused: LATER,
        most: 16,
    };
    let on_demand = OnDemand::new(terms);
    let snapshot = Snapshot::default();
    let hosts = |host: &str| vec![NamespacedHost::new(ANY_NAMESPACE, host)];
    let nobody = on_demand.unsettled(&snapshot, hosts("a.example"));
    assert!(nobody.is_empty(), "there is nobody to be asked");
    on_demand.connected(true);
    let asked = on_demand.unsettled(&snapshot, hosts("a.example"));
    assert_eq!(asked, hosts("a.example"));
    assert_eq!(on_demand.patience(), terms.wait);
    assert!(!on_demand.settle(&asked).await);
    assert_eq!(on_demand.patience(), Duration::ZERO);
    // It is asked all the same.
    assert!(!on_demand.settle(&hosts("b.example")).await);
    let mut demanded = on_demand.demands().unwrap();
    for name in ["*/a.example", "*/b.example"] {
        assert_eq!(demanded.recv().await, Some(Demand::Want(name.into())));
    }
    on_demand.apply(Update::default());
    assert_eq!(on_demand.patience(), terms.wait);
}

/// What stands in the first request of a stream is told only of whoever is not held yet.
#[tokio::test]
async fn who_is_waited_for_is_asked_for_once_more_on_a_new_stream_and_who_is_known_is_not() {
    let terms = Terms {
        wait: Duration::from_millis(1),
        unused: LATER,
        most: 16,
    };
    let on_demand = OnDemand::new(terms);
    let mut demanded = on_demand.demands().unwrap();
    on_demand.connected(true);
    for name in ["known", "waited for"] {
        let silent = on_demand.ask(name).await;
        assert!(matches!(silent, Err(NotTold::Silent(..))), "{silent:?}");
        assert_eq!(demanded.try_recv(), Ok(Demand::Want(name.into())));
    }
    lock(&on_demand.book).hear(heard(&["known"], &[]), LATER, Instant::now());
    on_demand.connected(false);
    assert!(demanded.try_recv().is_err());
    on_demand.connected(true);
    assert_eq!(demanded.try_recv(), Ok(Demand::Want("waited for".into())));
    assert!(demanded.try_recv().is_err());
}

struct Nobody;

impl Signer for Nobody {
    async fn sign(&self, _: &Identity, _: String) -> Result<Vec<String>, SignError> {
        Err(SignError::Unavailable("this is a test".into()))
    }
}

fn node() -> Arc<Node> {
    let certificates = Certificates::new(Nobody, CertificatesConfig::default());
    let pool = Pool::new(certificates.clone(), PoolConfig::default());
    let config = Config::try_parse_from(["ztunnel"]).unwrap();
    let (mesh, _writer) = mesh::Mesh::new();
    Node::new(
        mesh,
        certificates,
        Workers::here(pool),
        Limits::default(),
        Arc::new(config),
    )
}

/// Else whoever calls him would wait for an answer that never comes, as long as the stream lives.
#[tokio::test]
async fn who_is_waited_for_is_asked_for_once_more_also_where_the_outage_left_no_room_for_it() {
    let terms = Terms {
        wait: Duration::from_millis(1),
        unused: LATER,
        most: 2 * UNSENT,
    };
    let on_demand = OnDemand::new(terms);
    let mut demanded = on_demand.demands().unwrap();
    tokio::spawn(on_demand.clone().tend(node()));
    on_demand.connected(true);
    let silent = on_demand.ask("taken along").await;
    assert!(matches!(silent, Err(NotTold::Silent(..))), "{silent:?}");
    let taken = demanded.try_recv();
    assert_eq!(taken, Ok(Demand::Want("taken along".into())));
    on_demand.connected(false);
    for number in 0..UNSENT {
        let silent = on_demand.ask(&number.to_string()).await;
        assert!(matches!(silent, Err(NotTold::Silent(..))), "{silent:?}");
    }
    on_demand.connected(true);
    let again = Demand::Want("taken along".into());
    let asked_again = async {
        loop {
            let asked = demanded.recv().await.expect("nobody asks any more");
            if asked == again {
                return;
            }
        }
    };
    let asked_again = tokio::time::timeout(Duration::from_secs(60), asked_again).await;
    asked_again.expect("it is never asked for again");
}

#[test]
fn what_was_needed_since_is_kept() {
    let (mut book, now) = (Book::new(4), Instant::now());
    let _ = (
        book.see("old", For::Connection, now),
        book.see("kept", For::Connection, now),
        book.see("new", For::Connection, now + LATER),
    );
    book.need("kept", now + LATER);
    book.expire(now + LATER / 2);
    assert!(book.follows("new") && book.follows("kept") && !book.follows("old"));
    assert_eq!(book.take_given_up().len(), 1);
}

#[test]
fn who_is_refused_at_the_door_is_not_nobody() {
    let (mut book, now) = (Book::new(4), Instant::now());
    assert_eq!(says(book.see("a", For::Connection, now)), "ask");
    let mut heard = heard(&["a"], &[]);
    heard.refused(&[Rejected {
        name: "a".into(),
        reason: mesh::ParseError::Missing("uid"),
    }]);
    book.hear(heard, LATER, now);
    assert_eq!(says(book.see("a", For::Connection, now)), "unreadable");
    assert_eq!(
        says(book.see("a", For::Connection, now + LATER)),
        "ask again"
    );
}

#[tokio::test]
async fn beyond_what_the_stream_takes_the_newest_is_refused() {
    let terms = Terms {
        wait: Duration::from_millis(1),
        unused: LATER,
        most: 2 * UNSENT,
    };
    let on_demand = OnDemand::new(terms);
    for number in 0..UNSENT {
        let silent = on_demand.ask(&number.to_string()).await;
        assert!(matches!(silent, Err(NotTold::Silent(..))), "{silent:?}");
    }
    let refused = on_demand.ask("one more").await.unwrap_err();
    assert_eq!(refused, NotTold::TooMuch("one more".into()));
    let mut demanded = on_demand.demands().unwrap();
    assert_eq!(demanded.recv().await, Some(Demand::Want("0".into())));
    let silent = on_demand.ask("one more").await;
    assert!(
        matches!(silent, Err(NotTold::Silent(..))),
        "there is room: {silent:?}"
    );
}
