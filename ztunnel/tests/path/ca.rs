//! A certificate authority in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use hbone::{Identity, SignError, Signer};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, SanType,
};
use rustls::pki_types::CertificateDer;

#[path = "../../../hbone/tests/common/revoked.rs"]
mod revoked;

/// Signs whatever is asked, unless it is down.
#[derive(Clone)]
pub(crate) struct Ca(Arc<Inner>);

struct Inner {
    issuer: Issuer<'static, KeyPair>,
    root_pem: String,
    down: AtomicBool,
    /// Signs this identity instead of the one asked for.
    lie: Option<&'static str>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_pem = params.self_signed(&key).unwrap().pem();
        Self(Arc::new(Inner {
            issuer: Issuer::new(params, key),
            root_pem,
            down: AtomicBool::new(false),
            lie: None,
        }))
    }

    pub(crate) fn root(&self) -> &str {
        &self.0.root_pem
    }

    /// A certificate with any names and any end of validity, for peers that are not what they should be.
    pub(crate) fn leaf(&self, uris: &[&str], key: &KeyPair, not_after: SystemTime) -> String {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = (not_after.min(SystemTime::now()) - Duration::from_secs(120)).into();
        params.not_after = not_after.into();
        params.signed_by(key, &self.0.issuer).unwrap().pem()
    }

    /// Its list of those that it takes back, in PEM.
    pub(crate) fn revoking(&self, revoked: &CertificateDer<'_>) -> String {
        revoked::list(&self.0.issuer, [revoked], 2120)
    }

    pub(crate) fn set_down(&self, down: bool) {
        self.0.down.store(down, Ordering::Relaxed);
    }
}

impl Signer for Ca {
    async fn sign(&self, identity: &Identity, csr_pem: String) -> Result<Vec<String>, SignError> {
        if self.0.down.load(Ordering::Relaxed) {
            return Err(SignError::Unavailable("down for the test".into()));
        }
        let mut csr = CertificateSigningRequestParams::from_pem(&csr_pem).unwrap();
        let name = self
            .0
            .lie
            .map_or_else(|| identity.to_string(), str::to_owned);
        csr.params.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())];
        csr.params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let leaf = csr.signed_by(&self.0.issuer).unwrap();
        Ok(vec![leaf.pem(), self.0.root_pem.clone()])
    }
}
