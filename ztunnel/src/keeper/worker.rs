//! The worker's end: a pod's sockets, from the keeper or newly opened, held while they are of use.
//!
//! 1. at the start, before anything else runs: take what is held     ([`Keeper::of_this_process`])
//! 2. a pod arrives: its sockets are those given back, or new ones   ([`Keeper::sockets`], [`Sockets`])
//! 3. all are open: the keeper is told to hold them                  ([`Sockets::keep`])
//! 4. the pod leaves, or this process does: it is told to let go     ([`Kept::release`])
//! 5. the agent's snapshot is complete: what nobody claimed goes     ([`Keeper::only`])
//!
//! Without a keeper all of it does nothing, and sockets are opened. Messages go out at once and wait for no answer: a
//! message that was sent is read, even if we are killed right after it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::prctl::{set_name, set_pdeathsig};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use nix::unistd::getppid;
use prometheus_client::metrics::counter::Counter;
use tokio::net::{TcpListener, UdpSocket};

use super::KEPT;
use super::words::{COMPLETE, HOLD, HOLD_TAKEN, Held, RELEASE, Spot, TAKEN, head, parse, send};
use crate::agent::packet::{Packet, receive};
use crate::netns::{Netns, NetnsId};

/// Who keeps listeners for us, if anybody does. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Keeper(Option<Arc<Line>>);

/// The socket to the keeper.
#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    /// Given back and not claimed yet, by the pod's uid.
    back: Mutex<BTreeMap<String, Back>>,
    /// The number of what is held next.
    next: AtomicU64,
    /// Workers that died before this one.
    deaths: u64,
}

/// What the keeper held of a pod.
#[derive(Debug)]
struct Back {
    number: u64,
    netns: NetnsId,
    taken: bool,
    sockets: Vec<(Spot, OwnedFd)>,
}

/// A pod's sockets while they are opened. Dropped before [`Sockets::keep`], nothing of it stays open anywhere.
#[derive(Debug)]
pub(crate) struct Sockets<'a> {
    netns: &'a Netns,
    uid: &'a str,
    line: Option<&'a Arc<Line>>,
    back: Option<Back>,
    /// Duplicates of all that were handed out, for the keeper.
    out: Vec<(Spot, OwnedFd)>,
    /// Some of them are not held yet.
    fresh: bool,
}

/// A pod's sockets in the keeper's hands.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    held: Option<(Arc<Line>, u64)>,
    taken: AtomicBool,
    released: AtomicBool,
}

impl Keeper {
    /// The keeper that started this process, with all that it held. Call it first in `main`, while there is one thread.
    ///
    /// # Errors
    /// When there is a keeper, but it does not say what it holds. To go on without would leave listeners open
    /// that nobody serves, and connections would go to them.
    pub fn of_this_process() -> io::Result<Self> {
        let Some((pid, deaths)) = std::env::var(KEPT).ok().and_then(|said| {
            let (pid, deaths) = said.split_once(' ')?;
            Some((pid.parse::<i32>().ok()?, deaths.parse().ok()?))
        }) else {
            return Ok(Self::default());
        };
        // Started as /proc/self/exe; known by another name than the keeper's.
        set_name(c"ztunnel")?;
        SigSet::empty().thread_set_mask()?;
        // As in a container, where the end of process 1 is everybody's.
        set_pdeathsig(Signal::SIGKILL)?;
        if getppid().as_raw() != pid {
            return Err(io::Error::other("the keeper that started us is gone"));
        }
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        Self::on(socket, deaths)
    }

    fn on(socket: OwnedFd, deaths: u64) -> io::Result<Self> {
        let patience = TimeVal::new(PATIENCE, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
        setsockopt(&socket, sockopt::SendTimeout, &patience)?;
        let (mut back, mut stale) = (BTreeMap::new(), Vec::new());
        let mut next = 0;
        loop {
            let packet = receive(socket.as_raw_fd())?;
            let (verb, number) = parse(&packet.bytes)
                .map(|(verb, number, _)| (verb, number))
                .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            if verb == COMPLETE {
                break;
            }
            next = next.max(number + 1);
            match Back::of(packet) {
                // Of a pod that was taken on anew, and a worker killed in the middle of it, the later counts.
                Some((uid, held)) => stale.extend(back.insert(uid, held)),
                None => return Err(io::Error::other("the keeper says what makes no sense")),
            }
        }
        let line = Line {
            socket,
            back: Mutex::new(back),
            next: AtomicU64::new(next),
            deaths,
        };
        for back in stale {
            line.tell(RELEASE, back.number);
        }
        Ok(Self(Some(Arc::new(line))))
    }

    /// Says in the log whether this is the first worker.
    pub fn announce(&self) {
        if let Some(line) = self.0.as_ref().filter(|line| line.deaths > 0) {
            let (deaths, pods) = (line.deaths, line.back().len());
            tracing::warn!(
                deaths,
                pods,
                "the worker before this one died; connections to the pods it served have waited in their listeners"
            );
        }
    }

    /// Registers `ambit_worker_restarts`.
    pub fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        let restarts: Counter = Counter::default();
        restarts.inc_by(self.0.as_ref().map_or(0, |line| line.deaths));
        registry.register(
            "ambit_worker_restarts",
            "Workers that died before this one, while the container and its listeners lived on",
            restarts,
        );
    }

