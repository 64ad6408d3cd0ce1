//! Our record layer against a stock rustls at the other end, which shares no line with it above the
//! cipher, and against records that no honest peer sends (`records/strict.rs`).
#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

mod common;
#[path = "records/driven.rs"]
mod driven;
#[path = "records/handshakes.rs"]
mod handshakes;
#[path = "records/stock.rs"]
mod stock;
#[path = "records/strict.rs"]
mod strict;

use hbone::records::{
    ContentType, MOST, Opened, Opener, RecordError, Sealer, Secret, Side, State, StateError, Suite,
};
use proptest::prelude::*;

use self::stock::{Heard, Pair, bytes, hear, say};

const WAYS: [(Side, Suite); 4] = [
    (Side::Client, Suite::Aes128Gcm),
    (Side::Client, Suite::Aes256Gcm),
    (Side::Server, Suite::Aes128Gcm),
    (Side::Server, Suite::Aes256Gcm),
];

#[tokio::test]
async fn data_goes_both_ways_in_both_roles_and_with_both_suites() {
    for (side, suite) in WAYS {
        let mut pair = Pair::new(side, suite).await;
        for length in [1, 2, 100, MOST - 1, MOST, MOST + 1, 300_000] {
            let data = bytes(length);
            let wire = say(&mut pair.sealer, &data);
            assert_eq!(pair.stock.hear(&wire).unwrap(), data, "{side:?} {suite:?}");
            let wire = pair.stock.say(&data);
            assert_eq!(pair.hear(&wire).unwrap().data, data, "{side:?} {suite:?}");
        }
    }
}

#[tokio::test]
async fn a_stock_peer_takes_an_empty_record() {
    let mut pair = Pair::new(Side::Server, Suite::Aes256Gcm).await;
    let mut wire = Vec::new();
    let start = pair.sealer.begin(&mut wire);
    pair.sealer
        .finish(&mut wire, start, ContentType::Data)
        .unwrap();
    wire.extend(say(&mut pair.sealer, b"and more"));
    assert_eq!(pair.stock.hear(&wire).unwrap(), b"and more");
}

#[tokio::test]
async fn a_peer_changes_its_key_and_we_follow_and_answer() {
    for (side, suite) in WAYS {
        let mut pair = Pair::new(side, suite).await;
        for round in 1..=3 {
            let mut wire = pair.stock.say(b"under the old key");
            pair.stock.0.refresh_traffic_keys().unwrap();
            wire.extend(pair.stock.say(b", under the new"));
            let heard = pair.hear(&wire).unwrap();
            assert_eq!(heard.data, b"under the old key, under the new");
            assert_eq!(heard.updates, [true], "one update, answer wanted: {round}");

            let mut answer = say(&mut pair.sealer, b"before, ");
            pair.sealer.answer();
            answer.extend(say(&mut pair.sealer, b"after"));
            assert_eq!(answer.len(), 8 + 5 + 2 * 22 + 27, "a key update between");
            assert_eq!(pair.stock.hear(&answer).unwrap(), b"before, after");
        }
    }
}

#[tokio::test]
async fn we_change_our_key_and_the_peer_follows_and_answers() {
    for (side, suite) in WAYS {
        let mut pair = Pair::new(side, suite).await;
        let mut wire = say(&mut pair.sealer, b"old, ");
        pair.sealer.update(&mut wire, true).unwrap();
        wire.extend(say(&mut pair.sealer, b"new"));
        assert_eq!(pair.stock.hear(&wire).unwrap(), b"old, new");
        let answered = pair.stock.say(b"as you wish");
        let heard = pair.hear(&answered).unwrap();
        assert_eq!(heard.data, b"as you wish");
        assert_eq!(heard.updates, [false], "an answer wants no answer");
    }
}

#[tokio::test]
async fn keys_change_by_themselves_at_the_limit() {
    for (side, suite) in WAYS {
        let mut pair = Pair::new(side, suite).await;
        pair.sealer = pair.sealer.renewed_after(3);
        let mut told = Vec::new();
        let mut wire = Vec::new();
        for n in 0..20_u8 {
            wire.extend(say(&mut pair.sealer, &[n]));
            told.push(n);
        }
        // 20 records of one byte and the updates after each third, which are records too.
        assert_eq!(wire.len(), 20 * (1 + 22) + 6 * (5 + 22));
        assert_eq!(pair.stock.hear(&wire).unwrap(), told);
    }
}

