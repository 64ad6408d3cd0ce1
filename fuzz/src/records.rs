//! 1. the first byte says who we are and what the rest is
//! 2. either it is what came from the socket, or a state, or contents that a peer with the right key
//!    sealed: (kind, length, that many bytes), again and again
//! 3. what is opened is what was sealed, in order

use hbone::records::{ContentType, Opened, Opener, Sealer, Secret, Side, Suite};

/// See the file's head.
pub fn records(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    let side = if first & 1 == 0 {
        Side::Client
    } else {
        Side::Server
    };
    let suite = if first & 2 == 0 {
        Suite::Aes128Gcm
    } else {
        Suite::Aes256Gcm
    };
    match first >> 2 & 3 {
        0 => raw(side, suite, rest),
        1 => from_state(rest),
        _ => sealed(side, suite, rest),
    }
}

pub(crate) fn secret(suite: Suite) -> Secret {
    Secret::new(suite, &vec![7; suite.secret_len()]).expect("the suite's length")
}

fn opener(side: Side, suite: Suite) -> Opener {
    Opener::new(side, secret(suite), 0).expect("a key for any secret")
}

/// Nobody without the key gets anything opened.
fn raw(side: Side, suite: Suite, rest: &[u8]) {
    let mut input = rest.to_vec();
    let mut opener = opener(side, suite);
    let opened = opener.next(&mut input);
    let refused = matches!(opened, Err(_) | Ok(Opened::Incomplete { .. }));
    assert!(refused, "{opened:?}");
    if opened.is_err() {
        assert_eq!(opener.next(&mut []), opened, "and for good");
    }
}

/// Refused, or one way to be written.
fn from_state(rest: &[u8]) {
    if let Ok(sealer) = Sealer::from_state(rest) {
        assert_eq!(sealer.into_state().as_ref(), rest);
    }
    if let Ok(opener) = Opener::from_state(rest) {
        let state = opener.into_state().expect("it has not ended");
        assert_eq!(state.as_ref(), rest);
    }
}

fn sealed(side: Side, suite: Suite, mut rest: &[u8]) {
    let mut sealer = Sealer::new(secret(suite), 0).expect("a key for any secret");
    let mut opener = opener(side, suite);
    while let Some((&[kind, length], behind)) = rest.split_first_chunk() {
        let (content, behind) = behind.split_at(behind.len().min(length.into()));
        rest = behind;
        let kind = match kind % 8 {
            0..4 => ContentType::Handshake,
            4..7 => ContentType::Data,
            _ => ContentType::Alert,
        };
        let mut wire = Vec::new();
        let start = sealer.begin(&mut wire);
        wire.extend_from_slice(content);
        sealer.finish(&mut wire, start, kind).expect("it fits");
        let whole = wire.len();
        match opener.next(&mut wire) {
            Err(error) => return assert_eq!(opener.next(&mut []), Err(error), "for good"),
            Ok(Opened::Closed) => return,
            Ok(Opened::Incomplete { .. }) => unreachable!("a whole record"),
            Ok(Opened::Data { used, plain }) => {
                assert_eq!((used, &wire[plain]), (whole, content));
                assert_eq!(kind, ContentType::Data);
            }
            Ok(Opened::Update { used, .. }) => {
                assert_eq!(used, whole);
                // The other side of the same change of keys.
                sealer.update(&mut Vec::new(), false).expect("a next key");
            }
            Ok(Opened::Ticket { used, tickets }) => {
                assert_eq!((used, side), (whole, Side::Client));
                assert!(!tickets.is_empty());
            }
            Ok(Opened::Nothing { used }) => assert_eq!(used, whole),
        }
        let state = opener.into_state().expect("it has not ended");
        opener = Opener::from_state(state.as_ref()).expect("what was written is read");
    }
}
