//! WorkloadEntries of machines that come and go: made from their WorkloadGroup when they come, removed a while after they
//! went, and saying in between how they do.
//!
//! ```text
//!  a machine comes ──▶ entry ── not well ──▶ annotation (no new connections) ── well ──▶ without it
//!        ▲               │ goes
//!        └── comes back ◀┴── annotation (since when) ── the grace is over ──▶ removed
//! ```
//! Nothing of an entry is the machine's to say: labels, account and network are the group's, name and address those of the book.
//! An entry that somebody else wrote is left alone, whatever machine comes; so is an address that somebody else has.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::k8s::istio::WorkloadEntry;
use api::k8s::labels::{
    AUTO_REGISTRATION_GROUP, CONNECTED_AT, DISCONNECTED_AT, REDIRECTION, REDIRECTION_ENABLED,
    UNHEALTHY, WORKLOAD_CONTROLLER,
};
use api::k8s::objects::{Kind, ObjectKey, ObjectMeta, WorkloadGroup};
use arc_swap::ArcSwap;
use tokio::sync::watch;
use x509_parser::time::ASN1Time;

use super::Machine;
use crate::catalog::{Reader, Type};
use crate::disk;
use crate::feed::{Entries, Groups};

/// Keeps the entries.
pub struct Registrar {
    groups: watch::Receiver<Groups>,
    entries: Arc<ArcSwap<Entries>>,
    catalog: Reader,
    /// The name of our cluster, in the names of resources.
    cluster: String,
    /// Nowhere with Kubernetes.
    folder: Option<PathBuf>,
    grace: Duration,
    present: Mutex<HashMap<String, u32>>,
    /// One entry is written at a time.
    turn: tokio::sync::Mutex<()>,
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
    /// With Kubernetes.
    #[error(
        "entries are made by themselves only where the configuration is a directory; write WorkloadEntry {0}, and make a token without a group"
    )]
    Nowhere(String),
    /// The disk.
    #[error("the entry cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// A machine that is connected. When dropped it has gone.
pub struct Presence {
    registrar: Arc<Registrar>,
    machine: Arc<Machine>,
}

impl Registrar {
    /// One that writes into a configuration directory, if there is one. Entries that are there already belong to machines that come back within
    /// the grace, or go.
    pub fn new(
        config: Option<&Path>,
        grace: Duration,
        cluster: &str,
        groups: watch::Receiver<Groups>,
        entries: Arc<ArcSwap<Entries>>,
        catalog: Reader,
    ) -> Arc<Self> {
        let registrar = Arc::new(Self {
            groups,
            entries,
            catalog,
            cluster: cluster.into(),
            folder: config.map(|config| config.join("registered")),
            grace,
            present: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        });
        if registrar.folder.is_none() {
            return registrar;
        }
        let left: Vec<ObjectKey> = registrar
            .entries
            .load()
            .iter()
            .filter(|(_, entry)| is_ours(entry))
            .map(|(key, _)| key.clone())
            .collect();
        for key in left {
            registrar.clone().later(key.namespace, key.name);
        }
        registrar
    }

