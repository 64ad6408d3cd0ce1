//! Entries as objects of a cluster, written by whichever replica a machine is connected to.
//!
//! 1. what it is: by server-side apply, so that labels and annotations that others put beside ours stay
//! 2. who is there: by another field manager, which owns these annotations alone and says them all each time
//! 3. how it does: condition `Healthy` of its status, beside those of others
//!
//! Each look is a fresh one, and what is written over something names the version that it is written over: of two replicas that do so
//! at once one looks again. Who has an entry takes it over when a machine comes to it, and leaves it alone when it says that the machine has
//! gone on to another ([`NotRegistered::Moved`]); so they never take turns at one.

use std::sync::Arc;
use std::time::Duration;

use api::k8s::istio::WorkloadEntry;
use api::k8s::labels::HEALTH_CHECKS;
use api::k8s::objects::{Kind, ObjectKey};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::DynamicObject;
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::entry::{self, Standing, conditions};
use super::register::NotRegistered;
use crate::cluster::Kinds;
use crate::metrics::Metrics;
use crate::write::said;

/// Where they are.
pub struct Objects {
    client: Client,
    kinds: watch::Receiver<Kinds>,
    metrics: Arc<Metrics>,
}

/// What an entry is to say.
pub(super) struct Wanted<'a> {
    pub(super) entry: &'a WorkloadEntry,
    pub(super) standing: &'a Standing,
    /// Why its machine is not well.
    pub(super) unhealthy: Option<&'a str>,
    /// Who writes.
    pub(super) me: &'a str,
    /// The machine has just come: whoever had it has it no more.
    pub(super) takes_over: bool,
}

/// One attempt.
enum Failed {
    /// Somebody wrote at the same time.
    Again,
    For(NotRegistered),
}

impl From<kube::Error> for Failed {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == CONFLICT => Self::Again,
            other => Self::For(NotRegistered::Api(said(&other))),
        }
    }
}