#[tokio::test]
async fn many_requests_for_a_key_are_answered_once_and_by_whoever_goes_on() {
    let mut pair = Pair::new(Side::Client, Suite::Aes256Gcm).await;
    (0..1000).for_each(|_| pair.sealer.answer());
    let state = pair.sealer.into_state();
    pair.sealer = Sealer::from_state(state.as_ref()).unwrap();
    let mut wire = say(&mut pair.sealer, b"first, ");
    wire.extend(say(&mut pair.sealer, b"second"));
    assert_eq!(wire.len(), 7 + 6 + 2 * 22 + 27);
    assert_eq!(pair.stock.hear(&wire).unwrap(), b"first, second");
    let wire = pair.stock.say(b"x");
    let heard = pair.hear(&wire).unwrap();
    assert!(heard.updates.is_empty(), "an answer wants none");
}

#[tokio::test]
async fn a_peer_that_does_not_change_its_key_is_asked_once() {
    let mut pair = Pair::new(Side::Server, Suite::Aes128Gcm).await;
    pair.opener = pair.opener.renewed_after(2);
    let mut asked = Vec::new();
    for _ in 0..4 {
        let wire = pair.stock.say(b"x");
        pair.hear(&wire).unwrap();
        asked.push(pair.opener.due());
        // Who goes on with it knows that the peer was asked.
        let state = pair.opener.into_state().unwrap();
        pair.opener = Opener::from_state(state.as_ref()).unwrap();
        pair.opener = pair.opener.renewed_after(2);
    }
    assert_eq!(asked, [false, true, false, false]);
    let mut wire = Vec::new();
    pair.sealer.update(&mut wire, true).unwrap();
    pair.stock.hear(&wire).unwrap();
    let wire = pair.stock.say(b"y");
    assert_eq!(pair.hear(&wire).unwrap().updates, [false]);
    assert!(!pair.opener.due(), "the count begins again");
}

#[tokio::test]
async fn a_clients_tickets_are_handed_on_and_cost_no_data() {
    let mut pair = Pair::new(Side::Client, Suite::Aes256Gcm).await;
    let wire = pair.stock.say(b"data");
    let heard = pair.hear(&wire).unwrap();
    assert_eq!(heard.tickets.len(), 2, "as many as rustls sends");
    assert!(heard.tickets.iter().all(|ticket| ticket.len() > 32));
    assert_eq!(heard.data, b"data");
}

#[tokio::test]
async fn either_side_may_close_in_order() {
    for (side, suite) in WAYS {
        let mut pair = Pair::new(side, suite).await;
        let mut wire = pair.stock.say(b"last");
        pair.stock.0.send_close_notify();
        wire.extend(pair.stock.wire());
        wire.extend(b"whatever stands behind is ignored");
        let heard = pair.hear(&wire).unwrap();
        assert_eq!((heard.data.as_slice(), heard.closed), (&b"last"[..], true));
        assert!(pair.hear(b"still").unwrap().closed);

        // The other direction is open.
        let mut wire = say(&mut pair.sealer, b"my last");
        pair.sealer.close(&mut wire).unwrap();
        assert_eq!(pair.stock.hear(&wire).unwrap(), b"my last");
        assert!(pair.stock.closed());
    }
}

#[tokio::test]
async fn each_side_hears_why_the_other_gives_up() {
    let mut pair = Pair::new(Side::Server, Suite::Aes128Gcm).await;
    let mut wire = say(&mut pair.sealer, b"x");
    let last = wire.len() - 1;
    wire[last] ^= 1;
    pair.stock.hear(&wire).unwrap_err();
    let wire = pair.stock.wire();
    let error = pair.hear(&wire).unwrap_err();
    assert_eq!(error, RecordError::Alert(20));
    assert_eq!(
        error.to_string(),
        "the peer ended the connection: bad record mac"
    );
    assert_eq!(error.alert(), None);

    let mut pair = Pair::new(Side::Server, Suite::Aes128Gcm).await;
    let mut wire = pair.stock.say(b"x");
    wire[7] ^= 1;
    let error = pair.hear(&wire).unwrap_err();
    let mut wire = Vec::new();
    pair.sealer
        .alert(&mut wire, error.alert().unwrap())
        .unwrap();
    assert_eq!(
        pair.stock.hear(&wire).unwrap_err(),
        rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac)
    );
}

