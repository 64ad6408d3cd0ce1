//! A chain that was verified a moment ago need not be verified again.
//!
//! Whether a chain is good follows from its bytes, the roots, what it is used for and the time, from
//! nothing else. So the answer is remembered by a digest of the first three ([`Claim::digest`]), until a
//! certificate in it ends and for [`AGAIN`] at most. A moment before the one at which it was verified is
//! not covered either: a clock that was set back finds nothing. Only good chains are remembered; a bad one
//! is looked at anew each time, and costs whoever brings it as much as before. Lists of revoked certificates decide
//! with the roots, and are part of the digest as they are.
//!
//! That the peer has the certificate's key is proven in each handshake by a signature, and is none of
//! this file's business.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime},
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{
    revocation::Revocations,
    verify::{identity_of, refuse},
};
use crate::identity::Identity;

/// For how long a chain counts as verified.
const AGAIN: Duration = Duration::from_secs(3600);
/// Chains remembered in this process, some 200 bytes each. One for each peer certificate and use;
/// beyond this all are forgotten together, which costs a verification each.
const MOST: usize = 4096;

pub(super) type Digest = [u8; 32];

/// The roots that chains must lead to, under a name that no other roots have.
#[derive(Debug, Clone)]
pub(super) struct Roots {
    pub(super) store: Arc<RootCertStore>,
    revocations: Arc<Revocations>,
    digest: Digest,
}

impl Roots {
    pub(super) fn new(store: RootCertStore) -> Self {
        let mut all = Context::new(&SHA256);
        for root in &store.roots {
            put(&mut all, &root.subject);
            put(&mut all, &root.subject_public_key_info);
            all.update(&[u8::from(root.name_constraints.is_some())]);
            put(
                &mut all,
                root.name_constraints.as_deref().unwrap_or_default(),
            );
        }
        Self {
            digest: finish(all),
            revocations: Arc::default(),
            store: Arc::new(store),
        }
    }

    /// Where somebody says who was revoked.
    pub(super) fn judging_by(self, revocations: Arc<Revocations>) -> Self {
        Self {
            revocations,
            ..self
        }
    }
}

/// What a certificate is to be good for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    Client = 1,
    Server = 2,
}

/// What a peer brings.
#[derive(Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) purpose: Purpose,
    pub(super) roots: &'a Roots,
    pub(super) leaf: &'a CertificateDer<'a>,
    pub(super) intermediates: &'a [CertificateDer<'a>],
}

impl Claim<'_> {
    /// Who the chain proves its holder to be, once `verify` finds nothing wrong with it or did so lately, and nobody in it
    /// was revoked.
    pub(super) fn prove(
        self,
        now: UnixTime,
        verify: impl FnOnce() -> Result<(), rustls::Error>,
    ) -> Result<Identity, rustls::Error> {
        static MEMORY: LazyLock<Memory> = LazyLock::new(Memory::default);
        MEMORY.prove(self, now.as_secs(), || {
            verify()?;
            self.roots.revocations.check(self, now)
        })
    }

    fn digest(self) -> Digest {
        let mut all = Context::new(&SHA256);
        all.update(&[self.purpose as u8]);
        all.update(&self.roots.digest);
        all.update(&self.roots.revocations.digest());
        put(&mut all, self.leaf);
        for certificate in self.intermediates {
            put(&mut all, certificate);
        }
        finish(all)
    }

    fn ends(self) -> Option<u64> {
        let each = std::iter::once(self.leaf).chain(self.intermediates);
        ends(each)
    }
}

/// The last second in which all of the certificates are valid.
pub(super) fn ends<'a, 'b: 'a>(
    mut certificates: impl Iterator<Item = &'a CertificateDer<'b>>,
) -> Option<u64> {
    certificates.try_fold(u64::MAX, |least, certificate| {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let ends = parsed.validity().not_after.timestamp();
        Some(least.min(u64::try_from(ends).unwrap_or(0)))
    })
}

#[derive(Default)]
struct Memory(Mutex<HashMap<Digest, Proven>>);

struct Proven {
    identity: Identity,
    /// Seconds since 1970.
    since: u64,
    until: u64,
}

impl Memory {
    fn prove(
        &self,
        claim: Claim<'_>,
        now: u64,
        verify: impl FnOnce() -> Result<(), rustls::Error>,
    ) -> Result<Identity, rustls::Error> {
        let digest = claim.digest();
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(proven) = lock().get(&digest)
            && (proven.since..=proven.until).contains(&now)
        {
            return Ok(proven.identity.clone());
        }
        verify()?;
        let identity = identity_of(claim.leaf).map_err(refuse)?;
        if let Some(ends) = claim.ends() {
            let mut all = lock();
            if all.len() >= MOST {
                all.retain(|_, proven| now <= proven.until);
                if all.len() >= MOST {
                    all.clear();
                }
            }
            let proven = Proven {
                identity: identity.clone(),
                since: now,
                until: ends.min(now.saturating_add(AGAIN.as_secs())),
            };
            all.insert(digest, proven);
        }
        Ok(identity)
    }
}

/// With its length in front, so that no two sequences look the same.
fn put(all: &mut Context, bytes: &[u8]) {
    all.update(&(bytes.len() as u64).to_be_bytes());
    all.update(bytes);
}

fn finish(all: Context) -> Digest {
    let mut digest = [0; 32];
    digest.copy_from_slice(all.finish().as_ref());
    digest
}

#[cfg(test)]
mod tests;
