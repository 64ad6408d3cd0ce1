//! Sessions to go on with at servers: the client's side of resumption.
//!
//! A server's ticket enters with what was proven when it came ([`Attempt::insert_tls13_ticket`]); it leaves
//! once, for a handshake of the same [`Keeper`] (one certificate of ours, its roots, one set of expected
//! identities) with the same address, as long as a full handshake would be as good: the certificates were
//! shown within [`LIFETIME`](super::lifetime::LIFETIME), and both sides' are still valid.
//!
//! All sessions of the process share one bounded place ([`MOST`]); the oldest makes room.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    NamedGroup,
    client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
    pki_types::ServerName,
    time_provider::TimeProvider,
};

use super::lifetime::Moment;

/// Sessions kept in this process. One takes about 2 KiB: a ticket, the server's chain, a secret.
const MOST: usize = 4096;
/// Sessions kept for one server: each is used once, and a busy pair has several connections.
const MOST_EACH: usize = 4;

/// Whose sessions: those of one client configuration. They end with it.
#[derive(Debug)]
pub(super) struct Keeper(u64);

impl Keeper {
    pub(super) fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed))
    }

    /// For one handshake with the server at `address`.
    pub(super) fn attempt(&self, address: SocketAddr, clock: Arc<dyn TimeProvider>) -> Attempt {
        Attempt {
            place: (self.0, address),
            clock,
            state: Mutex::default(),
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        sessions().forget_all_of(self.0);
    }
}

/// What stands behind a session.
#[derive(Debug, Clone, Copy)]
struct Proof {
    /// When certificates were shown.
    proven: Moment,
    /// When the first of them ends, in seconds since 1970.
    ends: u64,
}

impl Proof {
    fn holds(&self, now: Moment) -> bool {
        now.left(self.proven).is_some() && now.wall <= self.ends
    }
}

/// The sessions of one handshake and its connection, as rustls asks for them.
pub(super) struct Attempt {
    place: Place,
    clock: Arc<dyn TimeProvider>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of the session that was offered.
    offered: Option<Proof>,
    /// Of this connection; what comes before it is known is not kept.
    established: Option<Proof>,
}

impl Attempt {
    /// The handshake is done; `ends` is when the first of both sides' certificates ends. Tickets are
    /// kept from here on, and are as old as what this connection came from.
    pub(super) fn established(&self, resumed: bool, ends: u64) {
        let mut state = self.state();
        state.established = if resumed {
            state.offered.map(|offered| Proof {
                ends: offered.ends.min(ends),
                ..offered
            })
        } else {
            self.now().map(|proven| Proof { proven, ends })
        };
    }

    /// The handshake failed: whatever the reason, the next one is a full one.
    pub(super) fn failed(&self) {
        sessions().forget(self.place);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Option<Moment> {
        Moment::now(&*self.clock)
    }
}

// The server's name is the same for all, and is not looked at.
impl ClientSessionStore for Attempt {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    /// A server never makes us begin with less than what we like best.
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, session: Tls13ClientSessionValue) {
        if let Some(proof) = self.state().established {
            sessions().keep(self.place, session, proof);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let (session, proof) = sessions().take(self.place, self.now()?)?;
        self.state().offered = Some(proof);
        Some(session)
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Attempt").field(&self.place.1).finish()
    }
}

/// A keeper and a server.
type Place = (u64, SocketAddr);

/// All sessions of the process.
fn sessions() -> MutexGuard<'static, Sessions<Tls13ClientSessionValue>> {
    static SESSIONS: LazyLock<Mutex<Sessions<Tls13ClientSessionValue>>> =
        LazyLock::new(Mutex::default);
    SESSIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Sessions<S> {
    /// By age.
    all: BTreeMap<u64, (Place, S, Proof)>,
    /// The numbers of those in a place, oldest first.
    places: HashMap<Place, Vec<u64>>,
    next: u64,
}

impl<S> Default for Sessions<S> {
    fn default() -> Self {
        Self {
            all: BTreeMap::new(),
            places: HashMap::new(),
            next: 0,
        }
    }
}

impl<S> Sessions<S> {
    fn keep(&mut self, place: Place, session: S, proof: Proof) {
        if self
            .places
            .get(&place)
            .is_some_and(|it| it.len() >= MOST_EACH)
        {
            self.drop_oldest_of(place);
        } else if self.all.len() >= MOST
            && let Some((_, (oldest, ..))) = self.all.first_key_value()
        {
            self.drop_oldest_of(*oldest);
        }
        self.all.insert(self.next, (place, session, proof));
        self.places.entry(place).or_default().push(self.next);
        self.next += 1;
    }

    /// The youngest that is still good; younger ones that are not are dropped.
    fn take(&mut self, place: Place, now: Moment) -> Option<(S, Proof)> {
        let numbers = self.places.get_mut(&place)?;
        let mut good = None;
        while good.is_none()
            && let Some(number) = numbers.pop()
        {
            let taken = self.all.remove(&number);
            good = taken.filter(|(_, _, proof)| proof.holds(now));
        }
        if numbers.is_empty() {
            self.places.remove(&place);
        }
        good.map(|(_, session, proof)| (session, proof))
    }

    fn forget(&mut self, place: Place) {
        for number in self.places.remove(&place).unwrap_or_default() {
            self.all.remove(&number);
        }
    }

    fn forget_all_of(&mut self, keeper: u64) {
        self.places.retain(|place, _| place.0 != keeper);
        self.all.retain(|_, (place, ..)| place.0 != keeper);
    }

    fn drop_oldest_of(&mut self, place: Place) {
        if let Some(numbers) = self.places.get_mut(&place)
            && !numbers.is_empty()
        {
            self.all.remove(&numbers.remove(0));
            if numbers.is_empty() {
                self.places.remove(&place);
            }
        }
    }
}

#[cfg(test)]
mod tests;
