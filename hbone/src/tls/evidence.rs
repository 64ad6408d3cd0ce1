//! What a peer has shown in its handshake, kept for as long as its connection is open.
//!
//! Whom lists of revoked certificates name may have been let in under others. When they change, the chain of each open
//! connection is judged again, as at its handshake but for the lists ([`Trust::look`]): by the same roots, and as of the same
//! moment, since a certificate that has ended meanwhile ends no tunnel by itself.
//!
//! It goes along when a connection is handed over:
//!
//! ```text
//!  moment 8: seconds of the wall clock | certificates 4 + n x string | roots 4 + n x (name, key: strings | 0, or 1 and constraints)
//! ```

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, Der, TrustAnchor, UnixTime},
};

use super::{
    TlsError,
    proof::{Claim, Purpose, Roots},
    revocation::Revocations,
};
use crate::handover::{
    ThawError,
    wire::{Reader, Writer},
};

/// A chain that was verified.
#[derive(Clone)]
pub(crate) struct Evidence {
    purpose: Purpose,
    roots: Arc<Roots>,
    /// Leaf first.
    chain: Vec<CertificateDer<'static>>,
    at: UnixTime,
}

impl Evidence {
    pub(super) fn new(
        purpose: Purpose,
        roots: &Arc<Roots>,
        chain: &[CertificateDer<'_>],
        at: UnixTime,
    ) -> Self {
        // Owned anew and no longer than it must be: what rustls holds may share a whole message.
        let owned = |it: &CertificateDer<'_>| CertificateDer::from(it.to_vec());
        Self {
            purpose,
            roots: roots.clone(),
            chain: chain.iter().map(owned).collect(),
            at,
        }
    }

    /// Whether nobody in it was revoked.
    fn judge(&self, lists: &Revocations) -> Result<(), TlsError> {
        let (leaf, intermediates) = self.chain.split_first().ok_or(TlsError::NoCertificate)?;
        let claim = Claim {
            purpose: self.purpose,
            roots: &self.roots,
            leaf,
            intermediates,
        };
        let judged = lists.check(claim, self.at);
        judged.map_err(|error| TlsError::from_rustls(&error))
    }

    /// Bytes that [`Evidence::write`] writes.
    pub(crate) fn size(&self) -> usize {
        let chain: usize = self.chain.iter().map(|it| 4 + it.len()).sum();
        let roots = self.roots.store.roots.iter().map(|root| {
            let constraints = root.name_constraints.as_ref().map_or(0, |it| 4 + it.len());
            4 + root.subject.len() + 4 + root.subject_public_key_info.len() + 1 + constraints
        });
        8 + 4 + chain + 4 + roots.sum::<usize>()
    }

    pub(crate) fn write(&self, out: &mut Writer) {
        out.u64(self.at.as_secs());
        out.count(self.chain.len());
        self.chain.iter().for_each(|it| out.string(it));
        out.count(self.roots.store.roots.len());
        for root in &self.roots.store.roots {
            out.string(&root.subject);
            out.string(&root.subject_public_key_info);
            out.u8(root.name_constraints.is_some().into());
            root.name_constraints.iter().for_each(|it| out.string(it));
        }
    }

    /// Of a peer that is a client, or a server.
    pub(crate) fn read(from: &mut Reader<'_>, of_client: bool) -> Result<Self, ThawError> {
        let at = UnixTime::since_unix_epoch(Duration::from_secs(from.u64()?));
        let (mut chain, mut roots) = (Vec::new(), Vec::new());
        for _ in 0..from.u32()? {
            chain.push(CertificateDer::from(from.string()?.to_vec()));
        }
        for _ in 0..from.u32()? {
            let mut part = || Ok::<_, ThawError>(Der::from(from.string()?.to_vec()));
            let (subject, subject_public_key_info) = (part()?, part()?);
            let name_constraints = match from.bool()? {
                true => Some(Der::from(from.string()?.to_vec())),
                false => None,
            };
            roots.push(TrustAnchor {
                subject,
                subject_public_key_info,
                name_constraints,
            });
        }
        Ok(Self {
            purpose: match of_client {
                true => Purpose::Client,
                false => Purpose::Server,
            },
            roots: Arc::new(Roots::new(RootCertStore { roots })),
            chain,
            at,
        })
    }
}

impl fmt::Debug for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Evidence({} certificates)", self.chain.len())
    }
}

/// Whether a peer is still believed, for whoever drives its connection.
pub(crate) struct Trust {
    /// None: it was shown to another process, which did not hand it on.
    evidence: Option<Arc<Evidence>>,
    lists: Arc<Revocations>,
    /// The lists under which it was judged last.
    number: u64,
}

impl Trust {
    /// Of a handshake that began under the lists of this number.
    pub(crate) fn new(
        evidence: Option<Arc<Evidence>>,
        lists: Arc<Revocations>,
        number: u64,
    ) -> Self {
        Self {
            evidence,
            lists,
            number,
        }
    }

    /// Of a connection that was taken over: by which lists its peer was judged is not known. Whoever is known by what it
    /// has shown is judged at the first look, if there is any list; whoever is not, at the first after a change.
    pub(crate) fn taken(evidence: Option<Arc<Evidence>>, lists: &Arc<Revocations>) -> Self {
        let number = lists.number();
        let number = match evidence.is_some() && lists.are_any() {
            true => number.wrapping_sub(1),
            false => number,
        };
        Self::new(evidence, lists.clone(), number)
    }

    /// The verdict, if the lists have changed since the last look. Where it is not known what the peer has shown, nobody can
    /// tell whether it is on one of them.
    pub(crate) fn look(&mut self) -> Option<Result<(), TlsError>> {
        let number = self.lists.number();
        if number == self.number {
            return None;
        }
        self.number = number;
        Some(match &self.evidence {
            Some(evidence) => evidence.judge(&self.lists),
            None if !self.lists.are_any() => Ok(()),
            None => Err(TlsError::RevocationUnknown(NOT_HANDED_OVER.into())),
        })
    }
}

const NOT_HANDED_OVER: &str =
    "its certificate was shown to another process, which did not hand it on";
