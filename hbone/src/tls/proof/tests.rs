use std::cell::Cell;

use rustls::CertificateError;

use super::*;
use crate::tls::fixture::{CLIENT, Ca, Clock, HOUR, MINUTE, SERVER, identity};

/// Counts how often it had to look.
struct Looking<'a> {
    memory: Memory,
    clock: &'a Clock,
    looks: Cell<u32>,
}

impl Looking<'_> {
    fn prove(&self, claim: Claim<'_>) -> u32 {
        let before = self.looks.get();
        let verify = || {
            self.looks.set(before + 1);
            Ok(())
        };
        let proven = self.memory.prove(claim, self.clock.seconds(), verify);
        assert_eq!(Some(proven.unwrap()), identity_of(claim.leaf).ok());
        self.looks.get() - before
    }
}

#[test]
fn only_the_very_same_chain_for_the_same_use_and_roots_is_known() {
    let (ca, clock) = (Ca::new(), Clock::new());
    let soon = clock.system() + Duration::from_secs(HOUR);
    let [a, b, c] = [CLIENT, SERVER, CLIENT].map(|name| ca.badge(&[name], soon).cert[0].clone());
    let (roots, other_roots) = (ca.roots(), Ca::new().roots());
    let both = [b.clone(), c.clone()];
    let swapped = [c.clone(), b.clone()];
    let looking = Looking {
        memory: Memory::default(),
        clock: &clock,
        looks: Cell::new(0),
    };
    let claim = Claim {
        purpose: Purpose::Client,
        roots: &roots,
        leaf: &a,
        intermediates: &both,
    };
    assert_eq!(looking.prove(claim), 1);
    for other in [
        Claim {
            purpose: Purpose::Server,
            ..claim
        },
        Claim {
            roots: &other_roots,
            ..claim
        },
        Claim { leaf: &c, ..claim },
        Claim {
            intermediates: &swapped,
            ..claim
        },
        Claim {
            intermediates: &both[..1],
            ..claim
        },
        Claim {
            intermediates: &[],
            ..claim
        },
    ] {
        assert_eq!(looking.prove(other), 1);
        assert_eq!(looking.prove(other), 0);
    }
    assert_eq!(looking.prove(claim), 0);
}

#[test]
fn roots_are_told_apart_and_the_same_ones_are_the_same() {
    let (ca, other) = (Ca::new(), Ca::new());
    assert_eq!(ca.roots().digest, ca.roots().digest);
    assert_ne!(ca.roots().digest, other.roots().digest);
}

#[test]
fn a_chain_is_looked_at_again_when_time_asks_for_it() {
    let (ca, clock) = (Ca::new(), Clock::new());
    let ends = |minutes| {
        let at = clock.system() + Duration::from_secs(minutes * MINUTE);
        ca.badge(&[CLIENT], at).cert[0].clone()
    };
    let (long, short) = (ends(110), ends(30));
    let roots = ca.roots();
    let looking = Looking {
        memory: Memory::default(),
        clock: &clock,
        looks: Cell::new(0),
    };
    let alone = Claim {
        purpose: Purpose::Server,
        roots: &roots,
        leaf: &long,
        intermediates: &[],
    };
    let middle = [short];
    let with_short = Claim {
        intermediates: &middle,
        ..alone
    };
    assert_eq!((looking.prove(alone), looking.prove(with_short)), (1, 1));
    clock.back(1);
    assert_eq!(looking.prove(alone), 1, "before it was verified");
    clock.forward(1 + 30 * MINUTE);
    assert_eq!((looking.prove(alone), looking.prove(with_short)), (0, 0));
    clock.forward(1);
    assert_eq!(looking.prove(with_short), 1, "one in the chain has ended");
    assert_eq!(looking.prove(alone), 0);
    clock.forward(30 * MINUTE);
    assert_eq!(looking.prove(alone), 1, "an hour later");
}

#[test]
fn a_bad_chain_is_never_remembered() {
    let (ca, clock) = (Ca::new(), Clock::new());
    let leaf = ca.badge(&[CLIENT], clock.system()).cert[0].clone();
    let roots = ca.roots();
    let claim = Claim {
        purpose: Purpose::Client,
        roots: &roots,
        leaf: &leaf,
        intermediates: &[],
    };
    let memory = Memory::default();
    let bad = || rustls::Error::from(CertificateError::BadSignature);
    for _ in 0..2 {
        let refused = memory.prove(claim, clock.seconds(), || Err(bad()));
        assert_eq!(refused, Err(bad()));
    }
    assert_eq!(
        memory.prove(claim, clock.seconds(), || Ok(())),
        Ok(identity(CLIENT))
    );

    let nobody = ca.badge(&[], clock.system()).cert[0].clone();
    let nameless = Claim {
        leaf: &nobody,
        ..claim
    };
    for _ in 0..2 {
        assert!(memory.prove(nameless, clock.seconds(), || Ok(())).is_err());
    }
}

#[test]
fn no_more_is_remembered_than_may_be() {
    let (ca, clock) = (Ca::new(), Clock::new());
    let soon = clock.system() + Duration::from_secs(HOUR);
    let leaf = ca.badge(&[CLIENT], soon).cert[0].clone();
    let (memory, roots) = (Memory::default(), ca.roots());
    // As many names for the same roots as there is room for.
    for number in 0..=MOST as u64 {
        let mut digest = roots.digest;
        digest[..8].copy_from_slice(&number.to_be_bytes());
        let roots = Roots {
            revocations: Arc::default(),
            store: roots.store.clone(),
            digest,
        };
        let claim = Claim {
            purpose: Purpose::Client,
            roots: &roots,
            leaf: &leaf,
            intermediates: &[],
        };
        memory.prove(claim, clock.seconds(), || Ok(())).unwrap();
        assert!(memory.0.lock().unwrap().len() <= MOST);
    }
    assert_eq!(memory.0.lock().unwrap().len(), 1);
}
