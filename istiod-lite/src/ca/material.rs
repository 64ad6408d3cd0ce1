//! What we sign with: a key, its certificate, the way up to the roots.
//!
//! Four texts under one of two sets of names: Istio's (`ca-key.pem`, `ca-cert.pem`,
//! `cert-chain.pem`, `root-cert.pem`) or those of a TLS Secret, as cert-manager writes them
//! (`tls.key`, `tls.crt` with the intermediates behind the signer, `ca.crt`).
//!
//! 1. the set of names is found, the texts are read                            ([`Parts::read`])
//! 2. they must belong together: key to certificate, certificate up to a root  ([`Material::check`])
//! 3. a probe is signed: its issuer must be the signer's subject byte for byte, or no leaf verifies
//!
//! Whether a good signer may follow the one in use is another question ([`super::overlap`]).

use std::io;
use std::path::PathBuf;

use base64::Engine as _;
use rcgen::{Issuer, KeyPair, PublicKeyData as _};
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::time::ASN1Time;

use super::leaf;

/// The names of a set, in messages and in files or Secrets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) key: &'static str,
    pub(super) certificate: &'static str,
    pub(super) chain: &'static str,
    pub(super) roots: &'static str,
}

/// Istio's names.
pub(super) const ISTIO: Names = Names {
    key: "ca-key.pem",
    certificate: "ca-cert.pem",
    chain: "cert-chain.pem",
    roots: "root-cert.pem",
};

/// The names of a Secret of type `kubernetes.io/tls`.
pub(super) const TLS: Names = Names {
    key: "tls.key",
    certificate: "tls.crt",
    chain: "tls.crt",
    roots: "ca.crt",
};

/// A list of what was revoked, beside either set.
const CRL: &str = "ca-crl.pem";

/// The texts, as they were found.
#[derive(Clone, PartialEq)]
pub(super) struct Parts {
    pub(super) names: &'static Names,
    pub(super) key: String,
    pub(super) certificate: String,
    pub(super) chain: String,
    pub(super) roots: String,
    /// What was revoked; mostly empty.
    pub(super) crl: String,
}

/// A signer whose parts were seen to fit.
pub(super) struct Material {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// The end of the signer, or of the first that ends between it and the root, seconds since 1970: no chain that is signed
    /// now is believed for longer.
    pub(super) not_after: i64,
    /// From the signer (unless it is a root) up to below the root, PEM each.
    pub(super) intermediates: Vec<String>,
    /// All roots in one PEM text, each once.
    pub(super) roots: String,
    /// The end of the root that ends first, seconds since 1970.
    pub(super) roots_not_after: i64,
    /// The root that the signer leads to.
    pub(super) anchor: Anchor,
    /// All roots, as verifiers see them.
    pub(super) anchors: Vec<Anchor>,
    pub(super) parts: Parts,
}

/// What of a root counts when a chain is verified: its name and its key. A renewed root with the
/// same key is the same anchor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Anchor {
    subject: Vec<u8>,
    key: Vec<u8>,
    /// For messages.
    pub(super) name: String,
}