#[tokio::test]
async fn a_direction_is_gone_on_with_from_its_state() {
    for (side, suite) in WAYS {
        let mut pair = Pair::new(side, suite).await;
        for round in 0..3 {
            let (sealer, opener) = (pair.sealer.into_state(), pair.opener.into_state().unwrap());
            assert_eq!(sealer.as_ref().len(), 12 + suite.secret_len());
            assert_eq!(opener.as_ref().len(), 12 + suite.secret_len());
            pair.sealer = Sealer::from_state(sealer.as_ref()).unwrap();
            pair.opener = Opener::from_state(opener.as_ref()).unwrap();

            let data = bytes(50_000 + round);
            let mut wire = say(&mut pair.sealer, &data);
            pair.sealer.update(&mut wire, true).unwrap();
            assert_eq!(pair.stock.hear(&wire).unwrap(), data);
            let wire = pair.stock.say(&data);
            assert_eq!(pair.hear(&wire).unwrap().data, data);
        }
    }
}

#[test]
fn a_state_of_another_kind_is_refused() {
    let state = || sealer(Suite::Aes128Gcm).into_state();
    let changed = |at: usize, to: u8| {
        let mut bytes = state().as_ref().to_vec();
        bytes[at] = to;
        bytes
    };
    let refused = |bytes: &[u8]| Sealer::from_state(bytes).unwrap_err();
    assert_eq!(refused(&changed(0, 2)), StateError::Version(2));
    assert_eq!(refused(&changed(1, 2)), StateError::Direction);
    assert_eq!(refused(&changed(1, 9)), StateError::Unknown);
    assert_eq!(refused(&changed(2, 0)), StateError::Unknown);
    assert_eq!(refused(&changed(3, 2)), StateError::Unknown);
    assert_eq!(refused(&changed(2, 2)), StateError::Length);
    for length in 0..state().as_ref().len() {
        assert_eq!(refused(&state().as_ref()[..length]), StateError::Length);
    }
    let mut longer = state().as_ref().to_vec();
    longer.push(0);
    assert_eq!(refused(&longer), StateError::Length);
    assert_eq!(
        Opener::from_state(state().as_ref()).unwrap_err(),
        StateError::Direction
    );
}

#[test]
fn what_holds_secrets_does_not_print_them() {
    let secret = Secret::new(Suite::Aes128Gcm, &[0xab; 32]).unwrap();
    let printed = format!(
        "{secret:?} {:?} {:?} {:?}",
        sealer(Suite::Aes128Gcm),
        opener(Suite::Aes128Gcm),
        sealer(Suite::Aes128Gcm).into_state()
    );
    for told in ["ab", "AB", "171", "7, 7"] {
        assert!(!printed.contains(told), "{told} in {printed}");
    }
}

#[test]
fn a_secret_is_as_long_as_its_suites_hash() {
    let refused = |suite, length| Secret::new(suite, &bytes(length)).unwrap_err();
    assert_eq!(refused(Suite::Aes128Gcm, 48), RecordError::Secret(48));
    assert_eq!(refused(Suite::Aes256Gcm, 32), RecordError::Secret(32));
    assert_eq!(refused(Suite::Aes256Gcm, 0), RecordError::Secret(0));
}

#[test]
fn more_than_a_record_holds_is_refused_and_never_leaves() {
    let mut sealer = sealer(Suite::Aes128Gcm);
    let mut out = b"before".to_vec();
    let start = sealer.begin(&mut out);
    out.extend(bytes(MOST + 1));
    let error = sealer.finish(&mut out, start, ContentType::Data);
    assert_eq!(error, Err(RecordError::Surplus(MOST + 1)));
    assert_eq!(out, b"before");
    let error = sealer.finish(&mut out, 3, ContentType::Data);
    assert_eq!(error, Err(RecordError::Surplus(0)), "never begun");
}

/// A direction whose secret is sevens, at both of its ends.
fn sealer(suite: Suite) -> Sealer {
    Sealer::new(sevens(suite), 0).unwrap()
}

fn opener(suite: Suite) -> Opener {
    Opener::new(Side::Server, sevens(suite), 0).unwrap()
}

fn sevens(suite: Suite) -> Secret {
    Secret::new(suite, &vec![7; suite.secret_len()]).unwrap()
}

