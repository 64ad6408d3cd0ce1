//! Who is believed no more, though its certificate has not ended: lists of revoked certificates (RFC 5280).
//!
//! A text with lists enters ([`Revocations::replace`]). From then on a chain that verifies is refused all the same where
//! one of its certificates is on the list of whoever signed it ([`Revocations::check`]): the leaf or an authority
//! between it and the root. The lists in force are part of what a verified chain is remembered by (`proof`), so that a
//! new list is asked about every peer, also about those that go on with an earlier session.
//!
//! * Signers without a list revoke nobody: most have none.
//! * A list whose time for the next one has passed counts on. It still says who was revoked, and a mesh must not end
//!   because nobody wrote a new one.
//! * A list speaks for who signed it, and for nobody else of the same name: successive authorities share one.
//! * A text that cannot be read changes nothing: the lists before it stay. Where there were none, because this process
//!   has read nothing else yet, nobody is believed until it can be read: whom it means to keep out is not known.

use std::{
    fmt, slice,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::{
    CertificateError,
    pki_types::{CertificateRevocationListDer, TrustAnchor, UnixTime, pem::PemObject},
};
use webpki::{
    CertRevocationList, EndEntityCert, KeyUsage, OwnedCertRevocationList, RevocationOptionsBuilder,
    UnknownStatusPolicy,
};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::{
    TlsError, crypto_provider,
    proof::{Claim, Digest, Purpose},
    verify::refuse,
};

/// The lists that all certificates of a process are judged by.
#[derive(Debug, Default)]
pub struct Revocations {
    current: RwLock<Arc<Lists>>,
    /// How often they were replaced.
    number: AtomicU64,
    /// Texts that could not be read.
    unreadable: AtomicU64,
}

/// The lists in force, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RevocationFigures {
    /// How many there are.
    pub lists: usize,
    /// How many certificates they name.
    pub revoked: usize,
    /// Until when each list was to be followed by another, for those that say so.
    pub next_updates: Vec<SystemTime>,
    /// Texts that could not be read, since the start.
    pub unreadable: u64,
}

impl RevocationFigures {
    /// How many lists should have been followed by another before `now`.
    pub fn overdue(&self, now: SystemTime) -> usize {
        let overdue = self.next_updates.iter().filter(|&&next| next < now);
        overdue.count()
    }
}

#[derive(Debug, Default)]
enum Lists {
    /// Nobody has said anything.
    #[default]
    Unsaid,
    /// The first that was said cannot be read.
    Unreadable(String),
    /// Perhaps none.
    Said { all: Vec<List>, digest: Digest },
}

#[derive(Debug)]
struct List {
    judges: CertRevocationList<'static>,
    revoked: usize,
    next_update: Option<SystemTime>,
}

/// Why a text was not taken for lists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the list of revoked certificates cannot be read: {0}")]
pub struct Unreadable(pub String);

impl Revocations {
    /// Puts the lists of a PEM text in place of those before. A text of nothing revokes nobody. Answers how many lists
    /// there are.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn replace(&self, pem: &[u8]) -> Result<usize, Unreadable> {
        match read(pem) {
            Ok(all) => {
                let count = all.len();
                let mut said = [0; 32];
                said.copy_from_slice(digest(&SHA256, pem).as_ref());
                self.put(Lists::Said { all, digest: said });
                Ok(count)
            }
            Err(why) => {
                self.cannot_be_read(&why.0);
                Err(why)
            }
        }
    }

    /// There is a text, and nobody can read it: the lists before it stay, and where there were none nobody is believed.
    pub(crate) fn cannot_be_read(&self, why: &str) {
        self.unreadable.fetch_add(1, Ordering::Relaxed);
        if !matches!(*self.current(), Lists::Said { .. }) {
            self.put(Lists::Unreadable(why.to_owned()));
        }
    }

    /// Another one for each time that there were other lists: what was proven under one is to be asked again under the next.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Whether there is any list, or one that cannot be read.
    pub(crate) fn are_any(&self) -> bool {
        match &*self.current() {
            Lists::Unsaid => false,
            Lists::Unreadable(_) => true,
            Lists::Said { all, .. } => !all.is_empty(),
        }
    }

    /// How many there are, of whom, and until when.
    pub fn figures(&self) -> RevocationFigures {
        let unreadable = self.unreadable.load(Ordering::Relaxed);
        let current = self.current();
        let all: &[List] = match &*current {
            Lists::Unsaid | Lists::Unreadable(_) => &[],
            Lists::Said { all, .. } => all.as_slice(),
        };
        RevocationFigures {
            lists: all.len(),
            revoked: all.iter().map(|list| list.revoked).sum(),
            next_updates: all.iter().filter_map(|list| list.next_update).collect(),
            unreadable,
        }
    }

    /// What tells these lists from all others.
    pub(super) fn digest(&self) -> Digest {
        match &*self.current() {
            Lists::Unsaid => [0; 32],
            Lists::Unreadable(_) => [1; 32],
            Lists::Said { digest, .. } => *digest,
        }
    }

    /// Whether nobody in a chain that verifies was revoked.
    pub(super) fn check(&self, claim: Claim<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        let lists = self.current();
        match &*lists {
            Lists::Unsaid => Ok(()),
            Lists::Unreadable(why) => Err(refuse(TlsError::RevocationUnknown(why.clone()))),
            // One by one: webpki asks only the first of a signer's name.
            Lists::Said { all, .. } => all
                .iter()
                .try_for_each(|list| judge(claim, now, &list.judges)),
        }
    }

    fn current(&self) -> Arc<Lists> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.clone()
    }

    fn put(&self, lists: Lists) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(lists);
        self.number.fetch_add(1, Ordering::Release);
    }
}

