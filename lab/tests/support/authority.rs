//! A signer whose key the test holds: certificates of the mesh for peers that are not ours.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, PublicKeyData, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};

/// Self-signed, in a directory of its own under Istio's names (see `Builder::signer`).
pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

impl Ca {
    pub(crate) fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "cluster.local");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("ca-key.pem"), issuer.key().serialize_pem())?;
        for name in ["ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
            fs::write(dir.path().join(name), issuer.pem())?;
        }
        Ok(Self { issuer, dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn root(&self) -> String {
        self.issuer.pem()
    }

    /// A leaf for a key, valid from two minutes ago until `not_after`.
    pub(crate) fn leaf(
        &self,
        uris: &[&str],
        key: &impl PublicKeyData,
        not_after: SystemTime,
    ) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = (not_after.min(SystemTime::now()) - Duration::from_secs(120)).into();
        params.not_after = not_after.into();
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    /// Its list of one that it takes back.
    pub(crate) fn revoking(&self, serial: u128) -> Result<String> {
        let then = date_time_ymd(2020, 1, 1);
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial.to_be_bytes().to_vec()),
            revocation_time: then,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: then,
            next_update: date_time_ymd(2120, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }

    /// `cert.pem`, `key.pem` and `root.pem` in `dir`, for a program that reads files.
    pub(crate) fn files(&self, identity: &str, dir: &Path) -> Result<()> {
        let key = KeyPair::generate()?;
        let soon = SystemTime::now() + Duration::from_secs(3600);
        fs::write(dir.join("cert.pem"), self.leaf(&[identity], &key, soon))?;
        fs::write(dir.join("key.pem"), key.serialize_pem())?;
        fs::write(dir.join("root.pem"), self.root())?;
        Ok(())
    }
}