#[derive(Debug, Clone)]
enum Act {
    Say(Vec<u8>),
    Update(bool),
    Answer,
    HandOver,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => prop::collection::vec(any::<u8>(), 0..2000).prop_map(Act::Say),
        1 => (MOST - 2..MOST).prop_map(|length| Act::Say(bytes(length))),
        1 => any::<bool>().prop_map(Act::Update),
        1 => Just(Act::Answer),
        1 => Just(Act::HandOver),
    ];
    prop::collection::vec(act, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_chunking_gives_the_same_bytes(
        acts in acts(),
        chunks in prop::collection::vec(1..5000_usize, 1..40),
        limit in 1..6_u64,
        long in any::<bool>(),
    ) {
        let suite = if long { Suite::Aes256Gcm } else { Suite::Aes128Gcm };
        let mut sealer = sealer(suite).renewed_after(limit);
        let (mut wire, mut said) = (Vec::new(), Vec::new());
        for act in acts {
            match act {
                Act::Say(data) => {
                    wire.extend(say(&mut sealer, &data));
                    said.extend(data);
                }
                Act::Update(request) => sealer.update(&mut wire, request).unwrap(),
                Act::Answer => sealer.answer(),
                Act::HandOver => {
                    let state: State = sealer.into_state();
                    sealer = Sealer::from_state(state.as_ref()).unwrap().renewed_after(limit);
                }
            }
        }
        sealer.close(&mut wire).unwrap();
        let mut opener = opener(suite);
        let mut heard = Heard::default();
        let mut unread = Vec::new();
        let mut rest = wire.as_slice();
        for chunk in chunks.iter().cycle() {
            let (now, later) = rest.split_at((*chunk).min(rest.len()));
            rest = later;
            unread.extend_from_slice(now);
            hear(&mut opener, &mut unread, &mut heard).unwrap();
            if heard.closed {
                break;
            }
            // The opener may change hands at any moment as well.
            let state = opener.into_state().unwrap();
            opener = Opener::from_state(state.as_ref()).unwrap();
        }
        prop_assert!(rest.is_empty());
        prop_assert_eq!(heard.data, said);
    }

    #[test]
    fn random_bytes_are_refused_or_waited_for(mut input in prop::collection::vec(any::<u8>(), 0..100)) {
        if let [kind, major, minor, high, ..] = input.as_mut_slice() {
            // Mostly past the first hurdle.
            if *high < 128 {
                (*kind, *major, *minor, *high) = (23, 3, 3, 0);
            }
        }
        let opened = opener(Suite::Aes128Gcm).next(&mut input);
        let harmless = matches!(opened, Err(_) | Ok(Opened::Incomplete { .. }));
        prop_assert!(harmless, "{:?}", opened);
    }

    #[test]
    fn whatever_is_sealed_as_a_message_is_taken_or_refused(
        records in prop::collection::vec(
            (0..8_u8, prop::collection::vec(prop_oneof![
                Just(0_u8), Just(1), Just(4), Just(24), any::<u8>()
            ], 0..12)),
            1..40,
        ),
        client in any::<bool>(),
    ) {
        let side = if client { Side::Client } else { Side::Server };
        let mut sealer = sealer(Suite::Aes128Gcm);
        let mut opener = Opener::new(side, sevens(Suite::Aes128Gcm), 0).unwrap();
        let mut heard = Heard::default();
        let mut said = 0;
        for (kind, content) in records {
            let mut wire = Vec::new();
            let start = sealer.begin(&mut wire);
            wire.extend_from_slice(&content);
            let kind = match kind {
                0..6 => ContentType::Handshake,
                6 => ContentType::Data,
                _ => ContentType::Alert,
            };
            sealer.finish(&mut wire, start, kind).unwrap();
            let before = heard.updates.len();
            if hear(&mut opener, &mut wire, &mut heard).is_err() || heard.closed {
                break;
            }
            prop_assert!(wire.is_empty(), "a whole record is used up");
            if heard.updates.len() > before {
                // The other side of the same change of keys.
                sealer.update(&mut Vec::new(), false).unwrap();
            }
            said += content.len();
        }
        let told: usize = heard.tickets.iter().map(Vec::len).sum::<usize>() + heard.data.len();
        prop_assert!(told <= said, "nothing comes from nowhere");
    }

    #[test]
    fn random_bytes_as_a_state_never_panic(mut input in prop::collection::vec(any::<u8>(), 0..100)) {
        if let [version, direction, suite, ..] = input.as_mut_slice() {
            (*version, *direction, *suite) = (1, *direction % 4, *suite % 3);
        }
        let _ = Sealer::from_state(&input);
        let _ = Opener::from_state(&input);
    }
}