impl Objects {
    /// Of this cluster; entries are written in the version that it serves.
    pub fn new(client: Client, kinds: watch::Receiver<Kinds>, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            kinds,
            metrics,
        }
    }

    /// Makes an entry say this.
    ///
    /// # Errors
    /// Why not. It may say a part of it; nothing of that part lets connections through to who is not well.
    pub(super) async fn write(&self, wanted: &Wanted<'_>) -> Result<(), NotRegistered> {
        let written = within(async {
            for _ in 0..TRIES {
                match self.once(wanted).await {
                    Err(Failed::Again) => {}
                    Err(Failed::For(why)) => return Err(why),
                    Ok(()) => return Ok(()),
                }
            }
            Err(NotRegistered::Api(
                "others write it at the same time, again and again".into(),
            ))
        });
        let written = written.await;
        self.metrics.wrote("machines", written.is_ok());
        written
    }

    async fn once(&self, wanted: &Wanted<'_>) -> Result<(), Failed> {
        let metadata = &wanted.entry.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = metadata.name.as_deref().unwrap_or_default();
        let (entries, version) = self.api(namespace).map_err(Failed::For)?;
        let before = entries.get_opt(name).await?;
        let mut seen = None;
        if let Some(before) = &before {
            may_write(before, wanted).map_err(Failed::For)?;
            // Before all else: what is not well gets no connections from the first moment on.
            let said = self.say(&entries, before, wanted).await?;
            seen = said.as_ref().unwrap_or(before).resource_version();
        }
        let mut shape = serde_json::to_value(wanted.entry).unwrap_or_default();
        shape["apiVersion"] = version.clone().into();
        // Who has it was looked up in this version: another may have taken it over since.
        if let Some(seen) = seen {
            shape["metadata"]["resourceVersion"] = seen.into();
        }
        // Of one that somebody else makes in this moment nothing is taken.
        let how = PatchParams {
            force: before.is_some(),
            ..PatchParams::apply(MANAGER)
        };
        let shaped = entries.patch(name, &how, &Patch::Apply(&shape)).await?;
        let seen = shaped.metadata.resource_version.as_deref();
        let standing = standing(wanted.standing, &version, name, seen);
        let how = PatchParams::apply(PRESENCE).force();
        let after = entries.patch(name, &how, &Patch::Apply(&standing)).await?;
        if before.is_none() {
            self.say(&entries, &after, wanted).await?;
        }
        Ok(())
    }

    /// Says how its machine does, where anybody asks; the entry as it is then, if that was news.
    async fn say(
        &self,
        entries: &Api<DynamicObject>,
        object: &DynamicObject,
        wanted: &Wanted<'_>,
    ) -> Result<Option<DynamicObject>, kube::Error> {
        let annotations = wanted.entry.metadata.annotations.as_ref();
        if !annotations.is_some_and(|all| all.contains_key(HEALTH_CHECKS)) {
            return Ok(None);
        }
        let before = &object.data["status"]["conditions"];
        let Some(conditions) = conditions(before, wanted.unhealthy, &entry::now()) else {
            return Ok(None);
        };
        // Lists are replaced whole by a merge patch: never over what somebody wrote since.
        let patch = json!({
            "metadata": {"resourceVersion": object.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        let how = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let name = object.name_any();
        let patch = Patch::Merge(&patch);
        entries.patch_status(&name, &how, &patch).await.map(Some)
    }

    /// Writes how a machine does onto the entry that another replica may keep; `false` when there is none of ours.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) async fn note(&self, wanted: &Wanted<'_>) -> Result<bool, NotRegistered> {
        let metadata = &wanted.entry.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = metadata.name.as_deref().unwrap_or_default();
        let (entries, _) = self.api(namespace)?;
        within(async {
            for _ in 0..TRIES {
                let found = entries.get_opt(name).await;
                let found = found.map_err(|error| NotRegistered::Api(said(&error)))?;
                let Some(found) = found.filter(|it| entry::is_ours(it.annotations())) else {
                    return Ok(false);
                };
                match self
                    .say(&entries, &found, wanted)
                    .await
                    .map_err(Failed::from)
                {
                    Ok(_) => return Ok(true),
                    Err(Failed::Again) => {}
                    Err(Failed::For(why)) => return Err(why),
                }
            }
            Ok(false)
        })
        .await
    }

    /// Writes onto an entry that its machine is gone, if it still says what it said.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) async fn mark(
        &self,
        key: &ObjectKey,
        expected: &Standing,
    ) -> Result<bool, NotRegistered> {
        let (entries, version) = self.api(&key.namespace)?;
        let Some(before) = self.as_expected(&entries, key, expected).await? else {
            return Ok(false);
        };
        let seen = before.metadata.resource_version.as_deref();
        let standing = standing(&Standing::gone(), &version, &key.name, seen);
        let how = PatchParams::apply(PRESENCE).force();
        let patch = Patch::Apply(&standing);
        self.settled(within_kube(entries.patch(&key.name, &how, &patch)).await)
    }

    /// Removes an entry, if it still says what it said.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub(super) async fn remove(
        &self,
        key: &ObjectKey,
        expected: &Standing,
    ) -> Result<bool, NotRegistered> {
        let (entries, _) = self.api(&key.namespace)?;
        let Some(before) = self.as_expected(&entries, key, expected).await? else {
            return Ok(false);
        };
        let how = DeleteParams {
            preconditions: Some(Preconditions {
                uid: before.metadata.uid.clone(),
                resource_version: before.metadata.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        self.settled(within_kube(entries.delete(&key.name, &how)).await)
    }

    /// The entry as it is now, if it is ours and says this of its machine.
    async fn as_expected(
        &self,
        entries: &Api<DynamicObject>,
        key: &ObjectKey,
        expected: &Standing,
    ) -> Result<Option<DynamicObject>, NotRegistered> {
        let found = within_kube(entries.get_opt(&key.name)).await;
        let found = found.map_err(|error| self.failed(&error))?;
        Ok(found.filter(|it| {
            entry::is_ours(it.annotations()) && Standing::of(it.annotations()) == *expected
        }))
    }

    fn settled<T>(&self, outcome: Result<T, kube::Error>) -> Result<bool, NotRegistered> {
        match outcome {
            Ok(_) => {
                self.metrics.wrote("machines", true);
                Ok(true)
            }
            // Another was first.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | CONFLICT) => Ok(false),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &kube::Error) -> NotRegistered {
        self.metrics.wrote("machines", false);
        NotRegistered::Api(said(error))
    }

    /// The entries of a namespace, and the version in which they are written.
    fn api(&self, namespace: &str) -> Result<(Api<DynamicObject>, String), NotRegistered> {
        let resource = self.kinds.borrow().get(&Kind::WorkloadEntry).cloned();
        let resource = resource.ok_or(NotRegistered::NotDefined)?;
        let version = resource.api_version.clone();
        let entries = Api::namespaced_with(self.client.clone(), namespace, &resource);
        Ok((entries, version))
    }
}

/// Whether an entry is one that may be written over.
fn may_write(before: &DynamicObject, wanted: &Wanted<'_>) -> Result<(), NotRegistered> {
    let reference = || {
        let namespace = before.namespace().unwrap_or_default();
        format!("{namespace}/{}", before.name_any())
    };
    if !entry::is_ours(before.annotations()) {
        return Err(NotRegistered::Foreign(reference()));
    }
    match Standing::of(before.annotations()) {
        Standing::Connected { by, .. } if by != wanted.me && !wanted.takes_over => {
            Err(NotRegistered::Moved(reference()))
        }
        _ => Ok(()),
    }
}

fn standing(standing: &Standing, version: &str, name: &str, seen: Option<&str>) -> Value {
    let mut body = json!({
        "apiVersion": version, "kind": "WorkloadEntry",
        "metadata": {"name": name, "annotations": standing.annotations()},
    });
    if let Some(seen) = seen {
        body["metadata"]["resourceVersion"] = seen.into();
    }
    body
}

async fn within<T>(
    work: impl Future<Output = Result<T, NotRegistered>>,
) -> Result<T, NotRegistered> {
    let late = |_| NotRegistered::Api("no answer in time".into());
    tokio::time::timeout(PATIENCE, work).await.map_err(late)?
}

async fn within_kube<T>(
    work: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    let late = |_| kube::Error::Service("no answer in time".into());
    tokio::time::timeout(PATIENCE, work).await.map_err(late)?
}

const MANAGER: &str = "ambit-machines";
const PRESENCE: &str = "ambit-machines-presence";
const TRIES: u32 = 5;
const CONFLICT: u16 = 409;
/// For all requests of one thing.
const PATIENCE: Duration = Duration::from_secs(15);
