//! Roots of others than the mesh, and whom of those that they vouch for not to believe.
//!
//! For TLS that is spoken to what is not of the mesh. Lists are judged as the mesh's own are ([`Revocations`]); these do not
//! change while they are held.

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, UnixTime},
};

use super::{
    proof::{Claim, Purpose, Roots},
    revocation::{Revocations, Unreadable},
};

/// Roots, with lists of revoked certificates under them.
#[derive(Debug)]
pub struct Anchors {
    roots: Roots,
    revocations: Revocations,
}

impl Anchors {
    /// With the lists of a PEM text; a text of nothing revokes nobody.
    ///
    /// # Errors
    /// One of them cannot be read: whom it means to keep out is not known.
    pub fn new(roots: RootCertStore, lists: &[u8]) -> Result<Self, Unreadable> {
        let revocations = Revocations::default();
        revocations.replace(lists)?;
        Ok(Self {
            roots: Roots::new(roots),
            revocations,
        })
    }

    /// The roots.
    pub fn roots(&self) -> &RootCertStore {
        &self.roots.store
    }

    /// Whether nobody in a server's chain, which verifies by these roots, was revoked.
    ///
    /// # Errors
    /// Somebody was, or nobody can tell.
    pub fn check_server(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let claim = Claim {
            purpose: Purpose::Server,
            roots: &self.roots,
            leaf,
            intermediates,
        };
        self.revocations.check(claim, now)
    }
}
