//! A pod's network namespace: open it, tell it from others, run something inside.
//!
//! Entering changes the calling thread for good, so each visit gets a thread of its own that ends
//! with it. A child process started there stays there, which is how `nft` gets into the pod.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, fstatfs};
use tokio::sync::oneshot;

/// An open network namespace. It lives as long as this does, whatever happens to its path.
#[derive(Debug)]
pub(crate) struct Netns {
    file: File,
    path: PathBuf,
    id: NetnsId,
}

/// What tells one namespace from another while both exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NetnsId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// Why a namespace cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetnsError {
    #[error("failed to open netns {path}: {error}; is its directory mounted into the agent?")]
    Open { path: PathBuf, error: io::Error },
    #[error("{0} is no network namespace")]
    NotANamespace(PathBuf),
    #[error("{0} is the node's own network namespace, or the agent's")]
    Node(PathBuf),
    #[error("cannot enter netns {path}: {error}")]
    Enter { path: PathBuf, error: io::Error },
}

/// The namespaces that are no pod's: this process's own and, where that is another, the node's.
#[derive(Clone, Debug)]
pub(crate) struct NotPods {
    own: NetnsId,
    node: Option<Arc<Netns>>,
}

impl NotPods {
    /// `proc` is the node's, if its first process is in the node's namespace; without it the node's is taken
    /// to be our own.
    pub(crate) fn look(proc: Option<&Path>) -> Result<Self, NetnsError> {
        let own = Netns::open_any(Path::new(OWN))?.id;
        let node = match proc {
            Some(proc) => Some(Netns::open_any(&proc.join("1/ns/net"))?),
            None => None,
        };
        Ok(Self {
            own,
            node: node.filter(|node| node.id != own).map(Arc::new),
        })
    }

    /// The node's namespace, where it is not the one this process runs in.
    pub(crate) fn node(&self) -> Option<&Arc<Netns>> {
        self.node.as_ref()
    }

    /// Opens the namespace at `path`, which must be none of these.
    pub(crate) fn pod(&self, path: &Path) -> Result<Netns, NetnsError> {
        let netns = Netns::open_any(path)?;
        let node = self.node.as_ref().map(|node| node.id);
        if netns.id == self.own || Some(netns.id) == node {
            return Err(NetnsError::Node(path.to_owned()));
        }
        Ok(netns)
    }
}

impl Netns {
    fn open_any(path: &Path) -> Result<Self, NetnsError> {
        let failed = |error| NetnsError::Open {
            path: path.to_owned(),
            error,
        };
        // A path from outside may lead to anything; a pipe must not block us.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(path)
            .map_err(failed)?;
        let kind = fstatfs(&file)
            .map_err(|errno| failed(errno.into()))?
            .filesystem_type();
        if kind != NSFS {
            return Err(NetnsError::NotANamespace(path.to_owned()));
        }
        let metadata = file.metadata().map_err(failed)?;
        let id = NetnsId {
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        Ok(Self {
            file,
            path: path.to_owned(),
            id,
        })
    }

    pub(crate) fn id(&self) -> NetnsId {
        self.id
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads here: a runtime removes it with the pod.
    pub(crate) fn is_still_there(&self) -> bool {
        Self::open_any(&self.path).is_ok_and(|now| now.id == self.id)
    }

    /// Runs `visit` inside, on a thread of its own. It may start child processes of tokio.
    pub(crate) async fn enter<T, F>(self: &Arc<Self>, visit: F) -> Result<T, NetnsError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let failed = |error| NetnsError::Enter {
            path: self.path.clone(),
            error,
        };
        let (done, result) = oneshot::channel();
        let netns = self.clone();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new()
            .name("in a netns".into())
            .spawn(move || {
                let _runtime = runtime.enter();
                let _ = done.send(setns(&netns.file, CloneFlags::CLONE_NEWNET).map(|()| visit()));
            })
            .map_err(failed)?;
        match result.await {
            Ok(visited) => visited.map_err(|errno| failed(errno.into())),
            Err(_) => Err(failed(io::Error::other("the visit ended early"))),
        }
    }

    /// The addresses of its interfaces that other hosts could use.
    pub(crate) async fn addresses(self: &Arc<Self>) -> Result<Vec<IpAddr>, NetnsError> {
        let failed = |error| NetnsError::Enter {
            path: self.path.clone(),
            error,
        };
        self.enter(own_addresses)
            .await?
            .map_err(|errno| failed(errno.into()))
    }
}

/// Runs `visit` on a thread that ends with it, in `netns` or in our own namespace: what else it changes
/// of its surroundings is nobody else's.
pub(crate) async fn aside<T, F>(netns: Option<&Arc<Netns>>, visit: F) -> Result<T, NetnsError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    let own;
    let netns = match netns {
        Some(netns) => netns,
        None => {
            own = Arc::new(Netns::open_any(Path::new(OWN))?);
            &own
        }
    };
    netns.enter(visit).await
}

fn own_addresses() -> nix::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    Ok(addresses
        .filter(|ip| !ip.is_loopback() && !is_link_local(ip))
        .collect())
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

const OWN: &str = "/proc/self/ns/net";
/// `NSFS_MAGIC` of the kernel's magic.h; the type's width differs between architectures.
#[allow(clippy::unnecessary_cast)]
const NSFS: FsType = FsType(0x6e73_6673 as _);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_foreign_network_namespace_is_opened() {
        let none = NotPods::look(None).unwrap();
        assert!(none.node().is_none());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("plain");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(none.pod(&file), Err(NetnsError::NotANamespace(_))));
        assert!(matches!(
            none.pod(&dir.path().join("none")),
            Err(NetnsError::Open { .. })
        ));
        assert!(matches!(none.pod(Path::new(OWN)), Err(NetnsError::Node(_))));
        assert!(matches!(
            none.pod(Path::new("")),
            Err(NetnsError::Open { .. })
        ));
    }
}
