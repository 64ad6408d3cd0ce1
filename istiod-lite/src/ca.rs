//! The certificate authority: from a public key and an identity to a chain.
//!
//! 1. where the signer is kept: in files or in Secrets                       ([`directory`], [`cluster`])
//!    what we sign with must fit together, and after what was there before   ([`material`], [`overlap`])
//! 2. what is asked: a CSR, of which only the key counts                     ([`csr`])
//! 3. what is answered: leaf, intermediates, roots                           (this file)
//! 4. who may ask for what                                                   ([`crate::authenticate`])
//! 5. the gRPC method around them                                            ([`service`])
//!
//! No name in a CSR is ever looked at: a certificate says what the caller proved to be, nothing
//! the caller wrote.

pub mod cluster;
mod csr;
mod directory;
mod material;
mod overlap;
mod root;
mod secret;
mod service;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hbone::Identity;
use hbone::control_plane::MachineName;
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use tokio::sync::watch;
use x509_parser::time::ASN1Time;

pub use csr::CsrError;
pub use directory::Source;
pub use material::MaterialError;
pub use overlap::Abrupt;
pub use service::CertificateService;

use material::{Material, Parts};

/// How long leaves live.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    /// Where the caller names none: 24 h, `DEFAULT_WORKLOAD_CERT_TTL`.
    pub default: Duration,
    /// More than this is refused: 90 d, `MAX_WORKLOAD_CERT_TTL`.
    pub longest: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            default: Duration::from_secs(24 * 3600),
            longest: Duration::from_secs(90 * 24 * 3600),
        }
    }
}

/// The signer in use, and the rules of signing.
pub struct Authority {
    /// None where it is kept in a cluster.
    source: Option<Source>,
    trust_domain: Arc<str>,
    lifetimes: Lifetimes,
    current: ArcSwap<Material>,
    changes: watch::Sender<u64>,
}

/// No certificate.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The request itself is at fault.
    #[error("CSR signing error ({0})")]
    Csr(#[from] CsrError),
    /// Longer than we ever sign for.
    #[error("CSR signing error (requested TTL {} is greater than the max allowed TTL {})", clock(.asked), clock(.longest))]
    TooLong {
        /// What the caller asked for.
        asked: Duration,
        /// What we allow.
        longest: Duration,
    },
    /// Nothing signed now would verify.
    #[error(
        "CSR signing error (the signing certificate, or one between it and the root, expired; renew ca-cert.pem and cert-chain.pem)"
    )]
    SignerExpired,
    /// The crypto library refused; details are for our log.
    #[error("CSR signing error (signer failure)")]
    Signer(#[from] rcgen::Error),
}

impl Authority {
    fn new(
        source: Option<Source>,
        material: Material,
        trust_domain: Arc<str>,
        lifetimes: Lifetimes,
    ) -> Self {
        Self {
            source,
            trust_domain,
            lifetimes,
            current: ArcSwap::from_pointee(material),
            changes: watch::Sender::new(0),
        }
    }

    /// The trust domain every identity we sign lies in.
    pub fn trust_domain(&self) -> &Arc<str> {
        &self.trust_domain
    }

    /// All roots in PEM: what clients must trust.
    pub fn roots(&self) -> String {
        self.current.load().roots.clone()
    }

    /// What was revoked, in PEM; mostly empty.
    pub fn crl(&self) -> String {
        self.current.load().parts.crl.clone()
    }

    /// When the first of the roots, and when the signer, stop being valid (seconds since 1970).
    pub fn expiries(&self) -> (i64, i64) {
        let material = self.current.load();
        (material.roots_not_after, material.not_after)
    }

    /// Counts the changes of signer or roots: something to do again when it moves.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Signs with these parts from now on, and tells these roots; `false` if that is so already.
    /// On an error the old signer goes on.
    fn adopt(&self, parts: Parts) -> Result<bool, MaterialError> {
        let current = self.current.load_full();
        if current.parts == parts {
            return Ok(false);
        }
        let fresh = Material::check(parts)?;
        overlap::judge(&current, &fresh)?;
        self.current.store(Arc::new(fresh));
        self.changes.send_modify(|count| *count += 1);
        Ok(true)
    }

