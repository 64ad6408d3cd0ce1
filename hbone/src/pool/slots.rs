//! Which connection a tunnel uses: one that is there, one that somebody makes already, or one that it makes.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use tokio::sync::watch;

use super::{Destination, Dial, Pool};
use crate::{
    client::{Link, OpenError},
    engine::Lease,
};

/// All connections of one key.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) links: Vec<Arc<Link>>,
    pub(super) flights: Vec<Flight>,
}

/// A connection being made, and how many wait for it. `None` while it is under way.
pub(super) struct Flight {
    outcome: watch::Receiver<Option<Result<(), OpenError>>>,
    waiting: usize,
}

/// What to do for one tunnel now.
enum Turn {
    Use(Arc<Link>, Lease),
    Wait(watch::Receiver<Option<Result<(), OpenError>>>),
    Make(
        Arc<Destination>,
        watch::Sender<Option<Result<(), OpenError>>>,
    ),
}

impl Pool {
    /// A connection to use and a place on it.
    pub(super) async fn link(
        &self,
        destination: &Destination,
        dial: &impl Dial,
    ) -> Result<(Arc<Link>, Lease), OpenError> {
        loop {
            match self.turn(destination) {
                Turn::Use(link, lease) => return Ok((link, lease)),
                Turn::Wait(mut outcome) => {
                    let landed = outcome.wait_for(Option::is_some).await;
                    if let Ok(Some(Err(error))) = landed.as_deref() {
                        return Err(error.clone());
                    } // else it is there; or whoever made it gave up, then somebody else does
                }
                Turn::Make(key, outcome) => {
                    let flight = InFlight {
                        pool: self,
                        key,
                        outcome,
                    };
                    return flight.land(Box::pin(self.make(&flight.key, dial)).await);
                }
            }
        }
    }

    fn turn(&self, destination: &Destination) -> Turn {
        let mut slots = self.lock();
        let revocations = self.certificates.revocations();
        if self.revocations.swap(revocations, Ordering::Relaxed) != revocations {
            let links = slots.values_mut().flat_map(|slot| slot.links.drain(..));
            links.for_each(|link| link.close());
            slots.retain(|_, slot| !slot.flights.is_empty());
        }
        let most = self.config.streams;
        if let Some(slot) = slots.get_mut(destination) {
            if let Some((link, lease)) = slot.place(most) {
                return Turn::Use(link, lease);
            }
            if let Some(flight) = slot
                .flights
                .iter_mut()
                .find(|f| f.waiting < most && f.outcome.has_changed().is_ok())
            {
                flight.waiting += 1;
                return Turn::Wait(flight.outcome.clone());
            }
        }
        let (sender, outcome) = watch::channel(None);
        let key = key_of(&slots, destination);
        slots.entry(key.clone()).or_default().flights.push(Flight {
            outcome,
            waiting: 1,
        });
        Turn::Make(key, sender)
    }
}

/// One copy of a key for all who hold it.
pub(super) fn key_of(
    slots: &HashMap<Arc<Destination>, Slot>,
    destination: &Destination,
) -> Arc<Destination> {
    let known = slots.get_key_value(destination);
    known.map_or_else(|| Arc::new(destination.clone()), |(key, _)| key.clone())
}

impl Slot {
    /// A place on the least busy connection that is fit for one more stream. Beyond [`SPREAD`]
    /// connections a stalled one will do: then the destination as a whole does not keep up.
    fn place(&self, most: usize) -> Option<(Arc<Link>, Lease)> {
        // Their tunnels go on, and they end with the last of these.
        let expired = self.links.iter().filter(|link| link.expired());
        expired.for_each(|link| link.close());
        let open = self
            .links
            .iter()
            .filter(|link| !link.going_away() && link.streams() < most);
        let least = |link: &&Arc<Link>| link.streams();
        let lease = |link: &Arc<Link>| Some((link.clone(), link.lease(most)?));
        let fit = open.clone().filter(|link| !link.stalled());
        if let Some(link) = fit.clone().min_by_key(least) {
            // Its peer may allow less than the others': then the next busy one.
            return lease(link).or_else(|| {
                let mut others: Vec<_> = fit.collect();
                others.sort_by_key(least);
                others.into_iter().find_map(lease)
            });
        }
        let all = open.filter(|_| self.links.len() >= SPREAD);
        all.min_by_key(least).and_then(lease)
    }
}

/// A connection being made by this task; if the task is cancelled, those who wait are told to look again.
struct InFlight<'a> {
    pool: &'a Pool,
    key: Arc<Destination>,
    outcome: watch::Sender<Option<Result<(), OpenError>>>,
}

impl InFlight<'_> {
    /// Publishes the outcome; the one who made the connection has the first place on it. If its source
    /// was closed meanwhile the connection is the maker's alone and ends with its tunnel.
    fn land(&self, made: Result<Link, OpenError>) -> Result<(Arc<Link>, Lease), OpenError> {
        let landed = made.and_then(|link| {
            let lease = link.lease(self.pool.config.streams);
            let none = || OpenError::ConnectionLost("it allows no streams".into());
            let lease = lease.ok_or_else(|| link.refusal().map_or_else(none, OpenError::Tls))?;
            Ok((Arc::new(link), lease))
        });
        if let Ok((link, _)) = &landed {
            let ours = self.outcome.subscribe();
            let mut slots = self.pool.lock();
            // A slot that does not know of this flight is a successor's, with sockets in another place.
            let known =
                |slot: &&mut Slot| slot.flights.iter().any(|f| f.outcome.same_channel(&ours));
            match slots.get_mut(&self.key).filter(known) {
                Some(slot) => slot.links.push(link.clone()),
                None => link.close(),
            }
        }
        self.outcome
            .send_replace(Some(landed.as_ref().map(|_| ()).map_err(Clone::clone)));
        landed
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let ours = self.outcome.subscribe();
        if let Some(slot) = self.pool.lock().get_mut(&self.key) {
            slot.flights
                .retain(|flight| !flight.outcome.same_channel(&ours));
        }
        self.pool.sweep(&self.key);
    }
}

/// Connections to one destination that stalled ones may cause.
const SPREAD: usize = 32;
