//! The book, without a control plane: who is asked for, who waits, who makes room.

use std::collections::BTreeSet;

use tokio::time::Instant;

use super::book::{Book, Heard, Seen, Told};
use super::*;

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
    assert_eq!(says(book.see("a", now)), "ask");
    let Seen::Wait(waiting) = book.see("a", now) else {
        panic!("it was asked");
    };
    assert!(book.is_waiting());
    book.hear(heard(&["a"], &["b"]), LATER, now);
    assert_eq!(*waiting.borrow(), Told::There);
    assert_eq!(says(book.see("a", now)), "there");
    assert!(
        !book.is_waiting() && !book.follows("b"),
        "nobody asked for b"
    );
}

#[test]
fn that_there_is_nobody_holds_for_a_while_and_until_somebody_comes() {
    let (mut book, now) = (Book::new(4), Instant::now());
    for name in ["a", "b"] {
        assert_eq!(says(book.see(name, now)), "ask");
    }
    book.hear(heard(&[], &["a", "b"]), LATER, now);
    assert_eq!(says(book.see("a", now + LATER / 2)), "absent");
    assert_eq!(says(book.see("a", now + LATER)), "ask again");
    assert_eq!(says(book.see("a", now + LATER)), "wait");
    book.hear(heard(&["b"], &[]), LATER, now);
    assert_eq!(says(book.see("b", now + LATER * 2)), "there");
    book.doubt("b", now);
    assert_eq!(says(book.see("b", now)), "ask again");
}

#[test]
fn who_was_not_needed_for_longest_makes_room_unless_somebody_waits_for_him() {
    let (mut book, now) = (Book::new(2), Instant::now());
    let Seen::Ask { answer, .. } = book.see("a", now) else {
        panic!("it is new");
    };
    assert_eq!(says(book.see("b", now)), "ask");
    assert_eq!(says(book.see("c", now)), "full", "somebody waits for a");
    drop(answer);
    assert_eq!(says(book.see("c", now)), "ask");
    assert!(!book.follows("a") && book.len() == 2);
    // Needed again, b is not the next to go.
    assert!(book.need("b", now) && !book.need("a", now));
    assert_eq!(says(book.see("d", now)), "ask");
    assert!(book.follows("b") && !book.follows("c"));
    let given_up: BTreeSet<_> = book.take_given_up().into_iter().collect();
    assert_eq!(given_up, ["a", "c"].map(Arc::from).into());
    assert_eq!(says(book.see("c", now)), "ask");
    // The control plane has not been told of it: to ask once more is to ask again.
    assert_eq!(says(book.see("b", now)), "ask again");
}

#[test]
fn what_was_needed_since_is_kept() {
    let (mut book, now) = (Book::new(4), Instant::now());
    let _ = (
        book.see("old", now),
        book.see("kept", now),
        book.see("new", now + LATER),
    );
    book.need("kept", now + LATER);
    book.expire(now + LATER / 2);
    assert!(book.follows("new") && book.follows("kept") && !book.follows("old"));
    assert_eq!(book.take_given_up().len(), 1);
}

#[test]
fn who_is_refused_at_the_door_is_not_nobody() {
    let (mut book, now) = (Book::new(4), Instant::now());
    assert_eq!(says(book.see("a", now)), "ask");
    let mut heard = heard(&["a"], &[]);
    heard.refused(&[Rejected {
        name: "a".into(),
        reason: mesh::ParseError::Missing("uid"),
    }]);
    book.hear(heard, LATER, now);
    assert_eq!(says(book.see("a", now)), "unreadable");
    assert_eq!(says(book.see("a", now + LATER)), "ask again");
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
