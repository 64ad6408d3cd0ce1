//! WorkloadEntries of machines that come and go: made from their WorkloadGroup when they come, removed a while after they
//! went, and saying in between how they do.
//!
//! 1. a machine comes: whether it may have an entry                                    ([`Registrar::arrive`])
//! 2. it says how it does: its entry is written, into a folder or a cluster            ([`Presence::report`], [`Place`])
//! 3. it goes; whoever looks after its entry says so on it, and removes it later       ([`Registrar::tend`], [`entry::judge`], pure)
//!
//! In a cluster the replica that a machine is connected to looks after its entry; of one that has died all others do, and the API
//! server lets one of them be first. Until the machine says how it does it has no entry: nobody calls what may not answer.
//!
//! An entry that somebody else wrote is left alone, whatever machine comes; so is an address that somebody else has.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::k8s::istio::WorkloadEntry;
use api::k8s::objects::{Kind, ObjectKey, WorkloadGroup};
use arc_swap::ArcSwap;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Machine;
use super::entry::{self, Here, LINGER, Standing, Step, judge};
use super::folder::Folder;
use super::objects::{Objects, Wanted};
use super::replicas::Replicas;
use crate::catalog::{Reader, Type};
use crate::feed::{Entries, Groups};

/// Keeps the entries.
pub struct Registrar {
    groups: watch::Receiver<Groups>,
    entries: Arc<ArcSwap<Entries>>,
    catalog: Reader,
    network: Arc<ArcSwap<String>>,
    /// The name of our cluster, in the names of resources.
    cluster: String,
    place: Place,
    replicas: Replicas,
    grace: Duration,
    /// By `namespace/name`.
    here: Mutex<HashMap<String, Stay>>,
    /// Somebody came or went.
    stirred: Notify,
}

/// Where entries are written.
pub enum Place {
    /// A configuration directory.
    Directory(Folder),
    /// A cluster.
    Cluster(Objects),
}

/// What is seen of the mesh.
pub struct Views {
    /// The WorkloadGroups there are.
    pub groups: watch::Receiver<Groups>,
    /// The WorkloadEntries there are.
    pub entries: Arc<ArcSwap<Entries>>,
    /// What is served.
    pub catalog: Reader,
    /// The cluster's own network, that of groups which name none.
    pub network: Arc<ArcSwap<String>>,
}

/// A machine has no entry.
#[derive(Debug, thiserror::Error)]
pub enum NotRegistered {
    /// The group its token names.
    #[error("there is no WorkloadGroup {0}")]
    NoGroup(String),
    /// The group is for others.
    #[error(
        "WorkloadGroup {group} is for service account {theirs:?}, and the machine's is {own:?}"
    )]
    Account {
        /// `namespace/name`
        group: String,
        /// Of the group's template.
        theirs: String,
        /// Of the machine's token.
        own: String,
    },
    /// Two at one address would get each other's traffic.
    #[error("its address {address} is that of {other}")]
    Taken {
        /// Of the machine.
        address: String,
        /// Whose it is: the name of a resource.
        other: String,
    },
    /// Somebody wrote one by hand.
    #[error("WorkloadEntry {0} is there already, and was not made for a machine")]
    Foreign(String),
    /// The machine is connected to another replica by now.
    #[error(
        "WorkloadEntry {0} says that its machine has come to another replica of the control plane"
    )]
    Moved(String),
    /// The cluster has no such kind.
    #[error("WorkloadEntries are not defined in this cluster; install the chart's definitions")]
    NotDefined,
    /// The disk.
    #[error("the entry cannot be written: {0}")]
    Write(#[from] io::Error),
    /// The API server.
    #[error("the entry cannot be written: {0}")]
    Api(String),
}

impl NotRegistered {
    /// Whether it may be otherwise in a while without anybody doing anything.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Write(_) | Self::Api(_) | Self::NotDefined)
    }
}

/// A machine that is connected. When dropped it has gone.
pub struct Presence {
    registrar: Arc<Registrar>,
    machine: Arc<Machine>,
    standing: Standing,
    /// Its entry was written, for this presence.
    written: AtomicBool,
    taken_out: AtomicBool,
}

/// A machine that is or was connected here.
#[derive(Debug)]
struct Stay {
    /// Its streams.
    count: u32,
    /// Since when there are none.
    left: Instant,
    taken_out: bool,
}

