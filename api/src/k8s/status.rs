//! The status mirror: what named writers lay over objects, since there is no API server to write
//! to. One file an object: `.status/<Kind>/<namespace>/<name>.yaml`, a merge patch.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;

use super::objects::{Kind, ObjectKey};
use super::{merge, yaml};

/// The folder, below the directory's root.
pub(super) const FOLDER: &str = ".status";
/// Stands for the namespace of objects that have none; not a name a namespace can have.
const NO_NAMESPACE: &str = "_";

/// Where the patch of an object lies, below the directory's root.
pub(super) fn path(key: &ObjectKey) -> PathBuf {
    let namespace = if key.kind.namespaced() {
        &*key.namespace
    } else {
        NO_NAMESPACE
    };
    Path::new(FOLDER)
        .join(key.kind.name())
        .join(namespace)
        .join(format!("{}.yaml", key.name))
}

/// The object that a path (below the directory's root) patches.
pub(super) fn key(path: &Path) -> Option<ObjectKey> {
    let mut parts = path
        .strip_prefix(FOLDER)
        .ok()?
        .iter()
        .map(|part| part.to_str());
    let kind: Kind = parts.next()??.parse().ok()?;
    let namespace = parts.next()??;
    let name = parts.next()??.strip_suffix(".yaml")?;
    let rest = parts.next();
    (rest.is_none() && kind.namespaced() == (namespace != NO_NAMESPACE))
        .then(|| ObjectKey::new(kind, namespace, name))
}

/// Whether a patch is meant for an object with that uid. A patch that names none is for anyone.
pub(super) fn is_for(patch: &Value, uid: Option<&str>) -> bool {
    uid_of(patch).is_none_or(|wanted| Some(wanted) == uid)
}

fn uid_of(patch: &Value) -> Option<&str> {
    patch.get("metadata")?.get("uid")?.as_str()
}

pub(super) fn patch(root: &Path, key: &ObjectKey, patch: &Value) -> io::Result<()> {
    if !patch.is_object() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a status patch is a map",
        ));
    }
    let _alone = lock(root)?;
    let file = root.join(path(key));
    let mut whole = match fs::read_to_string(&file) {
        // A patch that cannot be read is replaced: its writer is here, with a better one.
        Ok(text) => yaml::from_str(&text).unwrap_or_else(|_| Value::Object(serde_json::Map::new())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Value::Object(serde_json::Map::new())
        }
        Err(error) => return Err(error),
    };
    if uid_of(&whole).is_some() && uid_of(patch).is_some() && uid_of(&whole) != uid_of(patch) {
        whole = Value::Object(serde_json::Map::new());
    }
    merge::compose(&mut whole, patch);
    replace(&file, &serde_json::to_vec_pretty(&whole)?)
}

/// The patch of an object. One that is no YAML is as good as none: its writer will replace it.
pub(super) fn read(root: &Path, key: &ObjectKey) -> io::Result<Option<Value>> {
    match fs::read_to_string(root.join(path(key))) {
        Ok(text) => Ok(yaml::from_str(&text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn clear(root: &Path, key: &ObjectKey) -> io::Result<()> {
    let _alone = lock(root)?;
    match fs::remove_file(root.join(path(key))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Keeps other writers out between reading a patch and replacing it.
fn lock(root: &Path) -> io::Result<Flock<fs::File>> {
    let folder = root.join(FOLDER);
    fs::create_dir_all(&folder)?;
    let file = fs::File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join(".lock"))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno.into())
}

/// Readers see the old content or the new, never a part.
fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    static TURN: AtomicU64 = AtomicU64::new(0);
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let turn = TURN.fetch_add(1, Ordering::Relaxed);
    let aside = folder.join(format!(".{}.{turn}", std::process::id()));
    let mut out = fs::File::create(&aside)?;
    out.write_all(content)?;
    drop(out);
    fs::rename(&aside, file)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{key, path};
    use crate::k8s::objects::{Kind, ObjectKey};

    #[test]
    fn a_path_names_its_object() {
        for object in [
            ObjectKey::new(Kind::Pod, "alpha", "web-0"),
            ObjectKey::new(Kind::Node, "", "node-1"),
        ] {
            assert_eq!(key(&path(&object)), Some(object));
        }
    }

    #[test]
    fn a_path_that_fits_no_object_names_none() {
        for text in [
            ".status/Pod/alpha",
            ".status/Pod/alpha/x.json",
            ".status/Pod/_/x.yaml",
            ".status/Node/alpha/x.yaml",
            ".status/Cat/alpha/x.yaml",
            ".status/Pod/a/b/x.yaml",
            "Pod/alpha/x.yaml",
        ] {
            assert_eq!(key(Path::new(text)), None, "{text}");
        }
    }
}
