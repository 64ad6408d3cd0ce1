//! The file of revoked certificates, as the kubelet brings it: ConfigMap `istio-ca-crl`, key `ca-crl.pem`.
//!
//! What it says counts from the next handshake on, also for those who would go on with a session. It is read once before
//! the first ([`RevocationFile::open`]), so that there is no moment in which nobody is revoked yet.
//!
//! A file that is not there says nothing: where there is no ConfigMap, nobody was revoked. One that goes away, or
//! cannot be read any more, leaves the lists before it in force ([`Revocations`]). So does the day by which a list was to be
//! followed by another; that is said once. One that is there, and could never be read, is one whose lists are not known:
//! nobody is believed until it can.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::tls::Revocations;

/// A file, and what it has said.
#[derive(Debug)]
pub struct RevocationFile {
    path: PathBuf,
    last: Option<Vec<u8>>,
    /// Why it could not be read, though there is something, when that was last said.
    kept: Option<io::ErrorKind>,
    /// How many lists were overdue when that was last said.
    overdue: usize,
    revocations: Arc<Revocations>,
}

impl RevocationFile {
    /// What the file says now.
    pub fn open(path: PathBuf) -> Self {
        let mut file = Self {
            last: None,
            kept: None,
            overdue: 0,
            revocations: Arc::default(),
            path,
        };
        let read = std::fs::read(&file.path);
        file.heard(read);
        file
    }

    /// Who is revoked, as of its last look.
    pub fn revocations(&self) -> Arc<Revocations> {
        self.revocations.clone()
    }

    /// Looks at it until `end`.
    pub async fn follow(mut self, end: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK);
        while end.run_until_cancelled(looks.tick()).await.is_some() {
            let read = tokio::fs::read(&self.path).await;
            self.heard(read);
        }
    }

    fn heard(&mut self, read: io::Result<Vec<u8>>) {
        let path = self.path.display();
        let kept = read.as_ref().err().map(io::Error::kind);
        let kept = kept.filter(|kind| *kind != io::ErrorKind::NotFound);
        let before = std::mem::replace(&mut self.kept, kept);
        match read {
            Ok(text) if self.last.as_ref() == Some(&text) => {}
            Ok(text) => {
                match self.revocations.replace(&text) {
                    Ok(lists) => tracing::info!(%path, lists, "revoked certificates"),
                    Err(error) => {
                        tracing::error!(%path, %error, "revoked certificates: what was said before counts on, and where nothing was, nobody is believed");
                    }
                }
                self.last = Some(text);
            }
            Err(error) if kept.is_some() => {
                self.last = None;
                if before != kept {
                    self.revocations.cannot_be_read(&error.to_string());
                    tracing::error!(%path, %error, "revoked certificates: what was said before counts on, and where nothing was, nobody is believed");
                }
            }
            Err(error) => {
                if self.last.take().is_some() {
                    tracing::warn!(%path, %error, "revoked certificates: what was said before counts on");
                }
            }
        }
        let overdue = self.revocations.figures().overdue(SystemTime::now());
        if overdue > self.overdue {
            let path = self.path.display();
            tracing::warn!(%path, overdue, "revoked certificates: the next update of a list is overdue; it counts on, and who was revoked since is not on it");
        }
        self.overdue = overdue;
    }
}

/// A file of some kilobytes, and kubelets take up to a minute to bring it.
const LOOK: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_there_and_cannot_be_read_is_not_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca-crl.pem");
        let mut file = RevocationFile::open(path.clone());
        let lists = file.revocations();
        let look = |file: &mut RevocationFile| file.heard(std::fs::read(&path));
        assert!(!lists.are_any(), "where nothing is, nobody was revoked");
        // Root reads whatever its mode is, but no folder.
        std::fs::create_dir(&path).unwrap();
        look(&mut file);
        look(&mut file);
        assert!(lists.are_any(), "whom it means to keep out is not known");
        assert_eq!(lists.figures().unreadable, 1, "counted once");
        let again = RevocationFile::open(path.clone()).revocations();
        assert!(again.are_any(), "nor is it by who begins with it");
        std::fs::remove_dir(&path).unwrap();
        std::fs::write(&path, "\n").unwrap();
        look(&mut file);
        assert!(!lists.are_any(), "it can be read, and revokes nobody");
        // From here on what was said counts.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        look(&mut file);
        assert!(!lists.are_any());
        assert_eq!(lists.figures().unreadable, 2);
    }
}
