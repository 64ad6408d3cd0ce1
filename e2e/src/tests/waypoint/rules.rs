//! What the mesh's own kinds say of requests holds at a waypoint: tokens, faults, retries, limits.

use anyhow::{Context as _, Result};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::requests::{answers, with_waypoint};
use crate::{place::Place, run::Test};

/// Each is applied as its user would, and felt by the next requests.
pub(in crate::tests) async fn tokens_faults_and_limits_hold_at_a_waypoint(
    test: &Test,
) -> Result<()> {
    with_waypoint(test, |_, shop| Box::pin(rules(shop))).await
}

async fn rules(shop: &Place) -> Result<()> {
    shop.server("web").start().await?;
    let phone = shop.client("phone").start().await?;
    phone.reaches("http://web/").await?;

    shop.apply(FAULTS).await?;
    answers(&phone, "http://web/teapot", &[], "418").await?;
    answers(&phone, "http://web/moved", &[], "308").await?;
    answers(&phone, "http://web/", &[], "200").await?;

    let issuer = Issuer::new()?;
    shop.apply(&issuer.policies()).await?;
    let good = issuer.token("ada", 4_102_444_800)?;
    let late = issuer.token("ada", 1_000_000_000)?;
    let stranger = Issuer::new()?.token("ada", 4_102_444_800)?;
    let other = issuer.token("eve", 4_102_444_800)?;
    for (token, code) in [
        ("", "403"),
        (&*good, "200"),
        (&*late, "401"),
        (&*stranger, "401"),
        (&*other, "403"),
    ] {
        let header = format!("authorization: Bearer {token}");
        let with: &[&str] = if token.is_empty() { &[] } else { &[&header] };
        answers(&phone, "http://web/mine", with, code).await?;
    }
    answers(&phone, "http://web/", &[], "200").await?;

    shop.apply(LIMIT).await?;
    answers(&phone, "http://web/few", &[], "429").await?;
    answers(&phone, "http://web/", &[], "200").await
}

/// Somebody whose tokens are believed, with a key of its own.
struct Issuer {
    key: EncodingKey,
    public: Value,
}

impl Issuer {
    fn new() -> Result<Self> {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes())?;
        let public = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::ES256)?)?;
        Ok(Self { key, public })
    }

    fn token(&self, subject: &str, expires: u64) -> Result<String> {
        let payload = json!({"iss": "e2e", "sub": subject, "exp": expires});
        let header = Header::new(Algorithm::ES256);
        let signed = jsonwebtoken::encode(&header, &payload, &self.key);
        signed.context("a token")
    }

    /// Its tokens are believed, and without one of ada's nobody gets at what is hers.
    fn policies(&self) -> String {
        let jwks = json!({"keys": [self.public]});
        format!(
            r#"
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: web}}
spec:
  targetRefs: [{{group: "", kind: Service, name: web}}]
  jwtRules: [{{issuer: e2e, jwks: '{jwks}'}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: mine}}
spec:
  targetRefs: [{{group: "", kind: Service, name: web}}]
  action: DENY
  rules:
  - from: [{{source: {{notRequestPrincipals: [e2e/ada]}}}}]
    to: [{{operation: {{paths: [/mine]}}}}]
"#
        )
    }
}

const FAULTS: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: [web]
  http:
  - match: [{uri: {prefix: /teapot}}]
    fault: {abort: {percentage: {value: 100}, httpStatus: 418}}
    route: [{destination: {host: web}}]
  - match: [{uri: {exact: /moved}}]
    redirect: {uri: /, redirectCode: 308}
  - route: [{destination: {host: web}}]
    retries: {attempts: 2, retryOn: connect-failure}
";

const LIMIT: &str = r#"
apiVersion: ambit.io/v1alpha1
kind: RateLimitPolicy
metadata: {name: web}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  limits:
  - {requests: 2, window: 1h, when: {path: {prefix: /few}}, keys: [{by: Identity}]}
"#;
