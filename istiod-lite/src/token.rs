//! Service account tokens, as an API server would issue them.
//!
//! In a cluster the kubelet gives every pod a projected token and the control plane asks the API
//! server about it. Without a cluster this file is both: [`Tokens`] signs and verifies JWTs with a
//! P-256 key kept on disk, whose claims have Kubernetes' shape, so that a proxy cannot tell the
//! difference and the code that reads claims is the same.
//!
//! The same key signs the tokens by which machines join ([`Join`]), with and without a cluster. They are for another
//! audience: one is never taken for the other.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::disk;

/// The audience every proxy's token carries; Istio's default of `TOKEN_AUDIENCES`.
pub const AUDIENCE: &str = "istio-ca";
/// The audience of tokens by which machines join, who are good for nothing else.
pub const JOIN_AUDIENCE: &str = "ambit-join";
/// How long a machine may take to come with its token at most: one that lies about for longer is found by somebody.
pub const LONGEST_JOIN: Duration = Duration::from_secs(24 * 3600);
const ISSUER: &str = "istiod-lite";
const KEY_FILE: &str = "token-key.pem";

/// Issues tokens and verifies its own.
pub struct Tokens {
    signing: EncodingKey,
    verifying: DecodingKey,
    rules: Validation,
    join_rules: Validation,
}

/// The claims of a service account token that anything here reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who signed.
    pub iss: String,
    /// `system:serviceaccount:<namespace>:<name>`
    pub sub: String,
    /// Who may accept it.
    pub aud: Vec<String>,
    /// Seconds since 1970.
    pub iat: u64,
    /// Seconds since 1970.
    pub exp: u64,
    /// What the token is bound to.
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Bound,
}

/// Kubernetes' private claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    /// Namespace of the account.
    pub namespace: String,
    /// The account.
    pub serviceaccount: Named,
    /// The pod that the token was made for; a token without one cannot speak for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Named>,
    /// The node of that pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Named>,
}

/// An object by name, and by uid where it has one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Named {
    /// Name inside the account's namespace (a node has none).
    pub name: String,
    /// Empty for objects that came from a file without one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// Whom a token is for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Namespace of the account and the pod.
    pub namespace: String,
    /// The account.
    pub service_account: String,
    /// The pod, when the token is to be bound to one.
    pub pod: Option<Named>,
    /// The pod's node.
    pub node: Option<String>,
    /// From now on.
    pub lifetime: Duration,
    /// [`AUDIENCE`] for everything a proxy does.
    pub audience: String,
}

/// Which machine may join, and as whom: all of it is said when the token is made, nothing of it by the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Join {
    /// Namespace of its workload and of its account.
    pub namespace: String,
    /// Name of its workload.
    pub name: String,
    /// The account.
    pub service_account: String,
    /// The WorkloadGroup that its WorkloadEntry is made from; without one the entry is there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Its addresses, first that of its workload; that which it joins from, where none is said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// It may join, and come back, from other addresses than its own: something between us translates them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub translated: bool,
}

/// The claims of such a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinClaims {
    /// Who signed.
    pub iss: String,
    /// `system:serviceaccount:<namespace>:<name>`
    pub sub: String,
    /// Who may accept it.
    pub aud: Vec<String>,
    /// Its own name, by which it is told that it was used.
    pub jti: String,
    /// Seconds since 1970.
    pub iat: u64,
    /// Seconds since 1970.
    pub exp: u64,
    /// When it was made, in milliseconds since 1970: what has happened since is newer than it.
    pub made: u64,
    /// Who may join.
    #[serde(rename = "ambit.io")]
    pub join: Join,
}