    /// A machine is there; without a group its entry is its operator's business.
    ///
    /// # Errors
    /// Why it gets no entry.
    pub async fn arrive(
        self: &Arc<Self>,
        machine: Arc<Machine>,
    ) -> Result<Presence, NotRegistered> {
        let group = self.group(&machine)?;
        if let Some(group) = group {
            self.may_have(&machine, &group)?;
            self.write(&machine, &group, None).await?;
        }
        *self.present().entry(machine.reference()).or_insert(0) += 1;
        Ok(Presence {
            registrar: self.clone(),
            machine,
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
        if self.folder.is_none() {
            return Err(NotRegistered::Nowhere(machine.reference()));
        }
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
        let key = ObjectKey::new(Kind::WorkloadEntry, &join.namespace, &join.name);
        if let Some(entry) = self.entries.load().get(&key)
            && !is_ours(entry)
        {
            return Err(NotRegistered::Foreign(machine.reference()));
        }
        let own = format!(
            "{}/networking.istio.io/WorkloadEntry/{}/{}",
            self.cluster, join.namespace, join.name
        );
        let address = machine.address.to_string();
        let place = format!("{}/{address}", group.spec.template.network);
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

    async fn write(
        &self,
        machine: &Machine,
        group: &WorkloadGroup,
        unhealthy: Option<&str>,
    ) -> Result<(), NotRegistered> {
        let text = text(&entry(machine, group, unhealthy))?;
        let path = self.path(&machine.join.namespace, &machine.join.name);
        let _turn = self.turn.lock().await;
        Ok(aside(move || disk::replace(&path, &text, disk::PUBLIC)).await?)
    }

    /// The entry of a machine that went is marked at once, and removed if nobody comes within the grace.
    fn later(self: Arc<Self>, namespace: Arc<str>, name: Arc<str>) {
        tokio::spawn(async move {
            let reference = format!("{namespace}/{name}");
            if let Err(error) = self.mark_gone(&namespace, &name, &reference).await {
                tracing::warn!(machine = reference, %error, "its entry cannot be marked");
            }
            tokio::time::sleep(self.grace).await;
            let turn = self.turn.lock().await;
            if self.is_present(&reference) {
                return;
            }
            let path = self.path(&namespace, &name);
            let removed = aside(move || std::fs::remove_file(path)).await;
            drop(turn);
            match removed {
                Ok(()) => tracing::info!(machine = reference, "went, and its entry with it"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(machine = reference, %error, "its entry cannot be removed");
                }
            }
        });
    }

    async fn mark_gone(&self, namespace: &str, name: &str, reference: &str) -> io::Result<()> {
        let key = ObjectKey::new(Kind::WorkloadEntry, namespace, name);
        let entry = self.entries.load().get(&key).cloned();
        let Some(entry) = entry.filter(|entry| is_ours(entry)) else {
            return Ok(());
        };
        let mut entry = WorkloadEntry::clone(&entry);
        let annotations = entry.metadata.annotations.get_or_insert_default();
        annotations.remove(CONNECTED_AT);
        annotations
            .entry(DISCONNECTED_AT.into())
            .or_insert_with(date);
        // Nobody can say how it does.
        annotations.insert(UNHEALTHY.into(), "its machine is not connected".into());
        let (path, text) = (self.path(namespace, name), text(&entry)?);
        let _turn = self.turn.lock().await;
        if self.is_present(reference) || !path.exists() {
            return Ok(());
        }
        aside(move || disk::replace(&path, &text, disk::PUBLIC)).await
    }

    fn is_present(&self, reference: &str) -> bool {
        self.present()
            .get(reference)
            .is_some_and(|count| *count > 0)
    }

    fn path(&self, namespace: &str, name: &str) -> PathBuf {
        let folder = self.folder.as_deref().unwrap_or(Path::new(""));
        folder.join(format!("{namespace}.{name}.yaml"))
    }

    fn present(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Presence {
    /// How it does: well, or why not.
    ///
    /// # Errors
    /// When it has no entry any more, or that cannot be written.
    pub async fn report(&self, unhealthy: Option<&str>) -> Result<(), NotRegistered> {
        let Some(group) = self.registrar.group(&self.machine)? else {
            return Ok(());
        };
        let unhealthy = unhealthy.map(|why| {
            let end = why.floor_char_boundary(LONGEST_REASON);
            &why[..end]
        });
        self.registrar.write(&self.machine, &group, unhealthy).await
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let reference = self.machine.reference();
        let is_last = {
            let mut present = self.registrar.present();
            let count = present.get(&reference).copied().unwrap_or(1);
            if count > 1 {
                present.insert(reference, count - 1);
            } else {
                present.remove(&reference);
            }
            count <= 1
        };
        if is_last && self.machine.join.group.is_some() {
            let join = &self.machine.join;
            let (namespace, name) = (join.namespace.as_str(), join.name.as_str());
            self.registrar.clone().later(namespace.into(), name.into());
        }
    }
}

/// What is written of a machine. Pure, but for the time.
fn entry(machine: &Machine, group: &WorkloadGroup, unhealthy: Option<&str>) -> WorkloadEntry {
    let spec = &group.spec;
    let mut labels = spec.metadata.labels.clone();
    labels.extend(spec.template.labels.clone());
    let mut annotations: BTreeMap<String, String> = spec.metadata.annotations.clone();
    // Its own proxy captures its connections and unwraps tunnels, as a node's does for a pod.
    annotations.insert(REDIRECTION.into(), REDIRECTION_ENABLED.into());
    annotations.insert(
        AUTO_REGISTRATION_GROUP.into(),
        machine.join.group.clone().unwrap_or_default(),
    );
    annotations.insert(WORKLOAD_CONTROLLER.into(), CONTROLLER.into());
    annotations.insert(CONNECTED_AT.into(), date());
    if let Some(why) = unhealthy {
        annotations.insert(UNHEALTHY.into(), why.into());
    }
    let mut template = spec.template.clone();
    template.address = machine.address.to_string();
    template
        .service_account
        .clone_from(&machine.join.service_account);
    template.labels = labels.clone();
    WorkloadEntry {
        api_version: "networking.istio.io/v1".into(),
        kind: "WorkloadEntry".into(),
        metadata: ObjectMeta {
            name: Some(machine.join.name.clone()),
            namespace: Some(machine.join.namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: template,
        ..WorkloadEntry::default()
    }
}

/// Whether it was made here.
fn is_ours(entry: &WorkloadEntry) -> bool {
    let annotations = entry.metadata.annotations.as_ref();
    annotations.is_some_and(|all| {
        all.get(WORKLOAD_CONTROLLER)
            .is_some_and(|it| it == CONTROLLER)
    })
}

fn text(entry: &WorkloadEntry) -> io::Result<Vec<u8>> {
    // JSON is YAML.
    serde_json::to_vec_pretty(entry).map_err(io::Error::other)
}

fn date() -> String {
    let now = ASN1Time::now();
    now.to_rfc2822().unwrap_or_else(|text| text)
}

async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

const CONTROLLER: &str = "istiod-lite";
/// A reason is for people; annotations have little room.
const LONGEST_REASON: usize = 300;
