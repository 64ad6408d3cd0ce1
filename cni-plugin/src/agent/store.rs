//! What the agent remembers of each pod over its own restarts: where its network namespace is and
//! whether it was enrolled. One JSON file a pod, replaced atomically, in a directory that should not
//! outlive the node's boot (the default is on tmpfs): after a boot no namespace is where it was.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::netns::NetnsId;
use super::pod::Uid;

/// One pod's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) netns: PathBuf,
    device: u64,
    inode: u64,
    pub(crate) ips: Vec<IpAddr>,
    /// Whether the rules are in the pod.
    pub(crate) enrolled: bool,
}

impl Record {
    pub(crate) fn new(
        uid: &Uid,
        namespace: &str,
        name: &str,
        netns: (&Path, NetnsId),
        ips: Vec<IpAddr>,
        enrolled: bool,
    ) -> Self {
        let (path, NetnsId { device, inode }) = netns;
        Self {
            uid: uid.to_string(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            netns: path.to_owned(),
            device,
            inode,
            ips,
            enrolled,
        }
    }

    pub(crate) fn netns_id(&self) -> NetnsId {
        NetnsId {
            device: self.device,
            inode: self.inode,
        }
    }
}

/// The directory.
#[derive(Clone, Debug)]
pub(crate) struct Store(PathBuf);

impl Store {
    pub(crate) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        Ok(Self(directory.to_owned()))
    }

    /// Everything remembered. A file that cannot be read is left out and removed: what it said
    /// can be found again, or is asked for again by the runtime.
    pub(crate) fn load(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            match fs::read(&path).map(|text| serde_json::from_slice::<Record>(&text)) {
                Ok(Ok(record)) if self.path(&record.uid) == path => records.push(record),
                _ => {
                    tracing::warn!(file = %path.display(), "not a record of a pod, removed");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(records)
    }

    pub(crate) fn save(&self, record: &Record) -> io::Result<()> {
        let path = self.path(&record.uid);
        let temporary = path.with_extension("new");
        fs::write(&temporary, serde_json::to_vec(record)?)?;
        fs::rename(&temporary, &path)
    }

    pub(crate) fn forget(&self, uid: &Uid) -> io::Result<()> {
        match fs::remove_file(self.path(uid.as_str())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A uid comes from a file the user wrote, so it must not lead out of the directory.
    fn path(&self, uid: &str) -> PathBuf {
        let safe = |c: char| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '_'
            }
        };
        self.0.join(format!(
            "{}.json",
            uid.chars().map(safe).collect::<String>()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: &str) -> Record {
        let id = NetnsId {
            device: 4,
            inode: 7,
        };
        Record::new(
            &Uid::new(uid),
            "app",
            "web",
            (Path::new("/run/netns/x"), id),
            vec!["10.0.0.1".parse().unwrap()],
            true,
        )
    }

    #[test]
    fn what_is_saved_is_loaded_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        store.save(&record("a")).unwrap();
        store
            .save(&Record {
                enrolled: false,
                ..record("a")
            })
            .unwrap();
        store.save(&record("app/web")).unwrap();
        let mut loaded = store.load().unwrap();
        loaded.sort_by(|a, b| a.uid.cmp(&b.uid));
        assert_eq!(
            loaded,
            [
                Record {
                    enrolled: false,
                    ..record("a")
                },
                record("app/web")
            ]
        );
        store.forget(&Uid::new("a")).unwrap();
        store.forget(&Uid::new("a")).unwrap();
        assert_eq!(store.load().unwrap(), [record("app/web")]);
    }

    #[test]
    fn a_damaged_file_stops_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.save(&record("a")).unwrap();
        fs::write(dir.path().join("b.json"), "{").unwrap();
        fs::write(
            dir.path().join("c.json"),
            fs::read(dir.path().join("a.json")).unwrap(),
        )
        .unwrap();
        assert_eq!(store.load().unwrap(), [record("a")]);
        assert!(!dir.path().join("b.json").exists());
    }

    #[test]
    fn no_uid_leads_out_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        store.save(&record("../../etc/passwd")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(store.load().unwrap().len(), 1);
    }
}