/// The key on disk could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Reading or writing the file failed.
    #[error("token key {KEY_FILE}: {0}")]
    File(#[from] io::Error),
    /// The file is not a P-256 key in PKCS #8.
    #[error("token key {KEY_FILE} is not a P-256 private key: {0}")]
    Key(#[from] rcgen::Error),
    /// The key does not sign JWTs.
    #[error("token key {KEY_FILE}: {0}")]
    Jwt(#[from] jsonwebtoken::errors::Error),
}

impl Tokens {
    /// Reads the key in `state`, or makes it: several processes that do so at once share one.
    pub fn open(state: &Path) -> Result<Self, KeyError> {
        let path = state.join(KEY_FILE);
        let pem = match disk::read_if_any(&path)? {
            Some(pem) => pem,
            None => {
                let fresh = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
                disk::create(&path, fresh.serialize_pem().as_bytes(), disk::SECRET)?;
                std::fs::read_to_string(&path)?
            }
        };
        Self::of_key(&pem)
    }

    /// With this key, a P-256 key in PKCS #8.
    pub fn of_key(pem: &str) -> Result<Self, KeyError> {
        let key = rcgen::KeyPair::from_pem_and_sign_algo(pem, &rcgen::PKCS_ECDSA_P256_SHA256)?;
        Ok(Self {
            signing: EncodingKey::from_ec_pem(pem.as_bytes())?,
            verifying: DecodingKey::from_ec_der(rcgen::PublicKeyData::der_bytes(&key)),
            rules: rules(AUDIENCE),
            join_rules: rules(JOIN_AUDIENCE),
        })
    }

    /// A signed token.
    pub fn issue(&self, request: &Request) -> Result<String, jsonwebtoken::errors::Error> {
        let now = now();
        let claims = Claims {
            iss: ISSUER.into(),
            sub: format!(
                "system:serviceaccount:{}:{}",
                request.namespace, request.service_account
            ),
            aud: vec![request.audience.clone()],
            iat: now,
            exp: now.saturating_add(request.lifetime.as_secs()),
            kubernetes: Bound {
                namespace: request.namespace.clone(),
                serviceaccount: Named {
                    name: request.service_account.clone(),
                    uid: String::new(),
                },
                pod: request.pod.clone(),
                node: request.node.clone().map(|name| Named {
                    name,
                    uid: String::new(),
                }),
            },
        };
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.signing)
    }

    /// A token by which a machine joins, once.
    pub fn issue_join(
        &self,
        join: &Join,
        lifetime: Duration,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let now = now();
        let mut jti = [0_u8; 16];
        // A name that could be guessed would still need our signature.
        let _ = aws_lc_rs::rand::fill(&mut jti);
        let claims = JoinClaims {
            iss: ISSUER.into(),
            sub: format!(
                "system:serviceaccount:{}:{}",
                join.namespace, join.service_account
            ),
            aud: vec![JOIN_AUDIENCE.into()],
            jti: jti.iter().map(|byte| format!("{byte:02x}")).collect(),
            iat: now,
            exp: now.saturating_add(lifetime.as_secs()),
            made: now_in_millis(),
            join: join.clone(),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.signing)
    }

    /// The claims, if it is such a token, ours and not expired.
    pub fn verify_join(&self, token: &str) -> Result<JoinClaims, jsonwebtoken::errors::Error> {
        jsonwebtoken::decode(token, &self.verifying, &self.join_rules).map(|token| token.claims)
    }

    /// For whom such a token was made, if it was made by us, however long ago. It lets nobody in.
    pub fn whose_join(&self, token: &str) -> Option<Join> {
        let mut rules = self.join_rules.clone();
        rules.validate_exp = false;
        rules.reject_tokens_expiring_in_less_than = 0;
        let token = jsonwebtoken::decode::<JoinClaims>(token, &self.verifying, &rules);
        Some(token.ok()?.claims.join)
    }

    /// The claims, if the token is ours, meant for us and not expired.
    pub fn verify(&self, token: &str) -> Result<Claims, jsonwebtoken::errors::Error> {
        jsonwebtoken::decode(token, &self.verifying, &self.rules).map(|token| token.claims)
    }
}

/// What is asked of a token beside its signature.
fn rules(audience: &str) -> Validation {
    let mut rules = Validation::new(Algorithm::ES256);
    rules.set_audience(&[audience]);
    rules.set_issuer(&[ISSUER]);
    rules.required_spec_claims = HashSet::from(["exp", "aud", "iss", "sub"].map(String::from));
    // One clock made these tokens and reads them; at their last second they are over.
    rules.leeway = 0;
    rules.reject_tokens_expiring_in_less_than = 1;
    rules
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// Milliseconds since 1970.
pub(crate) fn now_in_millis() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_token_is_no_account_s_and_an_account_s_joins_nobody() {
        let state = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(state.path()).unwrap();
        let join = Join {
            namespace: "shop".into(),
            name: "vm-1".into(),
            service_account: "db".into(),
            group: None,
            addresses: vec![[10, 0, 0, 9].into()],
            translated: false,
        };
        let minute = Duration::from_secs(60);
        let token = tokens.issue_join(&join, minute).unwrap();
        assert_eq!(tokens.verify_join(&token).unwrap().join, join);
        assert!(tokens.verify(&token).is_err());
        let account = tokens.issue(&request()).unwrap();
        assert!(tokens.verify_join(&account).is_err());
        let over = tokens.issue_join(&join, Duration::ZERO).unwrap();
        assert!(tokens.verify_join(&over).is_err(), "expired");
        let other = tokens.issue_join(&join, minute).unwrap();
        let jti = |token: &str| tokens.verify_join(token).unwrap().jti;
        assert_ne!(jti(&token), jti(&other), "each is one of its own");
    }

    fn request() -> Request {
        Request {
            namespace: "alpha".into(),
            service_account: "client".into(),
            pod: Some(Named {
                name: "client-0".into(),
                uid: "u1".into(),
            }),
            node: Some("node-1".into()),
            lifetime: Duration::from_secs(60),
            audience: AUDIENCE.into(),
        }
    }

    #[test]
    fn a_token_says_what_it_was_issued_for_also_after_a_restart() {
        let state = tempfile::tempdir().unwrap();
        let token = Tokens::open(state.path())
            .unwrap()
            .issue(&request())
            .unwrap();
        let claims = Tokens::open(state.path()).unwrap().verify(&token).unwrap();
        assert_eq!(claims.sub, "system:serviceaccount:alpha:client");
        assert_eq!(claims.kubernetes.pod, request().pod);
        assert_eq!(claims.kubernetes.node.unwrap().name, "node-1");
    }

    #[test]
    fn foreign_expired_and_misdirected_tokens_are_refused() {
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tokens = Tokens::open(ours.path()).unwrap();
        let foreign = Tokens::open(theirs.path())
            .unwrap()
            .issue(&request())
            .unwrap();
        let expired = tokens
            .issue(&Request {
                lifetime: Duration::ZERO,
                ..request()
            })
            .unwrap();
        let misdirected = tokens
            .issue(&Request {
                audience: "other".into(),
                ..request()
            })
            .unwrap();
        for (what, token) in [
            ("foreign", foreign),
            ("expired", expired),
            ("misdirected", misdirected),
        ] {
            assert!(tokens.verify(&token).is_err(), "{what}");
        }
    }

    #[test]
    fn an_unsigned_token_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(state.path()).unwrap();
        let token = tokens.issue(&request()).unwrap();
        let claims = token.split('.').nth(1).unwrap();
        // {"alg":"none"}
        assert!(
            tokens
                .verify(&format!("eyJhbGciOiJub25lIn0.{claims}."))
                .is_err()
        );
        assert!(
            tokens
                .verify(&format!("eyJhbGciOiJub25lIn0.{claims}.AAAA"))
                .is_err()
        );
    }
}
