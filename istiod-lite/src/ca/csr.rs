//! What a CSR is good for: its public key, and the proof that the caller holds the private one.
//!
//! PEM → PKCS #10 → key strong enough → signature by that key → the key. Everything else in the
//! request (subject, extensions) is read past, so an odd extension is no error.

use rcgen::SubjectPublicKeyInfo;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::error::X509Error;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::machine::shown;

/// The request cannot be signed; texts are those of Istio's CA where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// No PEM block in it.
    #[error("certificate signing request is not properly encoded")]
    NotPem,
    /// A PEM block around something else.
    #[error("failed to parse X.509 certificate signing request")]
    NotCsr,
    /// Signed by another key than the one in it, or tampered with.
    #[error("x509: ECDSA verification failure")]
    BadEcdsaSignature,
    /// The same, for the other kinds of key.
    #[error("x509: signature verification failure")]
    BadSignature,
    /// Istio signs these; a 1024 bit key can be factored.
    #[error("RSA key of {0} bits; 2048 to 8192 are accepted")]
    RsaSize(usize),
    /// A kind of key, or of signature, that no peer of the mesh accepts.
    #[error("unsupported key or signature algorithm; P-256, P-384, Ed25519 and RSA are accepted")]
    Algorithm,
}

/// The key to certify.
pub(super) fn public_key(pem: &str) -> Result<SubjectPublicKeyInfo, CsrError> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|_| CsrError::NotPem)?;
    let (rest, csr) =
        X509CertificationRequest::from_der(&pem.contents).map_err(|_| CsrError::NotCsr)?;
    if !rest.is_empty() {
        return Err(CsrError::NotCsr);
    }
    let key = &csr.certification_request_info.subject_pki;
    let kind = key.parsed().map_err(|_| CsrError::NotCsr)?;
    if let PublicKey::RSA(rsa) = &kind {
        // Before the signature: checking one by a huge key is work for us and none for the caller.
        let bits = rsa.key_size();
        if !(2048..=8192).contains(&bits) {
            return Err(CsrError::RsaSize(bits));
        }
    }
    csr.verify_signature()
        .map_err(|error| match (error, &kind) {
            (X509Error::SignatureUnsupportedAlgorithm, _) => CsrError::Algorithm,
            (_, PublicKey::EC(_)) => CsrError::BadEcdsaSignature,
            _ => CsrError::BadSignature,
        })?;
    SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| CsrError::Algorithm)
}

/// By which the book of machines knows the key of a request, whose holder has proved in it that it has it.
///
/// # Errors
/// As where it is signed.
pub(crate) fn fingerprint(pem: &str) -> Result<String, CsrError> {
    public_key(pem)?;
    let (_, pem) = parse_x509_pem(pem.as_bytes()).map_err(|_| CsrError::NotPem)?;
    let (_, csr) =
        X509CertificationRequest::from_der(&pem.contents).map_err(|_| CsrError::NotCsr)?;
    Ok(shown::fingerprint(
        csr.certification_request_info.subject_pki.raw,
    ))
}
