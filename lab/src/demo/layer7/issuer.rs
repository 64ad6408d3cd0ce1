//! An issuer of tokens: a key of this run, what it publishes of it (RFC 7517), what it signs (RFC 7515, ES256).

use anyhow::{Context, Result};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// Who signs.
pub(super) struct Issuer {
    key: EcdsaKeyPair,
}

impl Issuer {
    /// One that nobody knows yet.
    pub(super) fn new() -> Result<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        Ok(Self {
            key: key.context("making a key for tokens")?,
        })
    }

    /// Its public key, as a set of one.
    pub(super) fn published(&self) -> Value {
        // 4, x, y: a point that is written out, as SEC 1 has it.
        let point = self.key.public_key().as_ref();
        let (x, y) = point[1..].split_at((point.len() - 1) / 2);
        let [x, y] = [x, y].map(|part| URL_SAFE_NO_PAD.encode(part));
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": x, "y": y }] })
    }

    /// A token with these claims.
    pub(super) fn token(&self, claims: &Value) -> Result<String> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({ "alg": "ES256" })), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(signature.context("signing a token")?);
        Ok(format!("{signed}.{signature}"))
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    #[test]
    fn what_it_signs_can_be_verified_with_what_it_publishes_and_with_nothing_else() {
        let (issuer, stranger) = (Issuer::new().unwrap(), Issuer::new().unwrap());
        let token = issuer.token(&json!({ "sub": "me" })).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let good = |issuer: &Issuer| {
            let key = &issuer.published()["keys"][0];
            let part = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
            let point = [vec![4], part("x"), part("y")].concat();
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
            key.verify(signed.as_bytes(), &signature).is_ok()
        };
        assert!(good(&issuer) && !good(&stranger));
    }
}
