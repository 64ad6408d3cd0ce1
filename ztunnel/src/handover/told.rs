//! What a connection's next keeper must know beside keys and bytes: whose it is, and what its reports will say.
//!
//! Objects of the mesh go by their names: the next keeper has its own snapshot, and judges and labels by that. Times go as
//! ages, because clocks of processes differ.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hbone::{Authority, Identity};

use mesh::{Service, Snapshot, Workload};

use super::bytes::{Malformed, Reader, Writer};
use crate::connections::{Live, Protocol};
use crate::pod::Pod;
use crate::traffic::{Ends, Reporter};

/// One connection: a tunnel with its streams, or two sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) pod: PodName,
    pub(crate) way: Way,
    /// One for each stream, by its number; of two sockets one, with number 0.
    pub(crate) carried: Vec<(u32, Told)>,
}

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodName {
    pub(crate) uid: String,
    /// Device and inode of its network namespace: a pod made anew under its name is another.
    pub(crate) netns: (u64, u64),
}

/// What is carried how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Way {
    /// A tunnel that arrived at the pod.
    Arrived { peer: SocketAddr, local: SocketAddr },
    /// A tunnel that was opened for the pod.
    Opened,
    /// Plain bytes to or from the pod.
    Plain,
    /// Joined to another pod of this node, which reports too.
    Joined { other: PodName, there: Box<Told> },
}

/// A report that goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) reporter: Reporter,
    pub(crate) protocol: Protocol,
    /// Since it was accepted.
    pub(crate) age: Duration,
    pub(crate) source: SocketAddr,
    pub(crate) hop: SocketAddr,
    pub(crate) original: SocketAddr,
    pub(crate) actual: SocketAddr,
    pub(crate) ends: EndNames,
    /// What the source said of itself.
    pub(crate) said: Option<String>,
    pub(crate) tunnelled: Option<Authority>,
    pub(crate) note: Option<String>,
}

/// [`crate::traffic::Ends`] by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EndNames {
    pub(crate) source: Option<String>,
    pub(crate) source_identity: Option<Identity>,
    pub(crate) destination: Option<String>,
    pub(crate) destination_identity: Option<Identity>,
    /// Namespace and host name.
    pub(crate) service: Option<(String, String)>,
    pub(crate) secured: bool,
}

const ARRIVED: u8 = 1;
const OPENED: u8 = 2;
const PLAIN: u8 = 3;
const JOINED: u8 = 4;

impl Account {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.pod.write(&mut out);
        match &self.way {
            Way::Arrived { peer, local } => {
                out.u8(ARRIVED);
                out.address(*peer);
                out.address(*local);
            }
            Way::Opened => out.u8(OPENED),
            Way::Plain => out.u8(PLAIN),
            Way::Joined { other, there } => {
                out.u8(JOINED);
                other.write(&mut out);
                there.write(&mut out);
            }
        }
        // No tunnel has more streams than 32 bits can count.
        out.u32(self.carried.len() as u32);
        for (stream, told) in &self.carried {
            out.u32(*stream);
            told.write(&mut out);
        }
        out.0
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut bytes = Reader::new(bytes);
        let pod = PodName::read(&mut bytes)?;
        let way = match bytes.u8()? {
            ARRIVED => Way::Arrived {
                peer: bytes.address()?,
                local: bytes.address()?,
            },
            OPENED => Way::Opened,
            PLAIN => Way::Plain,
            JOINED => Way::Joined {
                other: PodName::read(&mut bytes)?,
                there: Box::new(Told::read(&mut bytes)?),
            },
            _ => return Err(Malformed::Not("way")),
        };
        let mut carried: Vec<(u32, Told)> = Vec::new();
        for _ in 0..bytes.u32()? {
            let stream = bytes.u32()?;
            if carried.last().is_some_and(|(last, _)| *last >= stream) {
                return Err(Malformed::Not("list of streams in order"));
            }
            carried.push((stream, Told::read(&mut bytes)?));
        }
        let sockets = matches!(way, Way::Plain | Way::Joined { .. });
        if sockets && !matches!(carried[..], [(0, _)]) {
            return Err(Malformed::Not("pair of sockets with one report"));
        }
        bytes.end()?;
        Ok(Self { pod, way, carried })
    }
}

impl Told {
    /// What the next keeper of this connection must know.
    pub(super) fn of(live: &Live) -> Self {
        let story = &live.story;
        Self {
            reporter: live.reporter,
            protocol: live.protocol,
            age: story.started.elapsed(),
            source: live.source,
            hop: story.hop,
            original: live.original,
            actual: live.actual,
            ends: EndNames::of(&story.ends),
            said: story.said.as_deref().map(str::to_owned),
            tunnelled: story.tunnelled.clone(),
            note: story.note.get().map(|note| note.to_string()),
        }
    }
}

