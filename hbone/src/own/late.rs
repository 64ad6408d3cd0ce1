//! A thread that writes by turns: what its tasks say on one tunnel connection leaves together.
//!
//! 1. a step has something to send, and lists its connection           ([`add`], [`super::Shared::with`])
//! 2. the first that is listed wakes a task, which runs behind all that wait for their turn already
//! 3. that task writes each connection that is listed, once            ([`Late`])
//!
//! With many streams in one connection, each answered by a task of its own, that is one record and one system call
//! where there was one for each of them. What fills a write by itself does not wait ([`super::State::flush`]).
//!
//! A connection is listed once, whichever thread takes its steps, so the list is no longer than there are connections.
//! When the task goes, with its runtime, it writes what is listed; from then on everybody writes at once again.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    task::unconstrained,
};

use super::{Shared, State};

/// Connections written before the thread's other tasks have their turn.
const AT_ONCE: usize = 32;

thread_local! {
    /// Where this thread lists what has something to send; none when it writes at once.
    static HERE: RefCell<Option<Arc<Turns>>> = const { RefCell::new(None) };
}

/// From now on, what is said on this thread to a tunnel's peer leaves when the tasks that wait for their turn have had it:
/// once for each connection and not once for each of its streams. To be called where a runtime of one thread runs, by
/// the only thread that ever runs it; elsewhere it changes nothing. Connections of the engine `h2` write as they always do.
pub fn write_by_turns() {
    let Ok(runtime) = Handle::try_current() else {
        return;
    };
    if runtime.runtime_flavor() != RuntimeFlavor::CurrentThread {
        return; // its tasks, and this one, run anywhere
    }
    let turns = Arc::new(Turns::default());
    let _ = HERE.try_with(|here| here.replace(Some(turns.clone())));
    // Whether a socket takes bytes is no matter of this task's share of the thread: that is AT_ONCE.
    runtime.spawn(unconstrained(Late(turns)));
}

/// This thread writes by turns.
pub(super) fn is_here() -> bool {
    let here = HERE.try_with(|here| match &*here.borrow() {
        Some(turns) => !turns.over.load(Ordering::Relaxed), // `add` is sure
        None => false,
    });
    here.unwrap_or(false)
}

/// The connection has something to send. False when nobody would come to write it.
pub(super) fn add(shared: &Arc<Shared>) -> bool {
    let added = HERE.try_with(|here| match &*here.borrow() {
        Some(turns) => turns.add(shared),
        None => false,
    });
    added.unwrap_or(false)
}

/// What a thread and the task that writes for it share.
#[derive(Default)]
struct Turns {
    list: Mutex<List>,
    /// The task has gone.
    over: AtomicBool,
}

#[derive(Default)]
struct List {
    connections: VecDeque<Arc<Shared>>,
    task: Option<Waker>,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, shared: &Arc<Shared>) -> bool {
        let mut list = self.lock();
        if self.over.load(Ordering::Relaxed) {
            return false;
        }
        list.connections.push_back(shared.clone());
        let task = match list.connections.len() {
            1 => list.task.clone(),
            _ => None, // has been woken
        };
        drop(list);
        task.into_iter().for_each(Waker::wake);
        true
    }

    fn next(&self) -> Option<Arc<Shared>> {
        self.lock().connections.pop_front()
    }

    /// Remembers whom to wake.
    fn attend(&self, cx: &Context<'_>) {
        let mut list = self.lock();
        if !list
            .task
            .as_ref()
            .is_some_and(|task| task.will_wake(cx.waker()))
        {
            let before = list.task.replace(cx.waker().clone());
            drop(list);
            drop(before); // with nothing locked
        }
    }

    /// Nothing is listed any more. What was.
    fn end(&self) -> VecDeque<Arc<Shared>> {
        let mut list = self.lock();
        self.over.store(true, Ordering::Relaxed);
        mem::take(&mut list.connections)
    }
}

/// The task that writes.
struct Late(Arc<Turns>);

impl Future for Late {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.attend(cx);
        for _ in 0..AT_ONCE {
            let Some(shared) = self.0.next() else {
                return Poll::Pending;
            };
            shared.with(State::write_late);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        for shared in self.0.end() {
            shared.with(State::write_late);
        }
    }
}
