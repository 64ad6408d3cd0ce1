//! Entries as files `registered/<namespace>.<name>.yaml` of a configuration directory, which the mesh reads as any other.

use std::io;
use std::path::{Path, PathBuf};

use api::k8s::istio::WorkloadEntry;
use api::k8s::labels::UNHEALTHY;
use api::k8s::objects::ObjectKey;
use tokio::sync::Mutex;

use super::entry::Standing;
use crate::disk;
use crate::disk::aside;

/// That folder.
pub struct Folder {
    path: PathBuf,
    /// One entry is written at a time.
    turn: Mutex<()>,
}

impl Folder {
    /// Of a configuration directory.
    pub fn of(config: &Path) -> Self {
        Self {
            path: config.join("registered"),
            turn: Mutex::default(),
        }
    }

    /// Writes an entry whole: what it is, who is there, and why that is not well.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn write(
        &self,
        mut entry: WorkloadEntry,
        standing: &Standing,
        unhealthy: Option<&str>,
    ) -> io::Result<()> {
        let annotations = entry.metadata.annotations.get_or_insert_default();
        annotations.extend(standing.annotations());
        if let Some(why) = unhealthy {
            annotations.insert(UNHEALTHY.into(), why.into());
        }
        let metadata = &entry.metadata;
        let path = self.file(metadata.namespace.as_deref(), metadata.name.as_deref());
        // JSON is YAML.
        let text = serde_json::to_vec_pretty(&entry).map_err(io::Error::other)?;
        let _turn = self.turn.lock().await;
        aside(move || disk::replace(&path, &text, disk::PUBLIC)).await
    }

    /// Writes onto an entry, as it was read, that its machine is gone, unless it was removed meanwhile.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn mark(&self, mut entry: WorkloadEntry) -> io::Result<()> {
        let annotations = entry.metadata.annotations.get_or_insert_default();
        for key in Standing::connected("").annotations().keys() {
            annotations.remove(key);
        }
        let metadata = &entry.metadata;
        let path = self.file(metadata.namespace.as_deref(), metadata.name.as_deref());
        if !path.exists() {
            return Ok(());
        }
        self.write(entry, &Standing::gone(), None).await
    }

    /// Removes an entry; it is no matter if there is none.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove(&self, key: &ObjectKey) -> io::Result<()> {
        let path = self.file(Some(&key.namespace), Some(&key.name));
        let _turn = self.turn.lock().await;
        match aside(move || std::fs::remove_file(path)).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A namespace has no dot: the first one ends it.
    fn file(&self, namespace: Option<&str>, name: Option<&str>) -> PathBuf {
        let (namespace, name) = (namespace.unwrap_or_default(), name.unwrap_or_default());
        self.path.join(format!("{namespace}.{name}.yaml"))
    }
}
