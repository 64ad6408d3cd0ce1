//! Two ztunnels on one port: who takes what comes next.
//!
//! While a ztunnel is replaced, its successor listens beside it on the same ports (`SO_REUSEPORT`), and the kernel
//! would share connections and queries out by hash, to whoever listens. A socket filter that all of them share decides
//! otherwise. It returns the number of a socket, in the order in which they began to listen:
//!
//! ```text
//!  serving ─── Elder: the first, us while we are alone ───▶ leaving ─── Younger: the second
//! ```
//! So a successor takes nothing from its first moment on, whether or not it has heard from the control plane, and an
//! elder that leaves closes its port when nothing on its way to it is left. A number that no socket has makes the
//! kernel go by hash: whoever is alone has everything.
//!
//! Who leaves without ever having taken a connection may be the successor itself, taken back: it leaves all as it is.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use nix::libc::{self, sock_filter, sock_fprog};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::time::{interval, timeout};

use crate::pod::{HANDSHAKE, Pod};

/// Whose turn it is.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Elder = 0,
    Younger = 1,
}

/// Hands out the turns of `socket`, one of `pod`'s, from now until it is closed.
pub(crate) fn take<S: AsFd + Send + Sync + 'static>(socket: S, pod: Arc<Pod>) -> Arc<S> {
    give(&socket, Turn::Elder);
    let socket = Arc::new(socket);
    let shared = socket.clone();
    tokio::spawn(async move {
        let leaving = pod.drain.accepting();
        // Nobody says when the elder has gone and what it left behind is ours to undo.
        let again = every(SETTLE, || give(&*shared, Turn::Elder));
        leaving.run_until_cancelled(again).await;
        if pod.has_taken() {
            // Said again because the successor may settle just now.
            let leave = every(INSIST, || give(&*shared, Turn::Younger));
            let _ = timeout(HANDSHAKE, leave).await;
        }
    });
    socket
}

async fn every(pause: Duration, work: impl Fn()) {
    let mut ticks = interval(pause);
    loop {
        ticks.tick().await;
        work();
    }
}

/// A kernel that does not take the filter, and a port that is not shared, go on without.
fn give(socket: &impl AsFd, turn: Turn) {
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut program = [sock_filter {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: turn as u32,
    }];
    let filter = sock_fprog {
        len: 1,
        filter: program.as_mut_ptr(),
    };
    if let Err(error) = setsockopt(&socket.as_fd(), sockopt::AttachReusePortCbpf, &filter) {
        tracing::debug!(?turn, %error, "the kernel shares the port as it likes");
    }
}

/// Five system calls a pod a minute.
const SETTLE: Duration = Duration::from_secs(60);
const INSIST: Duration = Duration::from_millis(100);