impl Registrar {
    /// One that writes into a place; a machine that went may be away for `grace` before its entry is removed. Whoever makes one
    /// lets it [`tend`](Self::tend) the entries.
    pub fn new(
        place: Place,
        replicas: Replicas,
        grace: Duration,
        cluster: &str,
        views: Views,
    ) -> Arc<Self> {
        Arc::new(Self {
            groups: views.groups,
            entries: views.entries,
            catalog: views.catalog,
            network: views.network,
            cluster: cluster.into(),
            place,
            replicas,
            grace,
            here: Mutex::default(),
            stirred: Notify::new(),
        })
    }

    /// In a configuration directory.
    pub fn in_directory(config: &Path, grace: Duration, cluster: &str, views: Views) -> Arc<Self> {
        let place = Place::Directory(Folder::of(config));
        Self::new(place, Replicas::alone(), grace, cluster, views)
    }

    /// A machine is there; without a group its entry is its operator's business.
    ///
    /// # Errors
    /// Why it gets no entry.
    pub fn arrive(self: &Arc<Self>, machine: Arc<Machine>) -> Result<Presence, NotRegistered> {
        if let Some(group) = self.group(&machine)? {
            self.may_have(&machine, &group)?;
        }
        let mut here = self.here();
        let stay = here.entry(machine.reference()).or_insert_with(Stay::new);
        stay.count = stay.count.saturating_add(1);
        stay.taken_out = false;
        drop(here);
        self.stirred.notify_one();
        Ok(Presence {
            registrar: self.clone(),
            machine,
            standing: Standing::connected(self.replicas.me()),
            written: AtomicBool::new(false),
            taken_out: AtomicBool::new(false),
        })
    }

    /// The group of a machine, if its token names one.
    ///
    /// # Errors
    /// When it is not there, or for others.
    pub fn group(&self, machine: &Machine) -> Result<Option<Arc<WorkloadGroup>>, NotRegistered> {
        let join = &machine.join;
        let Some(name) = &join.group else {
            return Ok(None);
        };
        let reference = format!("{}/{name}", join.namespace);
        let key = ObjectKey::new(Kind::WorkloadGroup, &join.namespace, name);
        let group = self.groups.borrow().get(&key).cloned();
        let group = group.ok_or_else(|| NotRegistered::NoGroup(reference.clone()))?;
        let theirs = match &*group.spec.template.service_account {
            "" => "default",
            account => account,
        };
        if theirs != join.service_account {
            return Err(NotRegistered::Account {
                group: reference,
                theirs: theirs.into(),
                own: join.service_account.clone(),
            });
        }
        Ok(Some(group))
    }

    /// Wakes when groups change.
    pub fn changes(&self) -> watch::Receiver<Groups> {
        self.groups.clone()
    }

    fn may_have(&self, machine: &Machine, group: &WorkloadGroup) -> Result<(), NotRegistered> {
        let join = &machine.join;
        if let Some(entry) = self.entries.load().get(&key(machine))
            && !is_ours(entry)
        {
            return Err(NotRegistered::Foreign(machine.reference()));
        }
        let own = format!(
            "{}/networking.istio.io/WorkloadEntry/{}/{}",
            self.cluster, join.namespace, join.name
        );
        let address = machine.address.to_string();
        let own_network = self.network.load();
        let network = match &*group.spec.template.network {
            "" => own_network.as_str(),
            named => named,
        };
        let place = format!("{network}/{address}");
        let catalog = self.catalog.load();
        let other = catalog
            .of(Type::Address)
            .values()
            .find(|entry| *entry.name != *own && entry.aliases.iter().any(|it| **it == *place));
        match other {
            Some(other) => Err(NotRegistered::Taken {
                address,
                other: other.name.to_string(),
            }),
            None => Ok(()),
        }
    }

    /// Notes how a machine does that may be connected to another replica: on the entry that it has; `false` when it has none.
    ///
    /// # Errors
    /// When that cannot be written.
    pub async fn note(
        &self,
        machine: &Machine,
        unhealthy: Option<&str>,
    ) -> Result<bool, NotRegistered> {
        let (Some(group), Place::Cluster(objects)) = (self.group(machine)?, &self.place) else {
            // Over a directory there is one replica, and it is told by the machine's presence.
            return Ok(true);
        };
        let entry = entry::shape(machine, &group, group.spec.probe.is_some());
        let standing = Standing::gone();
        let wanted = Wanted {
            entry: &entry,
            standing: &standing,
            unhealthy: unhealthy.map(short),
            me: self.replicas.me(),
            takes_over: false,
        };
        objects.note(&wanted).await
    }

