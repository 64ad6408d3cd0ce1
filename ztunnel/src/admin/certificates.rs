//! Pure: certificates in the JSON shape of Istio's `/config_dump`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hbone::CertificateState;
use hbone::tls::CertificateText;
use ops::time::Seconds;
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CertificateShape {
    identity: String,
    state: String,
    cert_chain: Vec<CertificateTextShape>,
    root_certs: Vec<CertificateTextShape>,
}

impl CertificateShape {
    pub(super) fn of(state: &CertificateState) -> Self {
        let texts =
            |texts: &[CertificateText]| texts.iter().map(CertificateTextShape::of).collect();
        let certificate = state.certificate.as_deref();
        Self {
            identity: state.identity.to_string(),
            state: state.state.clone(),
            cert_chain: certificate
                .map(|certificate| texts(certificate.chain()))
                .unwrap_or_default(),
            root_certs: certificate
                .map(|certificate| texts(certificate.roots()))
                .unwrap_or_default(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CertificateTextShape {
    /// The PEM text, in base64 once more: as Istio has it.
    pem: String,
    serial_number: String,
    valid_from: String,
    expiration_time: String,
}

impl CertificateTextShape {
    pub(super) fn of(text: &CertificateText) -> Self {
        Self {
            pem: STANDARD.encode(&text.pem),
            serial_number: text.serial_number.clone(),
            valid_from: Seconds(text.not_before).to_string(),
            expiration_time: Seconds(text.not_after).to_string(),
        }
    }
}
