//! How a copy between two sockets is stopped: between it and whoever freezes it.
//!
//! The copy looks at the sign whenever it is polled. Told to stop, it leaves what it has written down and
//! touches its sockets no more until the sign says so.

use std::{
    future::poll_fn,
    mem,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use socket2::SockRef;

use super::{
    NotFrozen,
    sign::{Sign, Standing},
    wire::Written,
};

/// One for each pair of sockets.
#[derive(Default)]
pub(crate) struct Brake {
    sign: Sign,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    copier: Option<Waker>,
    freezer: Option<Waker>,
    written: Option<Result<Written, NotFrozen>>,
    /// Nobody copies any more.
    gone: bool,
}

/// For whoever copies.
impl Brake {
    pub(crate) fn standing(&self) -> Standing {
        self.sign.now()
    }

    pub(crate) fn attend(&self, cx: &Context<'_>) {
        let waker = cx.waker().clone();
        let before = self.lock().copier.replace(waker);
        drop(before); // with nothing locked
    }

    /// Leaves what is written down, once.
    pub(crate) fn park(&self, write: impl FnOnce() -> Result<Written, NotFrozen>) {
        let mut inner = self.lock();
        if self.sign.now() != Standing::Stopping || inner.written.is_some() {
            return;
        }
        inner.written = Some(write());
        let freezer = inner.freezer.take();
        drop(inner);
        freezer.into_iter().for_each(Waker::wake);
    }

    /// The copy goes. `end` is called if the sockets are still ours to end.
    pub(crate) fn let_go(&self, end: impl FnOnce()) {
        let mut inner = self.lock();
        inner.gone = true;
        match self.sign.now() {
            Standing::Here | Standing::Stopping => end(),
            // Heard when it is taken back; whoever else goes on has sockets of its own.
            Standing::Away | Standing::Given => {}
        }
        let forgotten = (inner.written.take(), inner.freezer.take());
        drop(inner);
        forgotten.1.into_iter().for_each(Waker::wake);
    }
}

/// For whoever freezes.
impl Brake {
    /// Stops the copy. Cancelled before, it goes on.
    pub(crate) async fn freeze(self: &Arc<Self>) -> Result<(FrozenPair, Written), NotFrozen> {
        {
            let inner = self.lock();
            match self.sign.now() {
                _ if inner.gone => return Err(NotFrozen::Over),
                Standing::Here => self.sign.set(Standing::Stopping),
                Standing::Stopping | Standing::Away => return Err(NotFrozen::Already),
                Standing::Given => return Err(NotFrozen::Over),
            }
            self.wake_copier(inner);
        }
        let guard = Stopping(self);
        let written = poll_fn(|cx| self.poll_written(cx)).await?;
        mem::forget(guard); // it only borrows
        Ok((FrozenPair(self.clone()), written))
    }

    fn poll_written(&self, cx: &Context<'_>) -> Poll<Result<Written, NotFrozen>> {
        let mut inner = self.lock();
        if inner.gone {
            return Poll::Ready(Err(NotFrozen::Over));
        }
        let Some(written) = inner.written.take() else {
            let before = inner.freezer.replace(cx.waker().clone());
            drop(inner);
            drop(before);
            return Poll::Pending;
        };
        if written.is_ok() {
            self.sign.set(Standing::Away);
        }
        Poll::Ready(written)
    }

    fn set(&self, standing: Standing) -> bool {
        let inner = self.lock();
        self.sign.set(standing);
        let gone = inner.gone;
        self.wake_copier(inner);
        gone
    }

    fn wake_copier(&self, inner: MutexGuard<'_, Inner>) {
        let copier = inner.copier.clone();
        drop(inner);
        copier.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever freezes; when it goes before it is done, the copy goes on.
struct Stopping<'a>(&'a Brake);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        let written = self.0.lock().written.take();
        drop(written);
        self.0.set(Standing::Here);
    }
}

/// A pair that nobody copies. One of both must be called.
pub(crate) struct FrozenPair(Arc<Brake>);

impl FrozenPair {
    /// The copy goes on; if it was given up meanwhile, its sockets are reset: these.
    pub(crate) fn take_back(self, sockets: &[OwnedFd]) {
        if self.0.set(Standing::Here) {
            for socket in sockets {
                // If it cannot be set the peer sees an end.
                let _ = SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
            }
        }
    }

    /// Somebody else goes on with it.
    pub(crate) fn forget(self) {
        self.0.set(Standing::Given);
    }
}
