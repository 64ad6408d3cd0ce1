//! 1. the first byte says what was frozen, and whether the rest is all of it or changes to something sound
//! 2. it is refused, or read with exactly the descriptors that it names; whatever was read can be looked at and dropped

use std::{fs::File, os::fd::OwnedFd, time::Instant};

use hbone::{
    frames::Mux,
    handover::{Kind, Taken, ThawError, VERSION},
    records::{Opener, Sealer, Side, Suite},
};

use super::{
    frames::{begin, feed},
    records::secret,
};

/// Most that one connection can have: its own and one for each stream.
const DESCRIPTORS: usize = 201;
/// Who is at the other end.
const PEER: &str = "spiffe://cluster.local/ns/a/sa/b";

/// See the file's head.
pub fn handover(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    if first & 1 == 0 {
        let kind = first >> 1;
        let whole = [&[VERSION, kind], rest].concat();
        read(&whole);
        return;
    }
    let mut state = sound(first & 2 == 0);
    let begun = read(&state);
    assert!(begun, "the layout is another than this target believes");
    for change in rest.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % state.len();
        state[at] = change[2];
    }
    read(&state);
}

/// True when it was read.
fn read(state: &[u8]) -> bool {
    let expected = match Taken::read(state.to_vec(), Vec::new()) {
        Ok(_) => unreachable!("everything has descriptors"),
        Err(ThawError::Descriptors { expected, got: 0 }) => expected,
        Err(_) => return false,
    };
    assert!(expected > 0 && expected <= DESCRIPTORS, "{expected}");
    let taken = Taken::read(state.to_vec(), nothings(expected)).expect("all it asked for");
    assert!(taken.tunnels().len() < expected);
    assert_eq!(taken.peer().is_none(), taken.kind() == Kind::Pair);
    assert!(taken.destination().is_none() || taken.kind() == Kind::Dialled);
    true
}

fn nothings(count: usize) -> Vec<OwnedFd> {
    let open = |_| File::open("/dev/null").expect("always there").into();
    (0..count).map(open).collect()
}

/// A connection with three tunnels.
fn sound(client: bool) -> Vec<u8> {
    let (side, kind) = match client {
        true => (Side::Client, 2),
        false => (Side::Server, 1),
    };
    let suite = Suite::Aes128Gcm;
    let sealer = Sealer::new(secret(suite), 0).expect("a key for any secret");
    let opener = Opener::new(side, secret(suite), 0).expect("a key for any secret");
    let opener = opener.into_state().expect("it has not ended");
    let mut state = vec![VERSION, kind];
    for text in [PEER, "X25519", "?"] {
        string(&mut state, text.as_bytes());
    }
    // Not resumed.
    state.push(0);
    shown(&mut state);
    // Not accused of anything.
    state.push(0);
    if client {
        berth(&mut state);
    }
    string(&mut state, sealer.into_state().as_ref());
    string(&mut state, opener.as_ref());
    string(&mut state, &tunnels(client));
    // Nothing read and not opened, nothing sealed and not sent.
    string(&mut state, b"");
    string(&mut state, b"");
    state.extend(3u32.to_be_bytes());
    for stream in [1u32, 3, 5] {
        state.extend(stream.to_be_bytes());
        // Both directions open, copied, neither end has come.
        state.extend([0, 0, 1, 0, 0]);
        state.extend([0; 16]);
        // No failure, and nothing waits.
        state.push(0);
        string(&mut state, b"");
    }
    state
}

/// What the peer has shown: when, a certificate, and a root, which has constraints. Nobody reads them before a list comes.
fn shown(state: &mut Vec<u8>) {
    state.push(1);
    state.extend(1_700_000_000u64.to_be_bytes());
    state.extend(1u32.to_be_bytes());
    string(state, b"a certificate");
    state.extend(1u32.to_be_bytes());
    string(state, b"a name");
    string(state, b"a key");
    state.push(1);
    string(state, b"constraints");
}

/// A place in a pool: the peer's address, ours, who we are, who the peer may be, and until when.
fn berth(state: &mut Vec<u8>) {
    state.push(1);
    let texts = [
        "10.0.0.2:15008",
        "10.0.0.1",
        "spiffe://cluster.local/ns/a/sa/a",
        PEER,
    ];
    state.extend(4u32.to_be_bytes());
    for text in texts {
        string(state, text.as_bytes());
    }
    state.extend(4_000_000_000u64.to_be_bytes());
}

/// HTTP/2 with three streams.
fn tunnels(client: bool) -> Vec<u8> {
    let now = Instant::now();
    let mut asking = begin(true, false, now);
    let mux: Mux = match client {
        true => asking,
        false => {
            let mut asked = begin(false, false, now);
            let said = std::mem::take(asking.out());
            feed(&mut asked, &said, now).expect("our own requests");
            asked
        }
    };
    mux.into_state().expect("it has not ended")
}

fn string(state: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("short");
    state.extend(length.to_be_bytes());
    state.extend(bytes);
}