impl EndNames {
    fn of(ends: &Ends) -> Self {
        let uid = |workload: &Arc<Workload>| workload.uid.to_string();
        let name = |service: &Arc<Service>| {
            let Service {
                namespace,
                hostname,
                ..
            } = &**service;
            (namespace.to_string(), hostname.to_string())
        };
        Self {
            source: ends.source.as_ref().map(uid),
            source_identity: ends.source_identity.clone(),
            destination: ends.destination.as_ref().map(uid),
            destination_identity: ends.destination_identity.clone(),
            service: ends.service.as_ref().map(name),
            secured: ends.secured,
        }
    }

    /// The objects of these names, as far as `snapshot` has them (still).
    pub(crate) fn found_in(&self, snapshot: &Snapshot) -> Ends {
        let workload = |uid: &Option<String>| snapshot.workload(uid.as_deref()?).cloned();
        let service = self.service.as_ref();
        let service = service.and_then(|(namespace, host)| snapshot.service(namespace, host));
        Ends {
            source: workload(&self.source),
            source_identity: self.source_identity.clone(),
            destination: workload(&self.destination),
            destination_identity: self.destination_identity.clone(),
            service: service.cloned(),
            secured: self.secured,
        }
    }
}

impl PodName {
    pub(super) fn of(pod: &Pod) -> Self {
        Self {
            uid: pod.uid.to_string(),
            netns: pod.netns.id().numbers(),
        }
    }

    fn write(&self, out: &mut Writer) {
        out.text(&self.uid);
        out.u64(self.netns.0);
        out.u64(self.netns.1);
    }

    fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            uid: bytes.text()?.to_owned(),
            netns: (bytes.u64()?, bytes.u64()?),
        })
    }
}

impl Told {
    fn write(&self, out: &mut Writer) {
        out.bool(self.reporter == Reporter::Destination);
        out.bool(self.protocol == Protocol::Tcp);
        out.u64(u64::try_from(self.age.as_nanos()).unwrap_or(u64::MAX));
        for address in [self.source, self.hop, self.original, self.actual] {
            out.address(address);
        }
        self.ends.write(out);
        out.maybe(self.said.as_deref(), Writer::text);
        let tunnelled = self.tunnelled.as_ref().map(Authority::to_string);
        out.maybe(tunnelled.as_deref(), Writer::text);
        out.maybe(self.note.as_deref(), Writer::text);
    }

    fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        let reporter = match bytes.bool()? {
            false => Reporter::Source,
            true => Reporter::Destination,
        };
        let protocol = match bytes.bool()? {
            false => Protocol::Hbone,
            true => Protocol::Tcp,
        };
        Ok(Self {
            reporter,
            protocol,
            age: Duration::from_nanos(bytes.u64()?),
            source: bytes.address()?,
            hop: bytes.address()?,
            original: bytes.address()?,
            actual: bytes.address()?,
            ends: EndNames::read(bytes)?,
            said: bytes.maybe(owned)?,
            tunnelled: bytes.maybe(|bytes| parsed(bytes, "authority"))?,
            note: bytes.maybe(owned)?,
        })
    }
}

impl EndNames {
    fn write(&self, out: &mut Writer) {
        let identity = |identity: &Option<Identity>| identity.as_ref().map(Identity::to_string);
        out.maybe(self.source.as_deref(), Writer::text);
        out.maybe(identity(&self.source_identity).as_deref(), Writer::text);
        out.maybe(self.destination.as_deref(), Writer::text);
        let destination = identity(&self.destination_identity);
        out.maybe(destination.as_deref(), Writer::text);
        out.maybe(self.service.as_ref(), |out, (namespace, host)| {
            out.text(namespace);
            out.text(host);
        });
        out.bool(self.secured);
    }

    fn read(bytes: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            source: bytes.maybe(owned)?,
            source_identity: bytes.maybe(|bytes| parsed(bytes, "identity"))?,
            destination: bytes.maybe(owned)?,
            destination_identity: bytes.maybe(|bytes| parsed(bytes, "identity"))?,
            service: bytes.maybe(|bytes| Ok((owned(bytes)?, owned(bytes)?)))?,
            secured: bytes.bool()?,
        })
    }
}

fn owned(bytes: &mut Reader<'_>) -> Result<String, Malformed> {
    bytes.text().map(str::to_owned)
}

