//! Issuers that are made up, with keys of their own.

use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::waypoint as wire;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Uri, header};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey};
use rcgen::KeyPair;
use serde_json::{Value, json};
use waypoint::authenticate::{Fault, Fetch, Fetched, KeySets, Tokens, Verified};

/// When all tokens of these tests are judged: seconds since 1970.
pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const ISSUER: &str = "https://issuer.example";

/// A private key, and its public half.
pub(crate) struct Signer {
    key: EncodingKey,
    pub(crate) algorithm: Algorithm,
    pub(crate) public: Value,
}

pub(crate) static RSA: LazyLock<Signer> = LazyLock::new(|| Signer::new("rsa", Algorithm::RS256));
pub(crate) static EC: LazyLock<Signer> = LazyLock::new(|| Signer::new("ec", Algorithm::ES256));
pub(crate) static EC384: LazyLock<Signer> =
    LazyLock::new(|| Signer::new("ec384", Algorithm::ES384));
pub(crate) static ED: LazyLock<Signer> = LazyLock::new(|| Signer::new("ed", Algorithm::EdDSA));
/// Not in any key set.
pub(crate) static STRANGER: LazyLock<Signer> =
    LazyLock::new(|| Signer::new("ec", Algorithm::ES256));

impl Signer {
    fn new(id: &str, algorithm: Algorithm) -> Self {
        let kind = match algorithm {
            Algorithm::ES256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Algorithm::ES384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Algorithm::EdDSA => &rcgen::PKCS_ED25519,
            _ => &rcgen::PKCS_RSA_SHA256,
        };
        let pair = KeyPair::generate_for(kind).unwrap();
        let pem = pair.serialize_pem();
        let key = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(pem.as_bytes()),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(pem.as_bytes()),
            _ => EncodingKey::from_rsa_pem(pem.as_bytes()),
        };
        let key = key.unwrap();
        let mut public = match algorithm {
            Algorithm::EdDSA => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(pair.public_key_raw())})
            }
            algorithm => {
                serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap()
            }
        };
        public["kid"] = json!(id);
        public.as_object_mut().unwrap().remove("alg");
        Self {
            key,
            algorithm,
            public,
        }
    }

    /// Signs any header and payload, with any algorithm of the key's family.
    pub(crate) fn sign_as(&self, algorithm: Algorithm, header: &Value, payload: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(payload));
        let signature =
            jsonwebtoken::crypto::sign(signed.as_bytes(), &self.key, algorithm).unwrap();
        format!("{signed}.{signature}")
    }

    pub(crate) fn sign(&self, payload: &Value) -> String {
        let header = json!({"alg": format!("{:?}", self.algorithm), "kid": self.public["kid"]});
        self.sign_as(self.algorithm, &header, payload)
    }

    /// A good token of a subject.
    pub(crate) fn token(&self, subject: &str) -> String {
        self.sign(&json!({"iss": ISSUER, "sub": subject, "exp": NOW + 3600}))
    }
}

/// The public keys of all but the stranger.
pub(crate) fn jwks() -> String {
    json!({"keys": [RSA.public, EC.public, EC384.public, ED.public]}).to_string()
}

/// A rule of the issuer, with inline keys.
pub(crate) fn rule() -> wire::JwtRule {
    wire::JwtRule {
        issuer: ISSUER.to_owned(),
        jwks: jwks(),
        ..Default::default()
    }
}

/// Policies of these rules, one each.
pub(crate) fn tokens(rules: Vec<wire::JwtRule>) -> Tokens {
    tokens_of(rules, &KeySets::new(std::sync::Arc::new(Nowhere)))
}

pub(crate) fn tokens_of(rules: Vec<wire::JwtRule>, sets: &KeySets) -> Tokens {
    let origin = wire::Origin {
        namespace: "app".to_owned(),
        name: "tokens".to_owned(),
        ..Default::default()
    };
    let policy = wire::Authentication {
        rules,
        ..Default::default()
    };
    Tokens::compile(&[(&origin, &policy)], sets)
}

pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW)
}

/// Judges a request that needs nothing fetched.
pub(crate) fn check(
    tokens: &Tokens,
    headers: &HeaderMap,
    uri: &str,
) -> Result<Option<Verified>, Fault> {
    let uri: Uri = uri.parse().unwrap();
    let checked = tokens
        .check(headers, &uri, now())
        .now_or_never()
        .expect("nothing to wait for");
    checked.map_err(|refused| refused.fault)
}

/// With a token where it usually is.
pub(crate) fn bearer(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    headers.insert(header::AUTHORIZATION, value);
    headers
}

/// The subject of a token that is found good.
pub(crate) fn subject(tokens: &Tokens, token: &str) -> Result<String, Fault> {
    let verified = check(tokens, &bearer(token), "/")?;
    Ok(verified.unwrap().claims.subject.clone())
}

/// Has nothing.
pub(crate) struct Nowhere;

impl Fetch for Nowhere {
    fn fetch(&self, uri: Uri, _: Duration) -> BoxFuture<'_, Fetched> {
        Box::pin(async move { Err(format!("{uri} is nowhere")) })
    }
}
