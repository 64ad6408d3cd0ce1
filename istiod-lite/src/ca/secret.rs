//! Pure: between Secrets (and the mesh's settings) and what we sign with.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::material::{ISTIO, MaterialError, Parts, certificates, to_pem};

/// Plugged in by an operator, Istio's name.
pub(super) const PLUGGED: &str = "cacerts";
/// Our own root, Istio's name.
pub(super) const OWN: &str = "istio-ca-secret";
const OWN_TYPE: &str = "istio.io/ca-root";
/// Istio writes this key too, empty.
const UNUSED_KEY: &str = "key.pem";
/// The mesh's settings, Istio's names.
pub(super) const SETTINGS: &str = "istio";
const SETTINGS_KEY: &str = "mesh";

/// What a Secret says, under either set of names. An empty text is as good as none: cert-manager
/// makes its Secrets before it has something to put in.
pub(super) fn parts(secret: &Secret) -> Result<Parts, MaterialError> {
    let text = |name: &'static str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(name));
        let Some(bytes) = bytes.filter(|bytes| !bytes.0.is_empty()) else {
            return Ok(None);
        };
        match std::str::from_utf8(&bytes.0) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(error) => Err(MaterialError::Malformed(name, error.to_string())),
        }
    };
    let own = secret.metadata.name.as_deref() == Some(OWN);
    Parts::read(|name| match text(name)? {
        // Early versions of Istio kept their own root without a copy of itself.
        None if own && name == ISTIO.roots => text(ISTIO.certificate),
        found => Ok(found),
    })
}

/// The Secret of our own root: new, or `before` with other content (and its resource version, so
/// that it is replaced only if nobody else did).
pub(super) fn own(parts: &Parts, namespace: &str, before: Option<&Secret>) -> Secret {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    let texts = [
        (ISTIO.certificate, bytes(&parts.certificate)),
        (ISTIO.key, bytes(&parts.key)),
        (ISTIO.chain, bytes(&parts.chain)),
        (ISTIO.roots, bytes(&parts.roots)),
        (UNUSED_KEY, bytes("")),
    ];
    let mut secret = before.cloned().unwrap_or_else(|| Secret {
        metadata: ObjectMeta {
            name: Some(OWN.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(OWN_TYPE.to_owned()),
        ..Secret::default()
    });
    let data = secret.data.get_or_insert_with(BTreeMap::new);
    data.extend(texts.map(|(name, bytes)| (name.to_owned(), bytes)));
    secret
}

/// Roots that the mesh is to trust beside the signer's own: `caCertificates` of the mesh's settings.
/// That one, or all of it, cannot be read is told beside those that can.
pub(super) fn further_roots(settings: Option<&ConfigMap>) -> (String, Option<MaterialError>) {
    let data = settings.and_then(|map| map.data.as_ref());
    let Some(text) = data.and_then(|data| data.get(SETTINGS_KEY)) else {
        return (String::new(), None);
    };
    let settings: Settings = match serde_saphyr::from_str(text) {
        Ok(settings) => settings,
        Err(error) => {
            let refused = MaterialError::Malformed(SETTINGS_KEY, error.to_string());
            return (String::new(), Some(refused));
        }
    };
    let (mut roots, mut refused) = (String::new(), None);
    for entry in settings.ca_certificates {
        match certificates("caCertificates", &entry.pem) {
            Ok(found) => found.iter().for_each(|der| roots.push_str(&to_pem(der))),
            Err(error) => refused = Some(error),
        }
    }
    (roots, refused)
}

/// As much of the mesh's settings as matters here.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Settings {
    ca_certificates: Vec<FurtherRoot>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FurtherRoot {
    pem: String,
}

/// The same with `further` roots behind its own.
pub(super) fn with_further(mut parts: Parts, further: &str) -> Parts {
    if !further.is_empty() {
        parts.roots.push('\n');
        parts.roots.push_str(further);
    }
    parts
}