/// The texts cannot be signed with.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// Reading or writing failed.
    #[error("{}: {error}", .path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// One of the texts is not there.
    #[error("{0} is missing")]
    Absent(&'static str),
    /// A key without its certificate could be renewed; a certificate without its key is useless,
    /// and a new root in its place would cut every running workload off.
    #[error("{0} is missing beside {1}; put it back, or remove both to start with a new root")]
    Missing(&'static str, &'static str),
    /// Not PEM, not a certificate, not a key.
    #[error("{0} cannot be read: {1}")]
    Malformed(&'static str, String),
    /// Another key's certificate.
    #[error("{0} is not the key of the certificate in {1}")]
    KeyMismatch(&'static str, &'static str),
    /// A leaf certificate where a CA's should be.
    #[error(
        "{0} does not begin with a CA's certificate (basic constraints CA:TRUE, key usage certificate sign)"
    )]
    NotCa(&'static str),
    /// Outside its time.
    #[error("{file}: the certificate of {subject} {when}")]
    Time {
        /// Where it stands.
        file: &'static str,
        /// Its subject.
        subject: String,
        /// `expired on …` or `is not valid before …`.
        when: String,
    },
    /// No way from the signer to any root.
    #[error(
        "the certificate in {certificate} does not lead to any certificate of {roots} through {chain}"
    )]
    NoPath {
        /// Where the signer stands.
        certificate: &'static str,
        /// Where intermediates are looked for.
        chain: &'static str,
        /// Where roots are looked for.
        roots: &'static str,
    },
    /// A name with parts that rcgen cannot write again as they were.
    #[error(
        "the subject of {0} has repeated or multi-valued parts, which cannot be written into a certificate"
    )]
    Subject(&'static str),
    /// The library refused.
    #[error("signing with the CA's key failed: {0}")]
    Sign(#[from] rcgen::Error),
    /// It would cut workloads off.
    #[error(transparent)]
    Abrupt(#[from] super::overlap::Abrupt),
}

impl Parts {
    /// The texts of the set that is there. `read` says what stands under a name, if anything; a
    /// TLS set wins where both are there, as at Istio's.
    pub(super) fn read(
        mut read: impl FnMut(&'static str) -> Result<Option<String>, MaterialError>,
    ) -> Result<Self, MaterialError> {
        let names = if read(TLS.certificate)?.is_some() {
            &TLS
        } else {
            &ISTIO
        };
        let mut required = |name: &'static str| read(name)?.ok_or(MaterialError::Absent(name));
        Ok(Self {
            names,
            key: required(names.key)?,
            certificate: required(names.certificate)?,
            roots: required(names.roots)?,
            chain: read(names.chain)?.unwrap_or_default(),
            crl: read(CRL)?.unwrap_or_default(),
        })
    }
}

impl Material {
    /// Whether the texts belong together and can be used now.
    pub(super) fn check(parts: Parts) -> Result<Self, MaterialError> {
        let names = parts.names;
        let signer = certificates(names.certificate, &parts.certificate)?.swap_remove(0);
        let roots = distinct(certificates(names.roots, &parts.roots)?);
        let between = match parts.chain.trim() {
            "" => Vec::new(),
            chain => certificates(names.chain, chain)?,
        };
        let key = KeyPair::from_pem(&parts.key)
            .map_err(|error| MaterialError::Malformed(names.key, error.to_string()))?;
        let certificate = parse(names.certificate, &signer)?;
        check_signer(names, &certificate, &key)?;
        let (intermediates, root) = path_to_root(names, &signer, &between, &roots)?;
        let mut ends = Vec::with_capacity(roots.len());
        let mut anchors = Vec::with_capacity(roots.len());
        for root in &roots {
            let root = parse(names.roots, root)?;
            ends.push(root.validity().not_after.timestamp());
            anchors.push(Anchor::of(&root));
        }
        let mut not_after = certificate.validity().not_after.timestamp();
        for above in &intermediates {
            let above = parse(names.chain, above)?;
            not_after = not_after.min(above.validity().not_after.timestamp());
        }
        let issuer = Issuer::from_ca_cert_der(&signer.as_slice().into(), key)
            .map_err(|_| MaterialError::Subject(names.certificate))?;
        check_issuer(names, &issuer, &certificate)?;
        check_crl(&parts.crl)?;
        Ok(Self {
            issuer,
            not_after,
            intermediates: intermediates.iter().map(|der| to_pem(der)).collect(),
            roots: roots.iter().map(|der| to_pem(der)).collect(),
            roots_not_after: ends.into_iter().min().unwrap_or_default(),
            anchor: Anchor::of(&parse(names.roots, root)?),
            anchors,
            parts,
        })
    }
}

/// The roots of a PEM text as verifiers see them; none of an empty text.
pub(super) fn anchors(name: &'static str, text: &str) -> Result<Vec<Anchor>, MaterialError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let anchor = |der: &Vec<u8>| Ok(Anchor::of(&parse(name, der)?));
    certificates(name, text)?.iter().map(anchor).collect()
}

impl Anchor {
    fn of(certificate: &X509Certificate<'_>) -> Self {
        Self {
            subject: certificate.subject().as_raw().to_vec(),
            key: certificate.public_key().raw.to_vec(),
            name: certificate.subject().to_string(),
        }
    }
}

fn check_signer(
    names: &'static Names,
    certificate: &X509Certificate<'_>,
    key: &KeyPair,
) -> Result<(), MaterialError> {
    if certificate.public_key().raw != key.subject_public_key_info() {
        return Err(MaterialError::KeyMismatch(names.key, names.certificate));
    }
    let usage = certificate
        .key_usage()
        .map_err(|error| MaterialError::Malformed(names.certificate, error.to_string()))?;
    if !certificate.is_ca() || usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(MaterialError::NotCa(names.certificate));
    }
    Ok(())
}

/// The certificates to send with a leaf, from its signer upwards, and the root above them, all
/// valid now. The chain may hold them in any order, leave out the signer or repeat the root: what
/// is sent is always right.
fn path_to_root<'a>(
    names: &'static Names,
    signer: &'a Vec<u8>,
    between: &'a [Vec<u8>],
    roots: &'a [Vec<u8>],
) -> Result<(Vec<&'a Vec<u8>>, &'a Vec<u8>), MaterialError> {
    let mut path = Vec::new();
    let mut at = signer;
    check_time(names.certificate, at)?;
    let none = MaterialError::NoPath {
        certificate: names.certificate,
        chain: names.chain,
        roots: names.roots,
    };
    // Each step uses up one certificate of the chain, or it goes in circles.
    for _ in 0..=between.len() {
        if let Some(root) = roots.iter().find(|root| *root == at) {
            return Ok((path, root));
        }
        path.push(at);
        let above: Vec<_> = roots.iter().filter(|root| issued(root, at)).collect();
        // Of a root and its renewal, the one that is valid.
        if let Some(root) = above
            .iter()
            .find(|root| check_time(names.roots, root).is_ok())
        {
            return Ok((path, root));
        }
        if let Some(root) = above.first() {
            check_time(names.roots, root)?;
        }
        let next = between
            .iter()
            .find(|above| !path.contains(above) && issued(above, at));
        let Some(next) = next else { return Err(none) };
        check_time(names.chain, next)?;
        at = next;
    }
    Err(none)
}

fn check_time(file: &'static str, der: &[u8]) -> Result<(), MaterialError> {
    let certificate = parse(file, der)?;
    let (validity, now) = (certificate.validity(), ASN1Time::now());
    let when = if now >= validity.not_after {
        format!("expired on {}", validity.not_after)
    } else if now < validity.not_before {
        format!("is not valid before {}", validity.not_before)
    } else {
        return Ok(());
    };
    Err(MaterialError::Time {
        file,
        subject: certificate.subject().to_string(),
        when,
    })
}

fn issued(above: &[u8], below: &[u8]) -> bool {
    let (Ok((_, above)), Ok((_, below))) = (
        X509Certificate::from_der(above),
        X509Certificate::from_der(below),
    ) else {
        return false;
    };
    above.subject().as_raw() == below.issuer().as_raw()
        && below.verify_signature(Some(above.public_key())).is_ok()
}

/// rcgen keeps one value for each kind of name part: a subject with two `DC=` would come out
/// short, and verifiers compare bytes.
fn check_issuer(
    names: &'static Names,
    issuer: &Issuer<'static, KeyPair>,
    signer: &X509Certificate<'_>,
) -> Result<(), MaterialError> {
    let now = ASN1Time::now().timestamp();
    let probe = leaf(Vec::new(), now, now)?.signed_by(issuer.key(), issuer)?;
    let probe = parse(names.certificate, probe.der())?;
    let written = probe.issuer().as_raw() == signer.subject().as_raw();
    if written && probe.verify_signature(Some(signer.public_key())).is_ok() {
        Ok(())
    } else {
        Err(MaterialError::Subject(names.certificate))
    }
}

/// A list that cannot be read would let pass what was revoked.
fn check_crl(text: &str) -> Result<(), MaterialError> {
    for pem in Pem::iter_from_buffer(text.as_bytes()) {
        let malformed = |error: String| MaterialError::Malformed(CRL, error);
        let pem = pem.map_err(|error| malformed(error.to_string()))?;
        CertificateRevocationList::from_der(&pem.contents)
            .map_err(|error| malformed(error.to_string()))?;
    }
    Ok(())
}

/// Every certificate of a PEM text, at least one.
pub(super) fn certificates(name: &'static str, text: &str) -> Result<Vec<Vec<u8>>, MaterialError> {
    let mut found = Vec::new();
    for pem in Pem::iter_from_buffer(text.as_bytes()) {
        let pem = pem.map_err(|error| MaterialError::Malformed(name, error.to_string()))?;
        parse(name, &pem.contents)?;
        found.push(pem.contents);
    }
    if found.is_empty() {
        return Err(MaterialError::Malformed(name, "no PEM block in it".into()));
    }
    Ok(found)
}

fn distinct(mut certificates: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut seen = std::collections::HashSet::new();
    certificates.retain(|der| seen.insert(der.clone()));
    certificates
}

pub(super) fn parse<'a>(
    name: &'static str,
    der: &'a [u8],
) -> Result<X509Certificate<'a>, MaterialError> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => Err(MaterialError::Malformed(name, error.to_string())),
    }
}

/// One certificate as every PEM reader takes it: lines of 64, a newline at the end.
pub(super) fn to_pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 64);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = after;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}
