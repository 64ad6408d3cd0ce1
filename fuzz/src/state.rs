//! 1. the first byte says what is there: a state as it is, or changes to a sound one and what follows
//! 2. a state is refused, or is written as it was read; whatever follows is taken or refused

use std::time::Instant;

use hbone::frames::Mux;

use super::frames::{begin, feed};

/// See the file's head.
pub fn state(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else {
        return;
    };
    if first & 1 == 0 {
        return read(rest, &[]);
    }
    let now = Instant::now();
    let mut mux = begin(first & 2 == 0, first & 4 == 0, now);
    let (said, rest) = rest.split_at(rest.len() / 2);
    if feed(&mut mux, said, now).is_err() {
        return;
    }
    let Some(mut state) = mux.into_state() else {
        return;
    };
    // Up to 64 changes, each of a byte somewhere.
    let changes = rest.len().min(usize::from(first >> 3) * 6) / 3 * 3;
    let (changes, after) = rest.split_at(changes);
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % state.len();
        state[at] = change[2];
    }
    read(&state, after);
}

fn read(state: &[u8], after: &[u8]) {
    let Ok(mux) = Mux::from_state(state) else {
        return;
    };
    assert_eq!(mux.into_state().as_deref(), Some(state));
    let mut mux = Mux::from_state(state).expect("read before");
    mux.out().clear();
    if feed(&mut mux, after, Instant::now()).is_ok()
        && let Some(state) = mux.into_state()
    {
        Mux::from_state(&state).expect("what was written is read");
    }
}
