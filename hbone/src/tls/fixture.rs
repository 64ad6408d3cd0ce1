//! What the tests of this module share: authorities, certificates of any kind, a clock that is set.
#![allow(clippy::unwrap_used)] // a test may stop at the first surprise

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime},
    server::danger::ClientCertVerifier,
    sign::CertifiedKey,
    time_provider::TimeProvider,
};

use super::{Credentials, crypto_provider, proof::Roots, verify::client_verifier};
use crate::identity::Identity;

#[path = "../../tests/common/revoked.rs"]
mod revoked;

pub(super) const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
pub(super) const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";
pub(super) const MINUTE: u64 = 60;
pub(super) const HOUR: u64 = 3600;

pub(super) fn identity(name: &str) -> Identity {
    name.parse().unwrap()
}

pub(super) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// An authority below this one, of the same name.
    pub(super) fn below(&self) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::signed_by(params, key, &self.0).unwrap())
    }

    pub(super) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(super) fn roots(&self) -> Arc<Roots> {
        Self::all_roots(&[self])
    }

    /// In that order.
    pub(super) fn all_roots(all: &[&Self]) -> Arc<Roots> {
        let mut roots = RootCertStore::empty();
        all.iter().for_each(|ca| roots.add(ca.der()).unwrap());
        Arc::new(Roots::new(roots))
    }

    /// Of two hours.
    pub(super) fn badge(&self, names: &[&str], not_after: SystemTime) -> Arc<CertifiedKey> {
        self.badge_since(names, not_after - Duration::from_secs(2 * HOUR), not_after)
    }

    pub(super) fn badge_since(
        &self,
        names: &[&str],
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Arc<CertifiedKey> {
        let mut params = CertificateParams::default();
        let names = names.iter().map(|name| (*name).try_into().unwrap());
        params.subject_alt_names = names.map(SanType::URI).collect();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = crypto_provider().key_provider.load_private_key(key);
        Arc::new(CertifiedKey::new(vec![leaf.der().clone()], key.unwrap()))
    }

    /// The list of those it takes back, in PEM.
    pub(super) fn revoking(&self, revoked: &[&CertificateDer<'_>]) -> String {
        // Long ago: it counts on.
        revoked::list(&self.0, revoked.iter().copied(), 2020)
    }

    /// Accepts clients of `cluster.local`.
    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        client_verifier(&self.roots(), Arc::new(["cluster.local".into()])).unwrap()
    }

    /// Valid from an hour before `clock` until `hours` after it.
    pub(super) fn credentials(&self, name: &str, hours: u64, clock: &Arc<Clock>) -> Credentials {
        let now = clock.system();
        let (since, until) = (
            now - Duration::from_secs(HOUR),
            now + Duration::from_secs(hours * HOUR),
        );
        let badge = self.badge_since(&[name], since, until);
        Credentials::new(badge, self.roots(), self.verifier(), clock.clone()).unwrap()
    }
}

/// Stands still until it is set.
#[derive(Debug)]
pub(super) struct Clock(AtomicU64);

impl Clock {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(UnixTime::now().as_secs())))
    }

    pub(super) fn forward(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }

    pub(super) fn back(&self, seconds: u64) {
        self.0.fetch_sub(seconds, Ordering::SeqCst);
    }

    pub(super) fn seconds(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub(super) fn system(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.seconds())
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            self.seconds(),
        )))
    }
}
