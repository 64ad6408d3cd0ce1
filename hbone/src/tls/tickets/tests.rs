use std::sync::Arc;

use proptest::prelude::*;
use rustls::sign::CertifiedKey;

use super::*;
use crate::tls::{
    fixture::{CLIENT, Ca, Clock, HOUR, MINUTE},
    lifetime::LIFETIME,
};

/// A session as rustls writes it down.
fn session(chain: &[&[u8]]) -> Vec<u8> {
    let mut certificates = Vec::new();
    for certificate in chain {
        certificates.extend_from_slice(&certificate.len().to_be_bytes()[5..]);
        certificates.extend_from_slice(certificate);
    }
    let length = certificates.len().to_be_bytes();
    let secret = [&[48][..], &[7; 48]].concat();
    [
        &[0, 3, 4, 0x13, 2][..],
        &secret,
        &[0, 1],
        &length[5..],
        &certificates,
        b"\x01\x02h2\0\0",
        &[1; 12],
    ]
    .concat()
}

/// A server whose own chain lasts a day, and the session of a client whose certificate lasts `hours`.
fn server(hours: u64) -> (Arc<Clock>, Arc<Tickets>, Vec<u8>) {
    let (ca, clock) = (Ca::new(), Clock::new());
    let soon = clock.system() + std::time::Duration::from_secs(hours * HOUR);
    let badge: Arc<CertifiedKey> = ca.badge_since(&[CLIENT], clock.system(), soon);
    let ends = clock.seconds() + 24 * HOUR;
    let tickets = Tickets::new(ca.verifier(), ends, clock.clone()).unwrap();
    (clock, tickets, session(&[&badge.cert[0]]))
}

#[test]
fn what_was_sealed_is_opened_on_any_connection_of_the_same_certificate_and_nowhere_else() {
    let (clock, tickets, session) = server(8);
    let ticket = tickets.of_connection().encrypt(&session).unwrap();
    for _ in 0..3 {
        let opened = tickets.of_connection().decrypt(&ticket);
        assert_eq!(opened.as_ref(), Some(&session));
    }
    // The same certificate authority, clock and time: only the key is another.
    let other = Tickets::new(tickets.verifier.clone(), tickets.ends, clock).unwrap();
    assert_eq!(other.of_connection().decrypt(&ticket), None);
    for at in (0..ticket.len()).step_by(7) {
        let mut altered = ticket.clone();
        altered[at] ^= 1;
        assert_eq!(tickets.of_connection().decrypt(&altered), None, "{at}");
    }
    assert_eq!(tickets.of_connection().decrypt(&ticket[1..]), None);
    assert_eq!(tickets.of_connection().decrypt(b""), None);
}

#[test]
fn a_ticket_is_as_old_as_the_certificates_were_shown() {
    let (clock, tickets, session) = server(8);
    let first = tickets.of_connection();
    assert_eq!(u64::from(first.lifetime()), LIFETIME.as_secs());
    let ticket = first.encrypt(&session).unwrap();
    clock.forward(40 * MINUTE);
    let second = tickets.of_connection();
    assert!(second.decrypt(&ticket).is_some());
    assert_eq!(u64::from(second.lifetime()), 20 * MINUTE);
    let ticket = second.encrypt(&session).unwrap();
    clock.forward(19 * MINUTE);
    assert!(tickets.of_connection().decrypt(&ticket).is_some());
    clock.forward(MINUTE);
    let third = tickets.of_connection();
    assert!(third.decrypt(&ticket).is_none(), "an hour after the first");
    assert_eq!(
        u64::from(third.lifetime()),
        LIFETIME.as_secs(),
        "a handshake of its own"
    );
    assert!(second.encrypt(&session).is_none(), "nothing is left of it");
    assert_eq!(second.lifetime(), 0);
}

#[test]
fn of_several_tickets_the_oldest_counts() {
    let (clock, tickets, session) = server(8);
    let old = tickets.of_connection().encrypt(&session).unwrap();
    clock.forward(30 * MINUTE);
    let young = tickets.of_connection().encrypt(&session).unwrap();
    for pair in [[&old, &young], [&young, &old]] {
        let connection = tickets.of_connection();
        for ticket in pair {
            assert!(connection.decrypt(ticket).is_some());
        }
        assert_eq!(u64::from(connection.lifetime()), 30 * MINUTE);
    }
}

#[test]
fn a_client_is_judged_as_in_a_full_handshake() {
    let (clock, tickets, session) = server(0);
    let ticket = tickets.of_connection().encrypt(&session).unwrap();
    assert!(tickets.of_connection().decrypt(&ticket).is_some());
    clock.forward(1);
    assert!(tickets.of_connection().decrypt(&ticket).is_none(), "ended");
    clock.back(2);
    assert!(
        tickets.of_connection().decrypt(&ticket).is_none(),
        "not yet"
    );

    // Somebody whom this server does not trust.
    let (_, _, stranger) = server(8);
    let ticket = tickets.of_connection().encrypt(&stranger).unwrap();
    assert!(tickets.of_connection().decrypt(&ticket).is_none());
}

#[test]
fn when_our_own_chain_ends_so_do_its_tickets() {
    let (clock, tickets, session) = server(48);
    clock.forward(24 * HOUR - 10 * MINUTE);
    assert_eq!(u64::from(tickets.of_connection().lifetime()), 10 * MINUTE);
    let ticket = tickets.of_connection().encrypt(&session).unwrap();
    clock.forward(10 * MINUTE);
    assert!(tickets.of_connection().decrypt(&ticket).is_some());
    clock.forward(1);
    assert!(tickets.of_connection().decrypt(&ticket).is_none());
}

#[test]
fn a_handshake_has_few_tickets_looked_at() {
    let (_, tickets, session) = server(8);
    let ticket = tickets.of_connection().encrypt(&session).unwrap();
    let connection = tickets.of_connection();
    for _ in 0..LOOKED_AT {
        assert!(connection.decrypt(b"nonsense").is_none());
    }
    assert!(connection.decrypt(&ticket).is_none());
}

#[test]
fn a_session_that_is_not_one_of_ours_makes_no_ticket() {
    let (_, tickets, session) = server(8);
    let sealed = |session: &[u8]| tickets.of_connection().encrypt(session);
    assert!(sealed(&session).is_some());
    for (at, byte, what) in [
        (0, 1, "a server name"),
        (2, 3, "TLS 1.2"),
        (54, 1, "extended master secret"),
        (55, 0, "no chain"),
    ] {
        let mut other = session.clone();
        other[at] = byte;
        assert!(sealed(&other).is_none(), "{what}");
    }
    assert!(sealed(&tests::session(&[])).is_none(), "empty chain");
    assert!(sealed(&[&session[..], b"x"].concat()).is_none(), "more");
    for length in 0..session.len() {
        assert!(client_chain(&session[..length]).is_none(), "{length}");
    }
}

#[test]
fn a_chain_is_read_whole_and_in_order() {
    let (leaf, middle) = ([1; 300], [2; 5]);
    let session = session(&[&leaf, &middle]);
    let chain = client_chain(&session).unwrap();
    assert_eq!(chain, [leaf[..].into(), middle[..].into()]);
}

proptest! {
    #[test]
    fn whatever_is_read_as_a_session_is_read_without_harm(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        at in 0..100_usize,
        byte in any::<u8>(),
    ) {
        let _ = client_chain(&bytes);
        let mut session = session(&[&[1; 20], &[2; 20]]);
        let end = session.len();
        session[at.min(end - 1)] = byte;
        let _ = client_chain(&session);
    }
}