    /// Looks after entries, until `stop`: those of machines that went are marked, and removed in the end.
    pub async fn tend(self: Arc<Self>, stop: CancellationToken) {
        let needed = || self.replicas_matter();
        let signs = self.replicas.run(needed, stop.clone());
        let work = async {
            let mut watch = Watch::default();
            let mut failed = HashMap::new();
            let mut pause = LOOK;
            loop {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.stirred.notified() => tokio::time::sleep(LOOK / 10).await,
                }
                pause = LOOK;
                let mut in_a_row = 0;
                let due = in_turn(self.look(&mut watch), &mut failed, Instant::now());
                for (key, standing, step) in due {
                    let Err(error) = self.act(&key, &standing, step).await else {
                        failed.remove(&key);
                        in_a_row = 0;
                        continue;
                    };
                    tracing::warn!(entry = %key, %error, "what is left of a machine that went stays for now");
                    failed.insert(key, Instant::now());
                    in_a_row += 1;
                    // What is wrong with several is wrong with the others too.
                    if in_a_row == SEVERAL {
                        pause = AFTER_A_FAILURE;
                        break;
                    }
                }
            }
        };
        let work = stop.run_until_cancelled(work);
        tokio::join!(signs, work);
    }

    /// What is to be done about which entries.
    fn look(&self, watch: &mut Watch) -> Vec<Due> {
        let now = Instant::now();
        let entries = self.entries.load_full();
        let ours = entries.iter().filter(|(_, entry)| is_ours(entry));
        let mut due = Vec::new();
        let mut fresh = HashMap::new();
        for (key, entry) in ours {
            let standing = standing(entry);
            let since = watch.since(key, &standing, now);
            let (here, me) = (self.stay(key, now), self.replicas.me());
            let ours = standing.is_at(me);
            let silent = match &standing {
                Standing::Connected { by, .. } => self.replicas.is_silent(by),
                Standing::Gone { .. } => false,
            };
            let step = judge(&standing, now - since, here, (ours, silent), self.grace);
            // It was removed already, and waits for somebody's finalizer.
            let goes = step == Step::Remove && entry.metadata.deletion_timestamp.is_some();
            if step != Step::Leave && !goes {
                due.push((key.clone(), standing.clone(), step));
            }
            fresh.insert(key.clone(), (standing, since));
        }
        watch.0 = fresh;
        // Of who left nothing need be known once its entry says so itself, or there is none.
        let forget = |stay: &Stay| stay.count == 0 && now - stay.left > FORGET;
        self.here().retain(|_, stay| !forget(stay));
        due
    }

    async fn act(
        &self,
        key: &ObjectKey,
        expected: &Standing,
        step: Step,
    ) -> Result<(), NotRegistered> {
        // It may have come back since.
        if self.stay(key, Instant::now()) == Here::Present {
            return Ok(());
        }
        let done = match (&self.place, step) {
            (_, Step::Leave) => false,
            (Place::Cluster(objects), Step::Mark) => objects.mark(key, expected).await?,
            (Place::Cluster(objects), Step::Remove) => objects.remove(key, expected).await?,
            (Place::Directory(folder), Step::Mark) => {
                let entry = self.entries.load().get(key).cloned();
                if let Some(entry) = entry {
                    folder.mark(WorkloadEntry::clone(&entry)).await?;
                }
                true
            }
            (Place::Directory(folder), Step::Remove) => {
                folder.remove(key).await?;
                true
            }
        };
        let machine = format!("{}/{}", key.namespace, key.name);
        match step {
            Step::Mark if done => tracing::info!(machine, "is not connected to anybody"),
            Step::Remove if done => tracing::info!(machine, "went, and its entry with it"),
            _ => {}
        }
        Ok(())
    }

    /// Whether it matters to anybody's machine which replicas are alive.
    fn replicas_matter(&self) -> bool {
        let any_here = self.here().values().any(|stay| stay.count > 0);
        let entries = self.entries.load();
        any_here
            || entries.values().any(|entry| {
                is_ours(entry) && matches!(standing(entry), Standing::Connected { .. })
            })
    }

    fn stay(&self, key: &ObjectKey, now: Instant) -> Here {
        let reference = format!("{}/{}", key.namespace, key.name);
        match self.here().get(&reference) {
            None => Here::Never,
            Some(stay) if stay.count > 0 => Here::Present,
            Some(stay) if stay.taken_out => Here::TakenOut,
            Some(stay) => Here::Left(now.saturating_duration_since(stay.left)),
        }
    }

    fn here(&self) -> MutexGuard<'_, HashMap<String, Stay>> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry about which something is to be done, what it says of its machine, and what is to be done.
