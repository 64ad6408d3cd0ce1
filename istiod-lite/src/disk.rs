//! What must survive a restart ([`hbone::disk`]), and a way to wait for it that holds up nobody.

use std::io;

pub(crate) use hbone::disk::{PUBLIC, SECRET, create, read_if_any, replace};

/// Does what waits for a disk where waiting holds up nobody.
pub(crate) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}