/// What one list says of a chain that verifies. Root by root: of several paths webpki tells the error that it takes for the most
/// telling, and that may be one of a root of the same name that has nothing to do with the chain.
fn judge(
    claim: Claim<'_>,
    now: UnixTime,
    list: &CertRevocationList<'static>,
) -> Result<(), rustls::Error> {
    let unknown = |why: &dyn fmt::Display| refuse(TlsError::RevocationUnknown(why.to_string()));
    let (mut leads, mut of_another) = (false, false);
    for root in &claim.roots.store.roots {
        let root = slice::from_ref(root);
        if verified(claim, now, root, None).is_err() {
            continue; // the chain does not lead there
        }
        leads = true;
        match verified(claim, now, root, Some(list)) {
            Ok(()) => {}
            // Another key than the signer's, perhaps of another kind: its own, or, where the chain could be put together in
            // several ways, that of the certificate that the last way began with.
            Err(
                webpki::Error::InvalidCrlSignatureForPublicKey
                | webpki::Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)
                | webpki::Error::InvalidSignatureForPublicKey
                | webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_),
            ) => of_another = true,
            Err(webpki::Error::CertRevoked) => return Err(revoked()),
            Err(why) => return Err(unknown(&why)),
        }
    }
    if !leads {
        return Err(unknown(&webpki::Error::UnknownIssuer));
    }
    // An authority may have the name of one above it, which is the first to be asked whose list it is. So each is asked for
    // itself; what a peer adds to its chain without need can speak against it alone.
    let below = || {
        claim.intermediates.iter().any(|authority| {
            let anchor = webpki::anchor_from_trusted_cert(authority);
            let judged = anchor.map(|it| verified(claim, now, slice::from_ref(&it), Some(list)));
            matches!(judged, Ok(Err(webpki::Error::CertRevoked)))
        })
    };
    match of_another && below() {
        true => Err(revoked()),
        false => Ok(()),
    }
}

/// The peer is told as well.
fn revoked() -> rustls::Error {
    rustls::Error::InvalidCertificate(CertificateError::Revoked)
}

/// Whether the chain leads to one of these, and nobody in it is on the list.
fn verified(
    claim: Claim<'_>,
    now: UnixTime,
    anchors: &[TrustAnchor<'_>],
    list: Option<&CertRevocationList<'static>>,
) -> Result<(), webpki::Error> {
    let lists: Vec<_> = list.into_iter().collect();
    // None where there is no list.
    let options = RevocationOptionsBuilder::new(&lists).ok();
    let options = options.map(|it| it.with_status_policy(UnknownStatusPolicy::Allow).build());
    let usage = match claim.purpose {
        Purpose::Client => KeyUsage::client_auth(),
        Purpose::Server => KeyUsage::server_auth(),
    };
    let algorithms = crypto_provider().signature_verification_algorithms;
    let leaf = EndEntityCert::try_from(claim.leaf)?;
    let verified = leaf.verify_for_usage(
        algorithms.all,
        anchors,
        claim.intermediates,
        now,
        usage,
        options,
        None,
    );
    verified.map(|_| ())
}

fn read(pem: &[u8]) -> Result<Vec<List>, Unreadable> {
    let mut all = Vec::new();
    for list in CertificateRevocationListDer::pem_slice_iter(pem) {
        let list = list.map_err(|error| Unreadable(error.to_string()))?;
        all.push(List::read(&list).map_err(Unreadable)?);
    }
    if all.is_empty() && !pem.trim_ascii().is_empty() {
        return Err(Unreadable("it holds none in PEM".into()));
    }
    Ok(all)
}

impl List {
    fn read(der: &CertificateRevocationListDer<'_>) -> Result<Self, String> {
        let judges = OwnedCertRevocationList::from_der(der).map_err(|error| error.to_string())?;
        // For figures alone: what judges is read already.
        let parsed = CertificateRevocationList::from_der(der).ok();
        let parsed = parsed.as_ref().map(|(_, list)| list);
        let next_update = parsed.and_then(CertificateRevocationList::next_update);
        let next_update = next_update.map(|at| {
            let seconds = u64::try_from(at.timestamp()).unwrap_or(0);
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        });
        Ok(Self {
            judges: CertRevocationList::Owned(judges),
            revoked: parsed.map_or(0, |list| list.iter_revoked_certificates().count()),
            next_update,
        })
    }
}

#[cfg(test)]
mod tests;
