//! Without a cluster, statuses go into the mirror of the configuration directory, where every
//! reader lays them over the objects.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use api::k8s::dir;
use api::k8s::objects::ObjectKey;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Book, merge};

/// Keeps the mirror of `directory` as the book says, until `stop`.
pub async fn mirror(
    directory: PathBuf,
    mut statuses: watch::Receiver<Book>,
    stop: CancellationToken,
) {
    let mut mirror = Mirror {
        directory,
        told: Book::new(),
        written: HashMap::new(),
    };
    loop {
        let book = statuses.borrow_and_update().clone();
        // Files: on a thread that may wait for a disk.
        let turn = tokio::task::spawn_blocking(move || {
            mirror.write(&book);
            mirror
        });
        mirror = match turn.await {
            Ok(mirror) => mirror,
            Err(error) => return tracing::error!(%error, "the mirror of statuses ended"),
        };
        let changed = stop.run_until_cancelled(statuses.changed()).await;
        if !matches!(changed, Some(Ok(()))) {
            return;
        }
    }
}

struct Mirror {
    directory: PathBuf,
    told: Book,
    /// What each status is, as far as we wrote it.
    written: HashMap<ObjectKey, Value>,
}

impl Mirror {
    fn write(&mut self, book: &Book) {
        let now = Timestamp::now().strftime(super::TIME).to_string();
        let mut failed = Vec::new();
        for change in self.told.diff(book) {
            let (key, desired) = match change {
                imbl::ordmap::DiffItem::Add(key, desired)
                | imbl::ordmap::DiffItem::Update {
                    new: (key, desired),
                    ..
                } => (key, desired),
                // The object went. Its successor must not be taken for what this one was: objects in
                // files have no uid to tell them apart.
                imbl::ordmap::DiffItem::Remove(key, _) => {
                    self.written.remove(key);
                    if let Err(error) = dir::clear_status(&self.directory, key) {
                        tracing::warn!(object = %key, %error, "status of an object that is gone stays");
                    }
                    continue;
                }
            };
            let before = match self.written.get(key) {
                Some(written) => written.clone(),
                None => read(&self.directory, key).unwrap_or_default(),
            };
            let Some(changes) = merge::changes(key.kind, &before, desired, &now) else {
                continue;
            };
            let mut after = before;
            merge_into(&mut after, &changes);
            let patch = json!({ "status": changes });
            match dir::patch_status(&self.directory, key, &patch) {
                Ok(()) => drop(self.written.insert(key.clone(), after)),
                Err(error) => {
                    tracing::warn!(object = %key, %error, "status not written");
                    failed.push(key.clone());
                }
            }
        }
        self.told = book.clone();
        // Tried again with the next edition.
        failed.iter().for_each(|key| drop(self.told.remove(key)));
    }
}

fn merge_into(status: &mut Value, changes: &serde_json::Map<String, Value>) {
    if !status.is_object() {
        *status = json!({});
    }
    for (field, value) in changes {
        status[field.as_str()] = value.clone();
    }
}

/// What an earlier life of ours wrote: times must not move with a restart.
fn read(directory: &Path, key: &ObjectKey) -> io::Result<Value> {
    let patch = dir::status(directory, key)?;
    Ok(patch
        .and_then(|mut patch| patch.get_mut("status").map(Value::take))
        .unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::k8s::objects::Kind;

    use super::super::{Condition, Desired};
    use super::*;

    fn book(status: bool) -> Book {
        let condition = Condition {
            r#type: "istio.io/WaypointBound",
            status,
            reason: "R".into(),
            message: "m".into(),
        };
        let desired = Desired {
            conditions: vec![condition],
            ..Desired::default()
        };
        Book::unit(
            ObjectKey::new(Kind::Service, "alpha", "web"),
            Arc::new(desired),
        )
    }

    fn mirror(directory: &Path) -> Mirror {
        Mirror {
            directory: directory.into(),
            told: Book::new(),
            written: HashMap::new(),
        }
    }

    #[test]
    fn a_restart_does_not_move_the_time_of_what_it_finds() {
        let directory = tempfile::tempdir().unwrap();
        let key = ObjectKey::new(Kind::Service, "alpha", "web");
        let old = json!({"status": {"conditions": [{
            "type": "istio.io/WaypointBound", "status": "True", "reason": "R", "message": "m",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]}});
        dir::patch_status(directory.path(), &key, &old).unwrap();
        mirror(directory.path()).write(&book(true));
        assert_eq!(
            dir::status(directory.path(), &key).unwrap(),
            Some(old.clone())
        );
        mirror(directory.path()).write(&book(false));
        let fresh = dir::status(directory.path(), &key).unwrap().unwrap();
        assert_eq!(fresh["status"]["conditions"][0]["status"], "False");
        assert_ne!(
            fresh["status"]["conditions"][0]["lastTransitionTime"],
            "2026-01-01T00:00:00Z"
        );
    }

    #[test]
    fn what_another_writer_laid_over_the_object_stays() {
        let directory = tempfile::tempdir().unwrap();
        let key = ObjectKey::new(Kind::Service, "alpha", "web");
        let theirs =
            json!({"metadata": {"annotations": {"a": "b"}}, "status": {"loadBalancer": {}}});
        dir::patch_status(directory.path(), &key, &theirs).unwrap();
        mirror(directory.path()).write(&book(true));
        let both = dir::status(directory.path(), &key).unwrap().unwrap();
        assert_eq!(both["metadata"], theirs["metadata"]);
        assert_eq!(both["status"]["loadBalancer"], json!({}));
        assert_eq!(both["status"]["conditions"][0]["reason"], "R");
    }

    #[test]
    fn who_comes_after_an_object_that_went_inherits_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let mut mirror = mirror(directory.path());
        mirror.write(&book(true));
        mirror.write(&Book::new());
        let key = ObjectKey::new(Kind::Service, "alpha", "web");
        assert_eq!(dir::status(directory.path(), &key).unwrap(), None);
    }
}
