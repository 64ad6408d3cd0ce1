//! What must survive a restart: small files, written whole or not at all.
//!
//! A file appears under its name only when every byte of it is on disk, so that a crash or a
//! second process never sees half a key. [`replace`] puts a new version over an old one,
//! [`create`] keeps whatever was there first.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Readable by its owner only: private keys.
pub const SECRET: u32 = 0o600;
/// Readable by everyone: certificates.
pub const PUBLIC: u32 = 0o644;

/// Writes `path` with `mode`, replacing what was there in one step.
///
/// # Errors
/// What the file system says. What was there before is there still.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = write_beside(path, bytes, mode)?;
    let moved = fs::rename(&temporary, path);
    finish(path, &temporary, moved)
}

/// Writes `path` with `mode` unless it exists; `false` when it did, and nothing changed.
///
/// Two processes that both find no key must end with the same one: a hard link fails where a
/// rename would silently win.
///
/// # Errors
/// What the file system says.
pub fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<bool> {
    let temporary = write_beside(path, bytes, mode)?;
    match fs::hard_link(&temporary, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            finish(path, &temporary, Ok(()))?;
            Ok(false)
        }
        linked => finish(path, &temporary, linked).map(|()| true),
    }
}

/// The file's text; `None` when there is no such file.
///
/// # Errors
/// What the file system says.
pub fn read_if_any(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn write_beside(path: &Path, bytes: &[u8], mode: u32) -> io::Result<PathBuf> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let directory = parent(path);
    fs::create_dir_all(directory)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let temporary = directory.join(format!(".{name}.{}.{serial}", std::process::id()));
    // A leftover of a crash under the same process id is ours to overwrite.
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    Ok(temporary)
}

/// The temporary is gone whatever happened, and the new name is on disk before we say so.
fn finish(path: &Path, temporary: &Path, outcome: io::Result<()>) -> io::Result<()> {
    let _ = fs::remove_file(temporary);
    outcome?;
    File::open(parent(path))?.sync_all()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_first_to_create_a_file_wins_and_no_temporary_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/key.pem");
        assert!(create(&path, b"first", SECRET).unwrap());
        assert!(!create(&path, b"second", SECRET).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            SECRET
        );
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn replacing_changes_the_whole_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cert.pem");
        replace(&path, b"a long first text", PUBLIC).unwrap();
        replace(&path, b"short", PUBLIC).unwrap();
        assert_eq!(read_if_any(&path).unwrap().as_deref(), Some("short"));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_file_is_none_and_not_an_error() {
        assert_eq!(read_if_any(Path::new("/nonexistent/x")).unwrap(), None);
    }
}
