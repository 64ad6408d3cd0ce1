//! Turns on a thread: who has much to move lets the others go first.
//!
//! Waking oneself is not enough. A runtime that always finds a task to run asks the kernel seldom which sockets are
//! ready (tokio every 61 tasks), and in that time a bulk moves tens of megabytes. Yielding asks first.

use std::{
    future::Future,
    pin::pin,
    task::{Context, Poll},
};

/// Ends this task's turn: it is polled again after the thread has asked for ready sockets. Outside of tokio, at once.
pub(crate) fn over<T>(cx: &mut Context<'_>) -> Poll<T> {
    // Its first poll registers the waker where tokio keeps those that have yielded; there is no second.
    let yielding = pin!(tokio::task::yield_now());
    let _ = yielding.poll(cx);
    Poll::Pending
}
