//! The signer lives in a directory: ours in the state directory, or plugged in.
//!
//! 1. a root of our own that is missing is made, one near its end is renewed  ([`load`])
//! 2. files are looked at every few seconds                                   ([`Authority::keep_current`])
//! 3. what is no good is refused, the last good signer stays                  ([`Authority::reload`])

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::material::{ISTIO, Material, MaterialError, Parts};
use super::{Authority, Lifetimes, root};
use crate::disk;
use crate::metrics::Metrics;

/// Which directory the signer comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A self-signed root that we make when there is none, and keep in this directory.
    Own(PathBuf),
    /// A signer that somebody else keeps there, under Istio's names or those of a TLS Secret.
    PluggedIn(PathBuf),
}

impl Authority {
    /// Loads the signer; makes it when it is ours to make and there is none.
    ///
    /// # Errors
    /// Files that are missing, unreadable or do not belong together: better no control plane than
    /// one whose certificates nobody accepts.
    pub fn open(
        source: Source,
        trust_domain: Arc<str>,
        lifetimes: Lifetimes,
    ) -> Result<Self, MaterialError> {
        let material = Material::check(load(&source, &trust_domain)?)?;
        Ok(Self::new(Some(source), material, trust_domain, lifetimes))
    }

    /// Takes up what changed on disk; `true` if something did. On an error the old signer goes on.
    pub fn reload(&self) -> Result<bool, MaterialError> {
        match &self.source {
            Some(source) => self.adopt(load(source, &self.trust_domain)?),
            None => Ok(false),
        }
    }

    /// Looks again and again, until `stop`. Mounted Secrets change by swapping a symlink, which
    /// file notifications see poorly: four small reads every few seconds cost nothing.
    pub async fn keep_current(
        self: Arc<Self>,
        every: Duration,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) {
        let mut said = String::new();
        while stop
            .run_until_cancelled(tokio::time::sleep(every))
            .await
            .is_some()
        {
            let authority = self.clone();
            match tokio::task::spawn_blocking(move || authority.reload()).await {
                Ok(Ok(false)) => said.clear(),
                Ok(Ok(true)) => {
                    said.clear();
                    metrics.expiries(self.expiries());
                    tracing::info!("signing certificate changed");
                }
                Ok(Err(error)) if error.to_string() != said => {
                    said = error.to_string();
                    tracing::error!(
                        error = said,
                        "the signing certificate on disk is not usable, the last good one stays"
                    );
                }
                Ok(Err(_)) | Err(_) => {}
            }
        }
    }
}

/// What stands in the directory, made or renewed first where it is our own to make.
fn load(source: &Source, trust_domain: &str) -> Result<Parts, MaterialError> {
    match source {
        Source::PluggedIn(directory) => parts(directory),
        Source::Own(directory) => {
            make_if_missing(directory, trust_domain)?;
            let parts = parts(directory)?;
            let Some(fresh) = root::renewed(&parts, trust_domain)? else {
                return Ok(parts);
            };
            write(directory, ISTIO.certificate, &fresh.certificate)?;
            write(directory, ISTIO.roots, &fresh.roots)?;
            Ok(fresh)
        }
    }
}

fn parts(directory: &Path) -> Result<Parts, MaterialError> {
    Parts::read(|name| read(directory, name))
}

/// The key is written first and only once: whatever crashes, or races, ends with one key, and a
/// certificate of it can always be made again.
fn make_if_missing(directory: &Path, trust_domain: &str) -> Result<(), MaterialError> {
    let has_key = read(directory, ISTIO.key)?.is_some();
    let has_certificate = read(directory, ISTIO.certificate)?.is_some();
    if has_certificate && !has_key {
        return Err(MaterialError::Missing(ISTIO.key, ISTIO.certificate));
    }
    if !has_key {
        let path = directory.join(ISTIO.key);
        disk::create(&path, root::key()?.as_bytes(), disk::SECRET)
            .map_err(|error| file(&path, error))?;
    }
    if !has_certificate || read(directory, ISTIO.roots)?.is_none() {
        let key = read(directory, ISTIO.key)?;
        let key = key.ok_or(MaterialError::Missing(ISTIO.key, ISTIO.certificate))?;
        let certificate = root::certificate(&key, trust_domain)?;
        write(directory, ISTIO.certificate, &certificate)?;
        write(directory, ISTIO.roots, &certificate)?;
    }
    Ok(())
}

fn write(directory: &Path, name: &str, text: &str) -> Result<(), MaterialError> {
    let path = directory.join(name);
    disk::replace(&path, text.as_bytes(), disk::PUBLIC).map_err(|error| file(&path, error))
}

fn read(directory: &Path, name: &str) -> Result<Option<String>, MaterialError> {
    let path = directory.join(name);
    disk::read_if_any(&path).map_err(|error| file(&path, error))
}

fn file(path: &Path, error: std::io::Error) -> MaterialError {
    MaterialError::File {
        path: path.to_owned(),
        error,
    }
}