fn parsed<T: std::str::FromStr>(
    bytes: &mut Reader<'_>,
    what: &'static str,
) -> Result<T, Malformed> {
    bytes.text()?.parse().map_err(|_| Malformed::Not(what))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = SocketAddr> {
        let ip = prop_oneof![
            any::<[u8; 4]>().prop_map(|ip| IpAddr::from(Ipv4Addr::from(ip))),
            any::<[u8; 16]>().prop_map(|ip| IpAddr::from(Ipv6Addr::from(ip))),
        ];
        (ip, any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    fn identity() -> impl Strategy<Value = Option<Identity>> {
        let parts = ("[a-z]{1,8}", "[a-z]{1,8}", "[a-z]{1,8}");
        let identity = parts.prop_map(|(a, b, c)| Identity::new(&a, &b, &c).unwrap());
        prop::option::of(identity)
    }

    fn name() -> impl Strategy<Value = Option<String>> {
        prop::option::of(".{0,12}")
    }

    fn ends() -> impl Strategy<Value = EndNames> {
        let service = prop::option::of((".{0,8}", ".{0,8}"));
        let named = (name(), name(), service);
        (named, identity(), identity(), any::<bool>()).prop_map(
            |((source, destination, service), of_source, of_destination, secured)| EndNames {
                source,
                source_identity: of_source,
                destination,
                destination_identity: of_destination,
                service,
                secured,
            },
        )
    }

    fn told() -> impl Strategy<Value = Told> {
        let addresses = [address(), address(), address(), address()];
        let tunnelled = prop::option::of("[a-z]{1,9}:[1-9][0-9]{0,3}");
        let texts = (name(), name(), tunnelled);
        let numbers = (any::<u64>(), any::<bool>(), any::<bool>());
        (addresses, ends(), texts, numbers).prop_map(
            |(
                [source, hop, original, actual],
                ends,
                (said, note, tunnelled),
                (age, there, tcp),
            )| {
                Told {
                    reporter: if there {
                        Reporter::Destination
                    } else {
                        Reporter::Source
                    },
                    protocol: if tcp { Protocol::Tcp } else { Protocol::Hbone },
                    age: Duration::from_nanos(age),
                    source,
                    hop,
                    original,
                    actual,
                    ends,
                    said,
                    tunnelled: tunnelled.map(|text| text.parse().unwrap()),
                    note,
                }
            },
        )
    }

    fn pod() -> impl Strategy<Value = PodName> {
        (".{0,12}", any::<(u64, u64)>()).prop_map(|(uid, netns)| PodName { uid, netns })
    }

    fn account() -> impl Strategy<Value = Account> {
        let streams = prop::collection::btree_map(any::<u32>(), told(), 0..4);
        let streams = streams.prop_map(|streams| streams.into_iter().collect());
        let arrived = (address(), address()).prop_map(|(peer, local)| Way::Arrived { peer, local });
        let joined = (pod(), told()).prop_map(|(other, there)| {
            let there = Box::new(there);
            Way::Joined { other, there }
        });
        let tunnel = (prop_oneof![arrived, Just(Way::Opened)], streams);
        let pair = (prop_oneof![joined, Just(Way::Plain)], told());
        let pair = pair.prop_map(|(way, told)| (way, vec![(0, told)]));
        (pod(), prop_oneof![tunnel, pair]).prop_map(|(pod, (way, carried))| Account {
            pod,
            way,
            carried,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_account_is_read_back_and_nothing_less_or_more_is_one(account in account(), at: prop::sample::Index) {
            let bytes = account.write();
            prop_assert_eq!(Account::read(&bytes), Ok(account));
            prop_assert!(Account::read(&bytes[..at.index(bytes.len())]).is_err());
            prop_assert!(Account::read(&[&bytes[..], b"x"].concat()).is_err());
        }

        #[test]
        fn changed_bytes_are_refused_or_are_another_account(
            account in account(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = account.write();
            for (index, byte) in changes {
                *index.get_mut(&mut bytes) = byte;
            }
            if let Ok(other) = Account::read(&bytes) {
                prop_assert_eq!(Account::read(&other.write()), Ok(other));
            }
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = Account::read(&bytes);
        }
    }

    #[test]
    fn a_pair_of_sockets_has_exactly_one_report_of_its_own() {
        let pod = PodName {
            uid: "a".into(),
            netns: (1, 2),
        };
        let none = Account {
            pod,
            way: Way::Plain,
            carried: vec![],
        };
        assert!(Account::read(&none.write()).is_err());
    }
}