    /// The chain for the key in `csr`: leaf, intermediates one by one, last all the roots.
    ///
    /// `seconds`: zero or less means the default.
    pub fn sign(
        &self,
        identity: &Identity,
        csr: &str,
        seconds: i64,
    ) -> Result<Vec<String>, SignError> {
        let key = csr::public_key(csr)?;
        let asked = match u64::try_from(seconds) {
            Ok(seconds @ 1..) => Duration::from_secs(seconds),
            _ => self.lifetimes.default,
        };
        let longest = self.lifetimes.longest;
        if asked > longest {
            return Err(SignError::TooLong { asked, longest });
        }
        let uri = identity.to_string().try_into()?;
        let usages = [
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.issue(&key, vec![SanType::URI(uri)], asked, &usages)
    }

    /// The chain by which a machine is known to us, and to nobody else: it has no identity that a peer would believe. Longer than
    /// the default it never counts, whatever is asked.
    ///
    /// # Errors
    /// As of [`Authority::sign`].
    pub fn sign_machine(
        &self,
        machine: &MachineName,
        csr: &str,
        seconds: i64,
    ) -> Result<Vec<String>, SignError> {
        let key = csr::public_key(csr)?;
        let uri = machine.to_string().try_into()?;
        let lifetime = self.no_longer(seconds);
        self.issue(
            &key,
            vec![SanType::URI(uri)],
            lifetime,
            &[ExtendedKeyUsagePurpose::ClientAuth],
        )
    }

    /// What was asked for, or the default where that is shorter.
    pub fn no_longer(&self, seconds: i64) -> Duration {
        match u64::try_from(seconds) {
            Ok(seconds @ 1..) => Duration::from_secs(seconds).min(self.lifetimes.default),
            _ => self.lifetimes.default,
        }
    }

    /// Our own server's chain for a fresh key, with the life of a workload's certificate.
    pub fn sign_server(
        &self,
        key: &KeyPair,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<Vec<String>, SignError> {
        let mut sans = Vec::with_capacity(names.len() + addresses.len());
        for name in names {
            let name = name.clone().try_into()?;
            sans.push(SanType::DnsName(name));
        }
        sans.extend(addresses.iter().copied().map(SanType::IpAddress));
        self.issue(
            key,
            sans,
            self.lifetimes.default,
            &[ExtendedKeyUsagePurpose::ServerAuth],
        )
    }

    fn issue(
        &self,
        key: &impl PublicKeyData,
        sans: Vec<SanType>,
        lifetime: Duration,
        usages: &[ExtendedKeyUsagePurpose],
    ) -> Result<Vec<String>, SignError> {
        let material = self.current.load();
        let now = ASN1Time::now().timestamp();
        if now >= material.not_after {
            return Err(SignError::SignerExpired);
        }
        let wished = now.saturating_add(i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX));
        let mut params = leaf(sans, now - BACKDATED, wished.min(material.not_after))?;
        params.extended_key_usages = usages.to_vec();
        let certificate = params.signed_by(key, &material.issuer)?;
        let mut chain = Vec::with_capacity(2 + material.intermediates.len());
        chain.push(material::to_pem(certificate.der()));
        chain.extend(material.intermediates.iter().cloned());
        chain.push(material.roots.clone());
        Ok(chain)
    }
}

/// Clocks of a cluster disagree: leaves are valid from two minutes ago, as Istio's are.
const BACKDATED: i64 = 120;
const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
const EMPTY_SEQUENCE: &[u8] = &[0x30, 0x00];

fn leaf(
    sans: Vec<SanType>,
    not_before: i64,
    not_after: i64,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    // An empty subject is what makes the SAN critical (RFC 5280, 4.2.1.6).
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = sans;
    set_validity(&mut params, not_before, not_after)?;
    params.serial_number = Some(serial()?);
    // rcgen's own "not a CA" brings a subject key identifier along, which on a leaf is dead weight
    // in every handshake; Istio's leaves have none.
    params.is_ca = IsCa::NoCa;
    let mut not_ca = CustomExtension::from_oid_content(BASIC_CONSTRAINTS, EMPTY_SEQUENCE.to_vec());
    not_ca.set_criticality(true);
    params.custom_extensions.push(not_ca);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Both in seconds since 1970.
fn set_validity(params: &mut CertificateParams, from: i64, until: i64) -> Result<(), rcgen::Error> {
    let date = |seconds| ASN1Time::from_timestamp(seconds).map_err(|_| rcgen::Error::Time);
    params.not_before = date(from)?.to_datetime();
    params.not_after = date(until)?.to_datetime();
    Ok(())
}

/// 128 random bits: nobody can predict the bytes that get signed.
fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    Ok(SerialNumber::from_slice(&bytes))
}

/// `2160h0m1s`: lifetimes in the form operators know from Istio's messages.
fn clock(duration: &Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests;
