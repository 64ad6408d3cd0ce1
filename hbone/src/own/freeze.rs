//! A connection is frozen: its state leaves, and comes back, or does not.
//!
//! 1. whoever freezes waits until every stream is in a copy or has not been given out  ([`Shared::freeze`])
//! 2. every copy says what it holds and stops; nothing is read any more
//! 3. all of it is written down, and the state is taken away: nobody here can seal, read or write a byte
//! 4. it comes back ([`Frozen::take_back`]), or somebody else goes on with it ([`Frozen::forget`])
//!
//! Both ends of a stream may be let go of meanwhile, and the connection too: that is remembered, and
//! heard when the state comes back ([`Shared::with_or_later`]). Given away, it is for nobody to hear.

use std::{
    future::poll_fn,
    mem,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{App, Shared, State, state::Turn};
use crate::handover::{NotFrozen, sign::Standing, wire::Written};

/// What is to be done as soon as the state is back. What it gives back is dropped without a lock.
pub(super) type Later = Box<dyn FnOnce(&mut State) -> Option<Arc<App>> + Send>;

/// What is remembered while the state is not there.
#[derive(Default)]
pub(super) struct Absent {
    waiting: Vec<Waker>,
    pub(super) later: Vec<Later>,
}

impl Absent {
    pub(super) fn wait(&mut self, cx: &Context<'_>) {
        if !self.waiting.iter().any(|w| w.will_wake(cx.waker())) {
            self.waiting.push(cx.waker().clone());
        }
    }
}

impl Shared {
    /// Stops everything between two steps and takes the state away, written down. Cancelled before, or
    /// failed, everything goes on.
    pub(crate) async fn freeze(self: &Arc<Self>) -> Result<(Frozen, Written), NotFrozen> {
        let begun = self.with(State::begin_freeze);
        begun.unwrap_or(Err(match self.standing() {
            Standing::Given => NotFrozen::Over,
            _ => NotFrozen::Already,
        }))?;
        let guard = Stopping(self);
        let frozen = poll_fn(|cx| self.poll_freeze(cx)).await?;
        mem::forget(guard); // it only borrows
        Ok(frozen)
    }

    /// Streams that a freeze has to wait for.
    pub(crate) fn loose(self: &Arc<Self>) -> usize {
        self.with(|state| state.loose()).unwrap_or(0)
    }

    fn poll_freeze(
        self: &Arc<Self>,
        cx: &Context<'_>,
    ) -> Poll<Result<(Frozen, Written), NotFrozen>> {
        loop {
            let turn = self.with(|state| {
                let turn = state.poll_stopped(cx);
                if let Poll::Ready(Ok(Turn::Stop)) = turn {
                    self.sign.set(Standing::Stopping);
                    state.stop();
                }
                turn
            });
            match turn {
                Some(Poll::Pending) => return Poll::Pending,
                Some(Poll::Ready(Err(why))) => return Poll::Ready(Err(why)),
                Some(Poll::Ready(Ok(Turn::Stop))) => {}
                Some(Poll::Ready(Ok(Turn::Stopped))) => {
                    if let Some(frozen) = self.put_away().transpose() {
                        return Poll::Ready(frozen);
                    } // else something has happened just now: look again
                }
                None => return Poll::Ready(Err(NotFrozen::Over)),
            }
        }
    }

    /// Writes the state down and takes it away, in one step. None when it is not at rest after all.
    fn put_away(self: &Arc<Self>) -> Result<Option<(Frozen, Written)>, NotFrozen> {
        let mut inner = self.lock();
        let written = match &mut inner.state {
            Some(state) if state.is_at_rest() => state.write(&self.session, self.berth())?,
            _ => return Ok(None),
        };
        let Some(mut state) = inner.state.take() else {
            return Ok(None);
        };
        self.sign.set(Standing::Away);
        drop(inner);
        state.is_not_listed();
        let frozen = Frozen {
            shared: self.clone(),
            state: Box::new(state),
        };
        Ok(Some((frozen, written)))
    }
}

/// Whoever freezes; when it goes before it is done, everything goes on.
struct Stopping<'a>(&'a Arc<Shared>);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.with(|state| {
            self.0.sign.set(Standing::Here);
            state.go_on();
        });
    }
}

/// A connection that nobody can do anything with. One of both must be called; it is nobody's when dropped.
pub(crate) struct Frozen {
    shared: Arc<Shared>,
    state: Box<State>,
}

impl Frozen {
    /// Everything goes on as if nothing had been.
    pub(crate) fn take_back(self) {
        let mut inner = self.shared.lock();
        inner.state = Some(*self.state);
        self.shared.sign.set(Standing::Here);
        let absent = mem::take(&mut inner.absent);
        drop(inner);
        for step in absent.later {
            // What a step gives back is dropped out here.
            drop(self.shared.with(step));
        }
        self.shared.with(State::go_on);
        absent.waiting.into_iter().for_each(Waker::wake);
    }

    /// Somebody else goes on with it: keys are wiped and descriptors closed, and nothing is said on any
    /// of them.
    pub(crate) fn forget(mut self) {
        let mut inner = self.shared.lock();
        self.shared.sign.set(Standing::Given);
        let absent = mem::take(&mut inner.absent);
        drop(inner);
        self.state.go_on();
        let awake = mem::take(&mut self.state.awake);
        drop(self.state);
        drop(absent.later);
        let waiting = absent.waiting.into_iter();
        waiting.chain(awake).for_each(Waker::wake);
    }
}
