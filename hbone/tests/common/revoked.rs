//! Lists of revoked certificates as an authority signs them, for tests: of this crate, inside of it, and of ztunnel.
#![allow(unreachable_pub, clippy::unwrap_used)]

use rcgen::{
    CertificateRevocationListParams, Issuer, KeyIdMethod, RevokedCertParams, SerialNumber,
    SigningKey, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// In PEM, of January 2020; another one is due in February of `next`.
pub fn list<'a>(
    issuer: &Issuer<'_, impl SigningKey>,
    revoked: impl IntoIterator<Item = &'a CertificateDer<'a>>,
    next: i32,
) -> String {
    let then = date_time_ymd(2020, 1, 1);
    let revoked = revoked.into_iter().map(|it| {
        let (_, parsed) = X509Certificate::from_der(it).unwrap();
        RevokedCertParams {
            serial_number: SerialNumber::from(parsed.serial.to_bytes_be()),
            revocation_time: then,
            reason_code: None,
            invalidity_date: None,
        }
    });
    let list = CertificateRevocationListParams {
        this_update: then,
        next_update: date_time_ymd(next, 2, 1),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(issuer).unwrap().pem().unwrap()
}
