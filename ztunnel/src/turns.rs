//! Two ztunnels on one port: who takes what comes next.
//!
//! While a ztunnel is replaced, its successor listens beside it on the same ports (`SO_REUSEPORT`), and the kernel
//! would share connections and queries out by hash, to whoever listens. A socket filter shared by both decides
//! otherwise; it returns the number of the socket, in the order in which they began to listen.
//!
//! ```text
//!  listening ──────▶ known ───────────▶ leaving
//!  Elder: what the    Either: evenly     Younger: what the one has that listens beside us
//!  other has, if any
//! ```
//! So a successor that does not hear from the control plane makes nobody wait, and who leaves closes its port
//! when nothing on its way to it is left. A number that no socket has makes the kernel go by hash: alone, one socket has it all.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::libc::{self, sock_filter, sock_fprog};
use nix::sys::socket::{setsockopt, sockopt};

use crate::pod::Pod;

/// Whose turn it is.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
enum Turn {
    Elder = 0,
    Younger = 1,
    Either = u32::MAX,
}

/// Hands out the turns of `socket`, one of `pod`'s, from now until it takes no more.
pub(crate) fn take<S: AsFd + Send + Sync + 'static>(socket: S, pod: Arc<Pod>) -> Arc<S> {
    give(&socket, Turn::Elder);
    let socket = Arc::new(socket);
    let shared = socket.clone();
    tokio::spawn(async move {
        let leaving = pod.drain.accepting();
        tokio::select! {
            () = leaving.cancelled() => {}
            _ = pod.wait_known() => {
                give(&*shared, Turn::Either);
                leaving.cancelled().await;
            }
        }
        give(&*shared, Turn::Younger);
    });
    socket
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