type Due = (ObjectKey, Standing, Step);

/// With whom it `failed` lately waits, and then comes behind the others: an entry that the API server refuses takes nobody's turn. Pure.
fn in_turn(mut due: Vec<Due>, failed: &mut HashMap<ObjectKey, Instant>, now: Instant) -> Vec<Due> {
    failed.retain(|key, _| due.iter().any(|(it, ..)| it == key));
    let rests = |at: &Instant| now.saturating_duration_since(*at) < AFTER_A_FAILURE;
    due.retain(|(key, ..)| !failed.get(key).is_some_and(rests));
    due.sort_by_key(|(key, ..)| failed.get(key).copied());
    due
}

/// What entries say of their machines, and since when they have said so, as we saw it.
#[derive(Default)]
struct Watch(HashMap<ObjectKey, (Standing, Instant)>);

impl Watch {
    fn since(&self, key: &ObjectKey, standing: &Standing, now: Instant) -> Instant {
        let known = self.0.get(key).filter(|(before, _)| before == standing);
        known.map_or(now, |(_, since)| *since)
    }
}

impl Stay {
    fn new() -> Self {
        Self {
            count: 0,
            left: Instant::now(),
            taken_out: false,
        }
    }
}

impl Presence {
    /// How it does: well, or why not. Its entry says so then.
    ///
    /// # Errors
    /// When it has no entry any more, or that cannot be written.
    pub async fn report(&self, unhealthy: Option<&str>) -> Result<(), NotRegistered> {
        let (registrar, machine) = (&*self.registrar, &*self.machine);
        let Some(group) = registrar.group(machine)? else {
            return Ok(());
        };
        // Where nobody asks, it is well.
        let unhealthy = unhealthy.map(short).filter(|_| group.spec.probe.is_some());
        let takes_over = !self.written.load(Ordering::Acquire);
        match &registrar.place {
            Place::Directory(folder) => {
                let entry = entry::shape(machine, &group, false);
                folder.write(entry, &self.standing, unhealthy).await?;
            }
            Place::Cluster(objects) => {
                let entry = entry::shape(machine, &group, group.spec.probe.is_some());
                let wanted = Wanted {
                    entry: &entry,
                    standing: &self.standing,
                    unhealthy,
                    me: registrar.replicas.me(),
                    takes_over,
                };
                objects.write(&wanted).await?;
            }
        }
        self.written.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether its entry is there and says that it is here, as far as we have heard.
    pub fn stands(&self) -> bool {
        if self.machine.join.group.is_none() {
            return true;
        }
        let entries = self.registrar.entries.load();
        let entry = entries.get(&key(&self.machine));
        entry.is_some_and(|entry| standing(entry).is_at(self.registrar.replicas.me()))
    }

    /// The machine is known no more: it does not come back.
    pub fn taken_out(&self) {
        self.taken_out.store(true, Ordering::Release);
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut here = self.registrar.here();
        if let Some(stay) = here.get_mut(&self.machine.reference()) {
            stay.count = stay.count.saturating_sub(1);
            stay.left = Instant::now();
            // Who has come on another stream meanwhile was believed then.
            stay.taken_out = stay.count == 0 && self.taken_out.load(Ordering::Acquire);
        }
        drop(here);
        self.registrar.stirred.notify_one();
    }
}

fn key(machine: &Machine) -> ObjectKey {
    let join = &machine.join;
    ObjectKey::new(Kind::WorkloadEntry, &join.namespace, &join.name)
}

fn is_ours(entry: &WorkloadEntry) -> bool {
    let annotations = entry.metadata.annotations.as_ref();
    annotations.is_some_and(entry::is_ours)
}

fn standing(entry: &WorkloadEntry) -> Standing {
    let none = std::collections::BTreeMap::new();
    Standing::of(entry.metadata.annotations.as_ref().unwrap_or(&none))
}

/// A reason is for people; annotations and conditions have little room.
fn short(why: &str) -> &str {
    &why[..why.floor_char_boundary(LONGEST_REASON)]
}

const LONGEST_REASON: usize = 300;
/// How often entries are looked at.
const LOOK: Duration = Duration::from_secs(1);
const AFTER_A_FAILURE: Duration = Duration::from_secs(10);
/// So many failures, one after the other, are no longer one entry's own.
const SEVERAL: u32 = 2;
/// Longer than it takes until an entry says that its machine left.
const FORGET: Duration = Duration::from_secs(120 + LINGER.as_secs());

#[cfg(test)]
mod tests;
