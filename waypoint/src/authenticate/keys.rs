//! The keys that an issuer publishes (RFC 7517).
//!
//! A key counts only if it is public, of a kind that is known, and not meant for something else; a set in which no
//! key counts is refused, so that a wrong document is noticed where it is configured.

use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;

/// Most keys of a set.
const MOST: usize = 256;
/// Most keys that are tried on one token.
const MOST_TRIED: usize = 16;

/// A key set.
pub struct Keys {
    keys: Vec<Key>,
}

struct Key {
    id: Option<String>,
    kind: Kind,
    /// The only algorithm it is for.
    algorithm: Option<String>,
    key: DecodingKey,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// Why a document is no key set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not JSON, or not `{"keys": […]}`.
    #[error("not a key set: {0}")]
    Json(String),
    /// More than 256 keys.
    #[error("more than {MOST} keys")]
    TooMany,
    /// No key that can verify a token.
    #[error("no public key for RSA, P-256, P-384 or Ed25519 signatures in it")]
    NoKey,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Entry {
    kty: String,
    #[serde(default)]
    kid: Option<String>,
    #[serde(default)]
    alg: Option<String>,
    #[serde(default, rename = "use")]
    usage: Option<String>,
    #[serde(default)]
    key_ops: Option<Vec<String>>,
    #[serde(default)]
    crv: Option<String>,
    #[serde(default)]
    n: Option<String>,
    #[serde(default)]
    e: Option<String>,
    #[serde(default)]
    x: Option<String>,
    #[serde(default)]
    y: Option<String>,
}

impl Keys {
    /// Reads a key set.
    ///
    /// # Errors
    /// When it is none, or has no key that can be used.
    pub fn parse(document: &[u8]) -> Result<Self, KeyError> {
        let document: Document =
            serde_json::from_slice(document).map_err(|error| KeyError::Json(error.to_string()))?;
        if document.keys.len() > MOST {
            return Err(KeyError::TooMany);
        }
        let entries = document.keys.into_iter();
        let keys: Vec<Key> = entries
            .filter_map(|entry| serde_json::from_value::<Entry>(entry).ok()?.key())
            .collect();
        if keys.is_empty() {
            return Err(KeyError::NoKey);
        }
        Ok(Self { keys })
    }

    /// Those that may have signed a token of this header.
    pub(super) fn fitting(
        &self,
        algorithm: Algorithm,
        id: Option<&str>,
    ) -> impl Iterator<Item = &DecodingKey> {
        let fits = move |key: &&Key| {
            let named = match (id, key.id.as_deref()) {
                (Some(wanted), Some(id)) => wanted == id,
                _ => true,
            };
            named && key.is_for(algorithm)
        };
        self.keys
            .iter()
            .filter(fits)
            .take(MOST_TRIED)
            .map(|key| &key.key)
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.keys.iter().map(|key| &key.id))
            .finish()
    }
}

impl Key {
    fn is_for(&self, algorithm: Algorithm) -> bool {
        let kind = match algorithm {
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512 => Kind::Rsa,
            Algorithm::ES256 => Kind::P256,
            Algorithm::ES384 => Kind::P384,
            Algorithm::EdDSA => Kind::Ed25519,
            _ => return false,
        };
        let only = |only: &String| *only == format!("{algorithm:?}");
        self.kind == kind && self.algorithm.as_ref().is_none_or(only)
    }
}

impl Entry {
    fn key(self) -> Option<Key> {
        let for_others = self.usage.as_deref().is_some_and(|usage| usage != "sig");
        let not_verify =
            |operations: &Vec<String>| !operations.iter().any(|operation| operation == "verify");
        if for_others || self.key_ops.as_ref().is_some_and(not_verify) {
            return None;
        }
        let (kind, key) = match (&*self.kty, self.crv.as_deref()) {
            ("RSA", _) => (
                Kind::Rsa,
                DecodingKey::from_rsa_components(self.n.as_deref()?, self.e.as_deref()?),
            ),
            ("EC", Some("P-256")) => (
                Kind::P256,
                DecodingKey::from_ec_components(self.x.as_deref()?, self.y.as_deref()?),
            ),
            ("EC", Some("P-384")) => (
                Kind::P384,
                DecodingKey::from_ec_components(self.x.as_deref()?, self.y.as_deref()?),
            ),
            ("OKP", Some("Ed25519")) => (
                Kind::Ed25519,
                DecodingKey::from_ed_components(self.x.as_deref()?),
            ),
            _ => return None,
        };
        Some(Key {
            id: self.kid,
            kind,
            algorithm: self.alg,
            key: key.ok()?,
        })
    }
}
