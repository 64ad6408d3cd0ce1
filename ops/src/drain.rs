//! How work ends without being cut: stop accepting, wait for what runs, then stop now.
//!
//! ```text
//!  running ──drain()──▶ accepting() cancelled ──all tasks done──▶ quiet
//!                                └────────────deadline──────────▶ now() cancelled ─▶ cut
//! ```
//! Either way it ends with `over()` cancelled, for what serves the tasks and has no end of its own.
//!
//! A [`Drain::child`] (one pod of a node) ends with its parent or on its own; a parent waits for
//! its children's tasks too.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The end of a piece of work, seen from both sides: who ends it, and the tasks that are to end.
#[derive(Clone, Debug)]
pub struct Drain(Arc<State>);

#[derive(Debug)]
struct State {
    accepting: CancellationToken,
    now: CancellationToken,
    over: CancellationToken,
    tasks: TaskTracker,
    /// Every task of this drain counts there too, but not this drain itself: a pod without connections must not
    /// hold its node's exit.
    parent: Option<Drain>,
}

/// See [`Drain::hold`].
#[derive(Debug)]
pub struct Hold {
    _task: TaskTrackerToken,
    /// The same in the parent.
    _above: Option<Box<Hold>>,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every task ended by itself.
    Quiet,
    /// So many tasks still ran at the deadline and were told to stop now.
    Cut(usize),
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl Drain {
    /// Nothing ends yet.
    pub fn new() -> Self {
        Self::with(std::array::from_fn(|_| CancellationToken::new()), None)
    }

    /// A part of this work that can also end on its own.
    pub fn child(&self) -> Self {
        let State {
            accepting,
            now,
            over,
            ..
        } = &*self.0;
        Self::with(
            [accepting, now, over].map(CancellationToken::child_token),
            Some(self.clone()),
        )
    }

    /// Cancelled when no new work may be taken on.
    pub fn accepting(&self) -> &CancellationToken {
        &self.0.accepting
    }

    /// Cancelled when running work must end at once.
    pub fn now(&self) -> &CancellationToken {
        &self.0.now
    }

    /// Cancelled when the drain has ended, with a cut or without.
    pub fn over(&self) -> &CancellationToken {
        &self.0.over
    }

    /// Tasks that run at this moment (children's too).
    pub fn running(&self) -> usize {
        self.0.tasks.len()
    }

    /// Spawns a task the drain waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let above = self.above();
        self.0.tasks.spawn(async move {
            let output = task.await;
            drop(above);
            output
        })
    }

    /// The same on another runtime than the one that runs this.
    pub fn spawn_on<F>(&self, runtime: &Handle, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let _there = runtime.enter();
        self.spawn(task)
    }

    /// Counts as a running task until it is dropped: for work that is done inside another drain's
    /// task but belongs to this one too (a connection between two pods of a node).
    pub fn hold(&self) -> Hold {
        Hold {
            _task: self.0.tasks.token(),
            _above: self.above().map(Box::new),
        }
    }

    fn above(&self) -> Option<Hold> {
        self.0.parent.as_ref().map(Self::hold)
    }

    /// Ends the work: no more new work, wait for what runs at most `deadline`, then stop now.
    /// Returns when every task has ended, at the latest [`LAST_WORDS`] after the cut.
    pub async fn drain(&self, deadline: Duration) -> Drained {
        let drained = self.end(deadline).await;
        self.0.over.cancel();
        drained
    }

    async fn end(&self, deadline: Duration) -> Drained {
        self.0.accepting.cancel();
        self.0.tasks.close();
        if tokio::time::timeout(deadline, self.0.tasks.wait())
            .await
            .is_ok()
        {
            return Drained::Quiet;
        }
        let left = self.0.tasks.len();
        self.0.now.cancel();
        // They only have to write their reports; one that does not stop must not hold the exit.
        let _ = tokio::time::timeout(LAST_WORDS, self.0.tasks.wait()).await;
        Drained::Cut(left)
    }

    fn with([accepting, now, over]: [CancellationToken; 3], parent: Option<Self>) -> Self {
        Self(Arc::new(State {
            accepting,
            now,
            over,
            tasks: TaskTracker::new(),
            parent,
        }))
    }
}

/// How long a task that was told to stop may take to report.
pub const LAST_WORDS: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn idle_work_drains_at_once() {
        assert_eq!(
            Drain::new().drain(Duration::from_secs(60)).await,
            Drained::Quiet
        );
    }

    #[tokio::test]
    async fn tasks_that_end_in_time_are_not_cut() {
        let drain = Drain::new();
        let accepting = drain.accepting().clone();
        let task = drain.spawn(async move { accepting.cancelled().await });
        assert_eq!(drain.drain(Duration::from_secs(60)).await, Drained::Quiet);
        task.await.unwrap();
        assert!(!drain.now().is_cancelled());
    }

    #[tokio::test]
    async fn it_is_over_when_the_last_task_is_and_for_the_parts_too() {
        let node = Drain::new();
        let pod = node.child();
        let (end, ends) = tokio::sync::oneshot::channel::<()>();
        pod.spawn(ends);
        let draining = tokio::spawn({
            let node = node.clone();
            async move { node.drain(Duration::from_secs(60)).await }
        });
        pod.accepting().cancelled().await;
        assert!(!pod.over().is_cancelled() && !node.over().is_cancelled());
        drop(end);
        assert_eq!(draining.await.unwrap(), Drained::Quiet);
        assert!(pod.over().is_cancelled() && node.over().is_cancelled());

        let cut = Drain::new();
        let now = cut.now().clone();
        cut.spawn(async move { now.cancelled().await });
        assert_eq!(cut.drain(Duration::ZERO).await, Drained::Cut(1));
        assert!(cut.over().is_cancelled());
    }

    #[tokio::test]
    async fn tasks_that_do_not_end_are_cut_at_the_deadline() {
        let drain = Drain::new();
        let now = drain.now().clone();
        let task = drain.spawn(async move { now.cancelled().await });
        assert_eq!(drain.drain(Duration::ZERO).await, Drained::Cut(1));
        task.await.unwrap();
    }

    #[tokio::test]
    async fn what_is_held_counts_as_running() {
        let drain = Drain::new();
        let hold = drain.hold();
        assert_eq!(drain.drain(Duration::ZERO).await, Drained::Cut(1));
        drop(hold);
        assert_eq!(drain.running(), 0);
    }

    #[tokio::test]
    async fn an_idle_child_does_not_hold_its_parent() {
        let node = Drain::new();
        let pod = node.child();
        pod.spawn(async {}).await.unwrap();
        assert_eq!(node.drain(Duration::from_secs(60)).await, Drained::Quiet);
        assert_eq!(pod.running(), 0);
    }

    #[tokio::test]
    async fn a_child_ends_alone_and_with_its_parent() {
        let node = Drain::new();
        let (first, second) = (node.child(), node.child());
        first.drain(Duration::ZERO).await;
        assert!(
            first.accepting().is_cancelled()
                && !node.accepting().is_cancelled()
                && !second.accepting().is_cancelled()
        );

        let now = second.now().clone();
        second.spawn(async move { now.cancelled().await });
        drop((first, second));
        assert_eq!(
            node.drain(Duration::ZERO).await,
            Drained::Cut(1),
            "the node waits for its pods' connections"
        );
    }
}
