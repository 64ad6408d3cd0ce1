use super::*;
use crate::tls::{
    fixture::{Clock, HOUR, MINUTE},
    lifetime::LIFETIME,
};

fn place(owner: u64, port: u16) -> Place {
    (owner, SocketAddr::from(([10, 0, 0, 1], port)))
}

fn now(clock: &Clock) -> Moment {
    Moment::now(clock).unwrap()
}

fn good(clock: &Clock) -> Proof {
    Proof {
        proven: now(clock),
        ends: clock.seconds() + 24 * HOUR,
    }
}

fn take(all: &mut Sessions<usize>, place: Place, clock: &Clock) -> Option<usize> {
    all.take(place, now(clock)).map(|(session, _)| session)
}

#[test]
fn a_session_is_given_out_once_to_whose_it_is_the_youngest_first() {
    let (clock, mut all) = (Clock::new(), Sessions::default());
    all.keep(place(1, 1), 11, good(&clock));
    all.keep(place(1, 1), 12, good(&clock));
    all.keep(place(1, 2), 13, good(&clock));
    all.keep(place(2, 1), 14, good(&clock));
    assert_eq!(take(&mut all, place(1, 1), &clock), Some(12));
    assert_eq!(take(&mut all, place(1, 1), &clock), Some(11));
    assert_eq!(take(&mut all, place(1, 1), &clock), None);
    assert_eq!(take(&mut all, place(1, 3), &clock), None);
    assert_eq!(take(&mut all, place(1, 2), &clock), Some(13));
    assert_eq!(take(&mut all, place(2, 1), &clock), Some(14));
    assert!(all.all.is_empty() && all.places.is_empty());
}

#[test]
fn what_no_longer_proves_anything_is_not_given_out_and_what_still_does_is() {
    let (clock, mut all) = (Clock::new(), Sessions::default());
    let at = place(1, 1);
    let ends_soon = Proof {
        ends: clock.seconds() + 10 * MINUTE,
        ..good(&clock)
    };
    all.keep(at, 1, good(&clock));
    all.keep(at, 2, ends_soon);
    clock.forward(10 * MINUTE);
    assert_eq!(
        take(&mut all, at, &clock),
        Some(2),
        "the last second counts"
    );
    all.keep(at, 2, ends_soon);
    clock.forward(1);
    assert_eq!(
        take(&mut all, at, &clock),
        Some(1),
        "a certificate has ended"
    );
    assert!(all.all.is_empty());

    all.keep(at, 3, good(&clock));
    clock.forward(LIFETIME.as_secs());
    assert_eq!(take(&mut all, at, &clock), None, "too long ago");
    all.keep(at, 4, good(&clock));
    clock.back(1);
    assert_eq!(take(&mut all, at, &clock), None, "not yet");
    assert!(all.all.is_empty() && all.places.is_empty());
}

#[test]
fn there_are_never_more_than_there_may_be_and_the_oldest_goes() {
    let (clock, mut all) = (Clock::new(), Sessions::default());
    for number in 0..MOST + 10 {
        let port = u16::try_from(number).unwrap();
        all.keep(place(1, port), number, good(&clock));
        all.keep(place(1, port), number, good(&clock));
        assert!(all.all.len() <= MOST && all.places.len() <= MOST);
    }
    assert_eq!(all.all.len(), MOST);
    assert_eq!(take(&mut all, place(1, 0), &clock), None);
    let last = MOST + 9;
    let at = place(1, u16::try_from(last).unwrap());
    assert_eq!(take(&mut all, at, &clock), Some(last));

    for number in 0..10 {
        all.keep(place(7, 7), number, good(&clock));
    }
    let kept: Vec<_> = std::iter::from_fn(|| take(&mut all, place(7, 7), &clock)).collect();
    assert_eq!(kept, [9, 8, 7, 6]);
}

#[test]
fn a_keeper_takes_its_sessions_with_it() {
    let (clock, mut all) = (Clock::new(), Sessions::default());
    for port in 1..=3 {
        all.keep(place(1, port), 1, good(&clock));
        all.keep(place(2, port), 2, good(&clock));
    }
    all.forget_all_of(1);
    assert_eq!((all.all.len(), all.places.len()), (3, 3));
    assert_eq!(take(&mut all, place(1, 1), &clock), None);
    assert_eq!(take(&mut all, place(2, 1), &clock), Some(2));
}

#[test]
fn a_server_that_failed_is_forgotten_and_no_other() {
    let (clock, mut all) = (Clock::new(), Sessions::default());
    for number in [1, 2] {
        all.keep(place(1, 1), number, good(&clock));
        all.keep(place(1, 2), number, good(&clock));
    }
    all.forget(place(1, 1));
    assert_eq!((all.all.len(), all.places.len()), (2, 1));
    assert_eq!(take(&mut all, place(1, 1), &clock), None);
    assert_eq!(take(&mut all, place(1, 2), &clock), Some(2));
}
