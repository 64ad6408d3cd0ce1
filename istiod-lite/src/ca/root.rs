//! A root of our own: made once, renewed with the same key.
//!
//! It is P-256, not RSA-2048 as Istio's: signing takes a fifteenth of the time (0.015 ms against
//! 0.22 ms, `openssl speed`), each leaf is 185 bytes smaller, and every TLS 1.3 peer must know it
//! (RFC 8446, 9.1).

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use x509_parser::time::ASN1Time;

use super::material::{ISTIO, MaterialError, Parts, certificates, parse, to_pem};
use super::{BACKDATED, serial, set_validity};

/// Ten years, as Istio's self-signed root.
const LIFE: i64 = 3650 * 24 * 3600;
/// A root is renewed when this much of its life is left.
const RENEW_AT: i64 = LIFE / 5;

/// A fresh key, PEM.
pub(super) fn key() -> Result<String, MaterialError> {
    Ok(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?.serialize_pem())
}

/// A fresh root, with its key.
pub(super) fn fresh(trust_domain: &str) -> Result<Parts, MaterialError> {
    let key = key()?;
    let certificate = certificate(&key, trust_domain)?;
    Ok(Parts {
        names: &ISTIO,
        key,
        roots: certificate.clone(),
        certificate,
        chain: String::new(),
        crl: String::new(),
    })
}

/// A fresh self-signed certificate of that key, PEM.
pub(super) fn certificate(key: &str, trust_domain: &str) -> Result<String, MaterialError> {
    let key = KeyPair::from_pem(key)?;
    let now = ASN1Time::now().timestamp();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain);
    set_validity(&mut params, now - BACKDATED, now + LIFE)?;
    params.serial_number = Some(serial()?);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(to_pem(params.self_signed(&key)?.der()))
}

/// The parts with a new certificate of the same key, when the old one's life is nearly over. Old
/// leaves verify by the new certificate and new ones by the old. Other roots in the bundle stay. A
/// root that we did not make (another subject, or signed by somebody) is its maker's to renew.
pub(super) fn renewed(parts: &Parts, trust_domain: &str) -> Result<Option<Parts>, MaterialError> {
    let names = parts.names;
    let old_der = certificates(names.certificate, &parts.certificate)?.swap_remove(0);
    let old = parse(names.certificate, &old_der)?;
    let left = old.validity().not_after.timestamp() - ASN1Time::now().timestamp();
    if left > RENEW_AT {
        return Ok(None);
    }
    let fresh = certificate(&parts.key, trust_domain)?;
    let fresh_der = certificates(names.certificate, &fresh)?.swap_remove(0);
    let made = parse(names.certificate, &fresh_der)?;
    if made.subject().as_raw() != old.subject().as_raw()
        || old.issuer().as_raw() != old.subject().as_raw()
    {
        return Ok(None);
    }
    let mut roots = fresh.clone();
    for other in certificates(names.roots, &parts.roots)? {
        if other != old_der {
            roots.push_str(&to_pem(&other));
        }
    }
    Ok(Some(Parts {
        certificate: fresh,
        roots,
        ..parts.clone()
    }))
}