    /// The sockets of the pod `uid`, which is in `netns`.
    pub(crate) fn sockets<'a>(&'a self, uid: &'a str, netns: &'a Netns) -> Sockets<'a> {
        let line = self.0.as_ref();
        let back = line.and_then(|line| {
            let back = line.back().remove(uid)?;
            if back.netns == netns.id() {
                return Some(back);
            }
            // The sandbox was made anew.
            line.tell(RELEASE, back.number);
            None
        });
        Sockets {
            netns,
            uid,
            line,
            back,
            out: Vec::new(),
            fresh: false,
        }
    }

    /// The pods of this node are these: what others left behind is closed.
    pub(crate) fn only(&self, uids: &BTreeSet<Arc<str>>) {
        self.close(|uid| !uids.contains(uid));
    }

    /// The pod has left.
    pub(crate) fn forget(&self, uid: &str) {
        self.close(|other| other == uid);
    }

    fn close(&self, which: impl Fn(&str) -> bool) {
        let Some(line) = &self.0 else {
            return;
        };
        line.back().retain(|uid, back| {
            let close = which(uid);
            if close {
                line.tell(RELEASE, back.number);
                tracing::info!(%uid, "the pod has left while no worker lived; its listeners are closed");
            }
            !close
        });
    }
}

impl Back {
    fn of(packet: Packet) -> Option<(String, Self)> {
        let (verb, number, rest) = parse(&packet.bytes)?;
        let Held { uid, netns, spots } = Held::parse(rest)?;
        let right = matches!(verb, HOLD | HOLD_TAKEN)
            && !packet.truncated
            && spots.len() == packet.fds.len();
        let back = Self {
            number,
            netns,
            taken: verb == HOLD_TAKEN,
            sockets: spots.into_iter().zip(packet.fds).collect(),
        };
        right.then_some((uid, back))
    }
}

impl Sockets<'_> {
    /// Listens on `port` of all addresses: [`Netns::listen`].
    pub(crate) fn listen(&mut self, port: u16) -> io::Result<TcpListener> {
        let spot = Spot::Everywhere(port);
        let (listener, fresh) = match self.given(spot) {
            Some(socket) => (TcpListener::from_std(socket.into())?, false),
            None => (self.netns.listen(port)?, true),
        };
        self.handed_out(spot, &listener, fresh)?;
        Ok(listener)
    }

    /// Listens on exactly `address`: [`Netns::listen_on`].
    pub(crate) fn listen_on(&mut self, address: SocketAddr) -> io::Result<TcpListener> {
        let spot = Spot::Tcp(address);
        let (listener, fresh) = match self.given(spot) {
            Some(socket) => (TcpListener::from_std(socket.into())?, false),
            None => (self.netns.listen_on(address)?, true),
        };
        self.handed_out(spot, &listener, fresh)?;
        Ok(listener)
    }

    /// A UDP socket bound to `address`: [`Netns::udp`].
    pub(crate) fn udp(&mut self, address: SocketAddr) -> io::Result<UdpSocket> {
        let spot = Spot::Udp(address);
        let (bound, fresh) = match self.given(spot) {
            Some(socket) => (UdpSocket::from_std(socket.into())?, false),
            None => (self.netns.udp(address)?, true),
        };
        self.handed_out(spot, &bound, fresh)?;
        Ok(bound)
    }

    /// All are open: they are held from now on.
    pub(crate) fn keep(mut self) -> Kept {
        let Some(line) = self.line else {
            return Kept::default();
        };
        // Some are new, or some were not wanted any more: as a whole.
        let same = self
            .back
            .take_if(|back| !self.fresh && back.sockets.is_empty());
        let number = match &same {
            Some(back) => Some(back.number),
            None => line.hold(self.uid, self.netns.id(), std::mem::take(&mut self.out)),
        };
        Kept {
            held: number.map(|number| (line.clone(), number)),
            taken: AtomicBool::new(same.is_some_and(|back| back.taken)),
            released: AtomicBool::new(false),
        }
    }

    fn given(&mut self, spot: Spot) -> Option<OwnedFd> {
        let sockets = &mut self.back.as_mut()?.sockets;
        let at = sockets.iter().position(|(of, _)| *of == spot)?;
        Some(sockets.swap_remove(at).1)
    }

    fn handed_out(&mut self, spot: Spot, socket: &impl AsFd, fresh: bool) -> io::Result<()> {
        self.fresh |= fresh;
        if self.line.is_some() {
            let duplicate = socket.as_fd().try_clone_to_owned()?;
            self.out.push((spot, duplicate));
        }
        Ok(())
    }
}

