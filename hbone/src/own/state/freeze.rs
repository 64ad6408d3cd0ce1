//! What a freeze asks of the state: who has to be waited for, who has to stop, and whether all have.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::{Phase, State};
use crate::{
    frames::StreamId,
    handover::NotFrozen,
    own::{App, Parked},
    socket::Socket,
};

/// Somebody wants to freeze the connection.
pub(super) struct Freezing {
    waker: Waker,
    /// Nothing is read any more, and copies stop.
    stopping: bool,
}

/// What comes next.
pub(crate) enum Turn {
    /// Everybody can stop now.
    Stop,
    /// Everybody has stopped.
    Stopped,
}

impl State {
    /// From now on no stream begins: requests that come stay here, and none are made.
    pub(crate) fn begin_freeze(&mut self) -> Result<(), NotFrozen> {
        self.is_worth_it()?;
        if self.freezing.is_some() {
            return Err(NotFrozen::Already);
        }
        if (*self.io).tcp().is_none() {
            return Err(NotFrozen::Socket);
        }
        self.freezing = Some(Freezing {
            waker: Waker::noop().clone(),
            stopping: false,
        });
        self.awake.append(&mut self.openers);
        Ok(())
    }

    /// Ready when everybody can stop, and when everybody has.
    pub(crate) fn poll_stopped(&mut self, cx: &Context<'_>) -> Poll<Result<Turn, NotFrozen>> {
        self.is_worth_it()?;
        let Some(freezing) = &mut self.freezing else {
            return Poll::Ready(Err(NotFrozen::Over));
        };
        if !freezing.waker.will_wake(cx.waker()) {
            let before = mem::replace(&mut freezing.waker, cx.waker().clone());
            self.awake.push(before);
        }
        let stopping = freezing.stopping;
        if stopping && self.is_at_rest() {
            Poll::Ready(Ok(Turn::Stopped))
        } else if !stopping && self.loose() == 0 {
            Poll::Ready(Ok(Turn::Stop))
        } else {
            Poll::Pending
        }
    }

    /// Nothing is read from now on, and copies are told to stop.
    pub(crate) fn stop(&mut self) {
        if let Some(freezing) = &mut self.freezing {
            freezing.stopping = true;
        }
        // What is still to be written is written by whoever finds it.
        self.write_now();
        self.wake_all();
    }

    /// Everything goes on.
    pub(crate) fn go_on(&mut self) {
        if let Some(freezing) = self.freezing.take() {
            self.awake.push(freezing.waker);
        }
        for flow in self.flows.values_mut() {
            flow.parked = None;
        }
        self.wake_all();
    }

    /// Everybody has stopped.
    pub(crate) fn is_at_rest(&self) -> bool {
        let has_stopped = |id, flow: &super::Flow| flow.parked.is_some() || self.has_arrived(id);
        self.stopping()
            && matches!(self.phase, Phase::Open)
            && self.flows.iter().all(|(id, flow)| has_stopped(*id, flow))
    }

    /// Streams that are in no copy, and not waiting to be given out either: asked for or being answered.
    pub(crate) fn loose(&self) -> usize {
        let flows = self.flows.iter();
        let loose = flows.filter(|(id, flow)| flow.app.is_none() && !self.has_arrived(**id));
        loose.count()
    }

    pub(super) fn stopping(&self) -> bool {
        self.freezing.as_ref().is_some_and(|f| f.stopping)
    }

    /// Whoever freezes looks again.
    pub(super) fn stir(&mut self) {
        if let Some(freezing) = &self.freezing {
            self.awake.push(freezing.waker.clone());
        }
    }

    pub(crate) fn attend(&mut self, stream: StreamId, waker: &Waker) {
        if let Some(flow) = self.flows.get_mut(&stream) {
            self.awake.extend(flow.copier.replace(waker.clone()));
        }
    }

    pub(crate) fn park(&mut self, stream: StreamId, parked: Parked) {
        if !self.stopping() {
            return;
        }
        if let Some(flow) = self.flows.get_mut(&stream) {
            flow.parked = Some(Box::new(parked));
            self.stir();
        }
    }

    pub(crate) fn is_inside(&mut self, stream: StreamId) {
        if let Some(flow) = self.flows.get_mut(&stream) {
            flow.inside = true;
            self.stir();
        }
    }

    pub(crate) fn give_up(&mut self, stream: StreamId, app: &Arc<App>, abort: bool, reset: bool) {
        if let Some(flow) = self.flows.get_mut(&stream) {
            flow.parked = None;
            self.awake.extend(flow.copier.take());
        }
        if abort {
            app.tcp().abort();
        }
        if reset {
            self.reset(stream);
        }
    }

    fn has_arrived(&self, stream: StreamId) -> bool {
        self.arrivals.iter().any(|arrival| arrival.stream == stream)
    }

    fn is_worth_it(&self) -> Result<(), NotFrozen> {
        let ending = self.mux.done() || self.unwanted && self.flows.is_empty();
        if !matches!(self.phase, Phase::Open) || ending || self.gauge.flood().is_some() {
            return Err(NotFrozen::Over);
        }
        match self.flows.values().any(|flow| flow.inside) {
            true => Err(NotFrozen::Inside),
            false => Ok(()),
        }
    }

    fn wake_all(&mut self) {
        let copiers = self.flows.values().filter_map(|flow| flow.copier.clone());
        self.awake.extend(copiers);
        self.awake.push(self.driver.clone());
    }
}
