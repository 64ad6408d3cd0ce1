//! Who the clients are: asked of the control plane by address, when they first arrive. So are the gateways of other
//! networks, when an endpoint that is behind one is first called.
//!
//! An address leaves as a demand; its workload arrives in the mesh. Strangers decide how many addresses there are, so
//! only so many are followed: the one that was not seen for longest is given up for a new one.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mesh::{Demand, Mesh, Network, Snapshot, Workload};
use tokio::sync::mpsc;

/// The clients that are followed.
#[derive(Debug)]
pub struct Clients {
    mesh: Arc<Mesh>,
    network: Network,
    demands: mpsc::Sender<Demand>,
    asked: Mutex<Asked>,
}

/// Addresses that were asked for, and when each was seen last.
#[derive(Debug)]
struct Asked {
    seen: HashMap<Arc<str>, u64>,
    by_time: BTreeMap<u64, Arc<str>>,
    now: u64,
    most: usize,
}

/// What seeing an address leads to.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Known,
    New { given_up: Option<Arc<str>> },
}

impl Clients {
    /// Of a network. Our own addresses are asked for at once, and never given up.
    pub(super) fn new(
        mesh: Arc<Mesh>,
        network: &str,
        own: impl Iterator<Item = IpAddr>,
    ) -> (Self, mpsc::Receiver<Demand>) {
        let (demands, receiver) = mpsc::channel(WAITING);
        let network = Network::new(network);
        for address in own.take(WAITING) {
            // The channel is empty, and the receiver is here.
            let _ = demands.try_send(Demand::Want(alias(&network, address)));
        }
        let asked = Mutex::new(Asked::new(MOST));
        let clients = Self {
            mesh,
            network,
            demands,
            asked,
        };
        (clients, receiver)
    }

    /// The workload at an address of our network. A new address is asked for, and waited for a moment: a client whose
    /// workload comes later is one of unknown workload until its next connection.
    pub async fn find(&self, address: IpAddr) -> Option<Arc<Workload>> {
        let is_new = self.follow(alias(&self.network, address));
        let look = |snapshot: &Snapshot| snapshot.workload_at(&self.network, address).cloned();
        self.arrival(look, is_new.then_some(PATIENCE)).await
    }

    /// What `look` finds in the mesh once that has been told of one of these names, which are followed from now on and waited
    /// for as long as that.
    pub async fn told_of<T>(
        &self,
        names: impl IntoIterator<Item = Arc<str>>,
        within: Duration,
        look: impl Fn(&Snapshot) -> Option<T>,
    ) -> Option<T> {
        for name in names {
            self.follow(name);
        }
        self.arrival(look, Some(within)).await
    }

    async fn arrival<T>(
        &self,
        look: impl Fn(&Snapshot) -> Option<T>,
        within: Option<Duration>,
    ) -> Option<T> {
        let mut changed = self.mesh.changed();
        if let Some(found) = look(&self.mesh.load()) {
            return Some(found);
        }
        let arrives = async {
            while changed.changed().await.is_ok() {
                if let Some(found) = look(&self.mesh.load()) {
                    return Some(found);
                }
            }
            None
        };
        tokio::time::timeout(within?, arrives).await.ok().flatten()
    }

    /// Sees to it that a name is followed. Whether it was not yet.
    fn follow(&self, name: Arc<str>) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let Seen::New { given_up } = asked.see(&name) else {
            return false;
        };
        // While there is no stream demands wait, and when too many do, this one is made again by
        // the client's next connection.
        if self.demands.try_send(Demand::Want(name.clone())).is_err() {
            asked.forget(&name);
            return false;
        }
        drop(asked);
        if let Some(given_up) = given_up {
            // Lost where the queue is full: then its workload is followed in vain until the next stream.
            let _ = self.demands.try_send(Demand::Leave(given_up));
        }
        true
    }
}

impl Asked {
    fn new(most: usize) -> Self {
        Self {
            seen: HashMap::new(),
            by_time: BTreeMap::new(),
            now: 0,
            most,
        }
    }

    fn see(&mut self, name: &Arc<str>) -> Seen {
        self.now += 1;
        let before = self.seen.insert(name.clone(), self.now);
        self.by_time.insert(self.now, name.clone());
        if let Some(before) = before {
            self.by_time.remove(&before);
            return Seen::Known;
        }
        let mut given_up = None;
        if self.seen.len() > self.most
            && let Some((_, oldest)) = self.by_time.pop_first()
        {
            self.seen.remove(&oldest);
            given_up = Some(oldest);
        }
        Seen::New { given_up }
    }

    fn forget(&mut self, name: &str) {
        if let Some(at) = self.seen.remove(name) {
            self.by_time.remove(&at);
        }
    }
}

/// How the control plane is asked for an address.
pub(crate) fn alias(network: &Network, address: IpAddr) -> Arc<str> {
    format!("{network}/{}", address.to_canonical()).into()
}

/// Clients that are followed: of 10,000 all but a few are known when they come again.
const MOST: usize = 8192;
/// Demands that the stream has not taken yet.
const WAITING: usize = 256;
/// An answer from the control plane takes a round trip; a client should not wait for a lost one.
const PATIENCE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_not_seen_for_longest_is_given_up() {
        let mut asked = Asked::new(2);
        let name = |text: &str| Arc::<str>::from(text);
        let new = |given_up: Option<&str>| Seen::New {
            given_up: given_up.map(Arc::from),
        };
        assert_eq!(asked.see(&name("a")), new(None));
        assert_eq!(asked.see(&name("b")), new(None));
        assert_eq!(asked.see(&name("a")), Seen::Known);
        assert_eq!(asked.see(&name("c")), new(Some("b")));
        assert_eq!(asked.see(&name("b")), new(Some("a")));
        assert_eq!((asked.seen.len(), asked.by_time.len()), (2, 2));
    }

    #[tokio::test]
    async fn a_client_is_asked_for_once_and_waited_for_until_it_arrives() {
        let (mesh, mut writer) = Mesh::new();
        let own = "10.0.0.7".parse().unwrap();
        let (clients, mut demands) = Clients::new(mesh, "", [own].into_iter());
        let arrives = async {
            let mut asked = Vec::new();
            for _ in 0..2 {
                asked.push(demands.recv().await.unwrap());
            }
            let mut update = mesh::Update::default();
            update.set_workload(api::workload::Workload {
                uid: "client".to_owned(),
                addresses: vec![vec![10, 0, 0, 1].into()],
                ..Default::default()
            });
            writer.apply(update);
            asked
        };
        let address = "10.0.0.1".parse().unwrap();
        let (found, asked) = tokio::join!(clients.find(address), arrives);
        assert_eq!(&*found.unwrap().uid, "client");
        let wanted = |name: &str| Demand::Want(name.into());
        assert_eq!(asked, [wanted("/10.0.0.7"), wanted("/10.0.0.1")]);
        assert_eq!(&*clients.find(address).await.unwrap().uid, "client");
        assert!(demands.try_recv().is_err(), "not asked again");
    }
}