impl Drop for Sockets<'_> {
    /// What was held of the pod and is not held on to any more.
    fn drop(&mut self) {
        if let (Some(line), Some(back)) = (self.line, &self.back) {
            line.tell(RELEASE, back.number);
        }
    }
}

impl Kept {
    pub(crate) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Whether a connection has come in by them, in the life of any worker.
    pub(crate) fn has_taken(&self) -> bool {
        self.taken.load(Relaxed)
    }

    /// A connection has come in by them.
    pub(crate) fn taken(&self) {
        // Looked at first: it is written once in a pod's life, and read with every connection.
        if self.has_taken() || self.taken.swap(true, Relaxed) {
            return;
        }
        if let Some((line, number)) = &self.held {
            line.tell(TAKEN, *number);
        }
    }

    /// They end with this worker: the keeper closes its own. Before ours are closed, or connections would go on
    /// coming to sockets that nobody serves.
    pub(crate) fn release(&self) {
        if let Some((line, number)) = &self.held
            && !self.released.swap(true, Relaxed)
        {
            line.tell(RELEASE, *number);
        }
    }
}

impl Line {
    fn back(&self) -> MutexGuard<'_, BTreeMap<String, Back>> {
        // Nothing panics while it is held.
        self.back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, uid: &str, netns: NetnsId, sockets: Vec<(Spot, OwnedFd)>) -> Option<u64> {
        let number = self.next.fetch_add(1, Relaxed);
        let (spots, sockets): (Vec<_>, Vec<_>) = sockets.into_iter().unzip();
        let uid = uid.to_owned();
        let held = Held { uid, netns, spots };
        let sent = match held.message(number) {
            Some(message) => send(&self.socket, &message, &sockets).map_err(io::Error::from),
            None => Err(io::ErrorKind::InvalidInput.into()),
        };
        if let Err(error) = &sent {
            tracing::error!(uid = %held.uid, %error, "the keeper does not hold the pod's listeners; should this worker die, connections to it are refused");
        }
        sent.ok().map(|()| number)
    }

    fn tell(&self, verb: u8, number: u64) {
        if let Err(error) = send(&self.socket, &head(verb, number), &[]) {
            tracing::error!(verb = %char::from(verb), %error, "the keeper does not listen");
        }
    }
}

/// Seconds that a word may take from one to the other: none, unless the machine stands still.
const PATIENCE: i64 = 5;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;
    use crate::netns::Options;

    const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// A worker whose keeper held a listener of a pod in our own namespace, as number 7; and the keeper's end.
    fn held(netns: &Netns) -> (Keeper, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
        let (keeper, worker) = pair.unwrap();
        let listener = std::net::TcpListener::bind(ANY).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (uid, netns, spots) = ("uid".into(), netns.id(), vec![Spot::Tcp(ANY)]);
        let message = Held { uid, netns, spots }.message(7).unwrap();
        send(&keeper, &message, &[OwnedFd::from(listener)]).unwrap();
        send(&keeper, &head(COMPLETE, 0), &[]).unwrap();
        (Keeper::on(worker, 1).unwrap(), keeper)
    }

    /// What the keeper is told: each verb, number and how many sockets came along.
    fn told(keeper: &OwnedFd) -> Vec<(u8, u64, usize)> {
        let packets = std::iter::from_fn(|| receive(keeper.as_raw_fd()).ok());
        let read = |packet: Packet| {
            let (verb, number, _) = parse(&packet.bytes).unwrap();
            (verb, number, packet.fds.len())
        };
        packets.map(read).collect()
    }

    #[tokio::test]
    async fn a_socket_that_is_new_is_held_together_with_those_that_were() {
        let options = Options {
            mark: 0,
            keepalive: None,
            user_timeout: None,
            reuse_port: false,
            ipv6: false,
        };
        let netns = Netns::of_this_process(options).unwrap();
        let (worker, keeper) = held(&netns);
        let mut sockets = worker.sockets("uid", &netns);
        sockets.listen_on(ANY).unwrap();
        assert!(sockets.keep().is_held());
        assert!(told(&keeper).is_empty(), "it is held already");

        let (worker, keeper) = held(&netns);
        let mut sockets = worker.sockets("uid", &netns);
        sockets.listen_on(ANY).unwrap();
        sockets.udp(ANY).unwrap();
        assert!(sockets.keep().is_held());
        assert_eq!(told(&keeper), [(HOLD, 8, 2), (RELEASE, 7, 0)]);
    }
}
