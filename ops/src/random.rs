//! Numbers that need not be secret: draws of a balancer, ids of traces.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher, RandomState};

/// The next of them. One generator a thread (SplitMix64), so that whoever needs one neither takes a lock nor makes a system
/// call for it.
pub fn random() -> u64 {
    thread_local!(static STATE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish()));
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn threads_draw_numbers_of_their_own() {
        let draw = || (0..1000).map(|_| random()).collect::<BTreeSet<_>>();
        let mut all = draw();
        all.extend(std::thread::spawn(draw).join().unwrap());
        assert_eq!(all.len(), 2000);
        let high = all.iter().filter(|&&it| it > u64::MAX / 2).count();
        assert!((800..1200).contains(&high), "{high} of 2000");
    }
}
