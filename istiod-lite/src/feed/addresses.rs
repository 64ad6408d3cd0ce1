//! Automatic addresses of ServiceEntry hosts, on disk.

use std::io;
use std::path::PathBuf;

use crate::disk;
use crate::world::World;

/// The addresses we gave to hosts without one: a host must keep its own over restarts.
pub(super) struct AutomaticAddresses {
    file: PathBuf,
    kept: String,
    /// What [`World::automatic_addresses_given`] was when all of them were on disk.
    given: Option<u64>,
}

impl AutomaticAddresses {
    pub(super) fn restore(file: PathBuf, world: &mut World) -> io::Result<Self> {
        let kept = disk::read_if_any(&file)?.unwrap_or_default();
        for line in world.restore_automatic_addresses(&kept) {
            tracing::warn!(file = %file.display(), line, "not an automatic address, left out");
        }
        Ok(Self {
            file,
            kept,
            given: None,
        })
    }

    /// Before they are published: an address that was told and then forgotten could go to another.
    pub(super) fn keep(&mut self, world: &World) {
        let given = Some(world.automatic_addresses_given());
        if given == self.given {
            return; // there may be thousands, and this is asked at every change of anything
        }
        let now = world.automatic_addresses();
        if now == self.kept {
            self.given = given;
            return;
        }
        match disk::replace(&self.file, now.as_bytes(), disk::PUBLIC) {
            Ok(()) => (self.kept, self.given) = (now, given),
            Err(error) => {
                tracing::error!(file = %self.file.display(), %error, "automatic addresses cannot be kept")
            }
        }
    }
}
