//! Automatic addresses of ServiceEntry hosts, on disk.

use std::io;
use std::path::PathBuf;

use crate::disk;
use crate::world::World;

/// The addresses we gave to hosts without one: a host must keep its own over restarts.
pub(super) struct AutomaticAddresses {
    file: PathBuf,
    kept: String,
}

impl AutomaticAddresses {
    pub(super) fn restore(file: PathBuf, world: &mut World) -> io::Result<Self> {
        let kept = disk::read_if_any(&file)?.unwrap_or_default();
        for line in world.restore_automatic_addresses(&kept) {
            tracing::warn!(file = %file.display(), line, "not an automatic address, left out");
        }
        Ok(Self { file, kept })
    }

    /// Before they are published: an address that was told and then forgotten could go to another.
    pub(super) fn keep(&mut self, world: &World) {
        let now = world.automatic_addresses();
        if now == self.kept {
            return;
        }
        match disk::replace(&self.file, now.as_bytes(), disk::PUBLIC) {
            Ok(()) => self.kept = now,
            Err(error) => {
                tracing::error!(file = %self.file.display(), %error, "automatic addresses cannot be kept")
            }
        }
    }
}
