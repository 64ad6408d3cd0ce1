//! A signer whose key the bench holds, so that its load generators and a peer are of the same mesh as the lab's programs.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use hbone::{Identity, SignError};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType,
};

/// Longer than any run.
const VALID: Duration = Duration::from_secs(24 * 3600);
/// Clocks differ.
const EARLIER: Duration = Duration::from_secs(120);

/// Clones share the key; its directory goes with the last.
#[derive(Clone)]
pub(crate) struct Authority(Arc<Kept>);

struct Kept {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Drop for Kept {
    fn drop(&mut self) {
        // It is in the place for temporary files.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Authority {
    /// Self-signed, with a directory of its own under Istio's names (see `lab::Builder::signer`).
    pub(crate) fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let number = std::process::id();
        let dir = std::env::temp_dir().join(format!("ambit-bench-signer-{number}"));
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("ca-key.pem"), issuer.key().serialize_pem())?;
        for name in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
            fs::write(dir.join(name), issuer.pem())?;
        }
        Ok(Self(Arc::new(Kept { issuer, dir })))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// `cert.pem`, `key.pem` and `root.pem` in `dir`, for a program that reads files.
    pub(crate) fn files(&self, identity: &Identity, dir: &Path) -> Result<()> {
        let key = KeyPair::generate()?;
        fs::write(dir.join("cert.pem"), self.leaf(identity, &key)?)?;
        fs::write(dir.join("key.pem"), key.serialize_pem())?;
        fs::write(dir.join("root.pem"), self.0.issuer.pem())?;
        Ok(())
    }

    fn leaf(&self, identity: &Identity, key: &impl PublicKeyData) -> Result<String> {
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = (now - EARLIER).into();
        params.not_after = (now + VALID).into();
        Ok(params.signed_by(key, &self.0.issuer)?.pem())
    }

    fn answer(&self, identity: &Identity, csr: &str) -> Result<Vec<String>> {
        let asked = CertificateSigningRequestParams::from_pem(csr)?;
        let leaf = self.leaf(identity, &asked.public_key)?;
        Ok(vec![leaf, self.0.issuer.pem()])
    }
}

impl hbone::Signer for Authority {
    async fn sign(&self, identity: &Identity, csr_pem: String) -> Result<Vec<String>, SignError> {
        let signed = self.answer(identity, &csr_pem);
        signed.map_err(|error| SignError::Failed(format!("{error:#}")))
    }
}

fn named() -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "cluster.local");
    name
}
