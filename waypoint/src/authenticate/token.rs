//! Pure: is a token good?
//!
//! 1. three parts, a header and a payload that can be read      ([`parse`])
//! 2. for this rule: its issuer                                  ([`Parsed::is_for`])
//! 3. now: neither expired nor not yet valid                     ([`is_current`])
//! 4. signed by a key that the issuer publishes for this         ([`Parsed::is_signed`])
//! 5. for us: one of the audiences                               ([`Parsed::claims`])
//!
//! Only algorithms with a public key are known: neither `none` nor HMAC, whatever a header or a key set says.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::Claims;
use super::keys::Keys;
use super::rule::Rule;

/// How much clocks may differ, in seconds.
const SKEW: f64 = 60.0;

/// Why a token is not good. The words are those that Istio's users know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// Not three parts.
    #[error("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")]
    Form,
    /// More than one where there must be one.
    #[error("Jwt is given more than once")]
    Twice,
    /// Longer than 16 KiB.
    #[error("Jwt is too long")]
    TooLong,
    /// Its header cannot be read.
    #[error("Jwt header is an invalid JSON")]
    Header,
    /// `none`, one with a shared secret, or one nobody knows.
    #[error("Jwt header [alg] is not supported")]
    Algorithm,
    /// `crit`: something in it must be understood, and is not.
    #[error("Jwt header [crit] is not supported")]
    Critical,
    /// Its payload cannot be read.
    #[error("Jwt payload is an invalid JSON")]
    Payload,
    /// Of another issuer.
    #[error("Jwt issuer is not configured")]
    Issuer,
    /// `exp`
    #[error("Jwt is expired")]
    Expired,
    /// `nbf`
    #[error("Jwt not yet valid")]
    NotYet,
    /// Signed by nobody known.
    #[error("Jwks doesn't have key to match kid or alg from Jwt")]
    NoKey,
    /// Not signed by whom it says.
    #[error("Jwt verification fails")]
    Signature,
    /// For others.
    #[error("Audiences in Jwt are not allowed")]
    Audience,
    /// The issuer's keys cannot be had.
    #[error("Jwks remote fetch is failed")]
    Unfetched,
    /// The policy cannot be read.
    #[error("the policy for tokens cannot be read")]
    Policy,
}

/// A token that could be read; nothing about it is proven.
#[derive(Debug, Clone)]
pub(super) struct Parsed<'a> {
    pub(super) text: &'a str,
    signed: &'a str,
    signature: &'a str,
    algorithm: Algorithm,
    key: Option<String>,
    payload: Map<String, Value>,
}

/// Reads a token.
pub(super) fn parse(text: &str) -> Result<Parsed<'_>, Fault> {
    let (signed, signature) = text.rsplit_once('.').ok_or(Fault::Form)?;
    let (header, payload) = signed.split_once('.').ok_or(Fault::Form)?;
    if header.is_empty() || payload.is_empty() || signature.is_empty() || payload.contains('.') {
        return Err(Fault::Form);
    }
    let header = object(header).ok_or(Fault::Header)?;
    let algorithm = match header.get("alg") {
        Some(Value::String(name)) => algorithm(name).ok_or(Fault::Algorithm)?,
        _ => return Err(Fault::Algorithm),
    };
    if header.contains_key("crit") {
        return Err(Fault::Critical);
    }
    let key = match header.get("kid") {
        None => None,
        Some(Value::String(key)) => Some(key.clone()),
        Some(_) => return Err(Fault::Header),
    };
    Ok(Parsed {
        text,
        signed,
        signature,
        algorithm,
        key,
        payload: object(payload).ok_or(Fault::Payload)?,
    })
}

/// serde_json refuses what is nested deeper than 128.
fn object(part: &str) -> Option<Map<String, Value>> {
    let json = URL_SAFE_NO_PAD.decode(part).ok()?;
    serde_json::from_slice(&json).ok()
}

fn algorithm(name: &str) -> Option<Algorithm> {
    Some(match name {
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "PS256" => Algorithm::PS256,
        "PS384" => Algorithm::PS384,
        "PS512" => Algorithm::PS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        "EdDSA" => Algorithm::EdDSA,
        _ => return None,
    })
}

impl Parsed<'_> {
    /// Whether the rule's issuer made it.
    pub(super) fn is_for(&self, rule: &Rule) -> Result<(), Fault> {
        let issuer = self.payload.get("iss").and_then(Value::as_str);
        rule.is_by_issuer(issuer.unwrap_or_default())
    }

    /// Whether it is valid at this time.
    pub(super) fn is_current(&self, now: SystemTime) -> Result<(), Fault> {
        is_current(&self.payload, now)
    }

    /// Whether one of the keys signed it.
    pub(super) fn is_signed(&self, keys: &Keys) -> Result<(), Fault> {
        let mut known = false;
        for key in keys.fitting(self.algorithm, self.key.as_deref()) {
            known = true;
            let good = jsonwebtoken::crypto::verify(
                self.signature,
                self.signed.as_bytes(),
                key,
                self.algorithm,
            );
            if matches!(good, Ok(true)) {
                return Ok(());
            }
        }
        Err(if known {
            Fault::Signature
        } else {
            Fault::NoKey
        })
    }

    /// What it says, if it says so to us.
    pub(super) fn claims(mut self, rule: &Rule) -> Result<Claims, Fault> {
        let audiences = match self.payload.get("aud") {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one.clone()],
            Some(Value::Array(several)) => {
                let text = |value: &Value| value.as_str().map(str::to_owned).ok_or(Fault::Payload);
                several.iter().map(text).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(Fault::Payload),
        };
        rule.is_for_us(&audiences)?;
        let subject = match self.payload.get("sub") {
            None => String::new(),
            Some(Value::String(subject)) => subject.clone(),
            Some(_) => return Err(Fault::Payload),
        };
        split_at_spaces(&mut self.payload, &rule.lists);
        Ok(Claims {
            issuer: rule.issuer.to_string(),
            subject,
            audiences,
            all: self.payload,
        })
    }
}

/// Whether what a token says is valid at this time.
pub(super) fn is_current(payload: &Map<String, Value>, now: SystemTime) -> Result<(), Fault> {
    let now = now
        .duration_since(UNIX_EPOCH)
        .map_err(|_| Fault::NotYet)?
        .as_secs_f64();
    // Seconds since 1970, perhaps with a fraction (RFC 7519 2); anything else cannot be decided.
    let time = |name: &str| match payload.get(name) {
        None => Ok(None),
        Some(value) => value
            .as_f64()
            .filter(|time| time.is_finite())
            .map(Some)
            .ok_or(Fault::Payload),
    };
    if time("exp")?.is_some_and(|expires| now > expires + SKEW) {
        return Err(Fault::Expired);
    }
    if time("nbf")?.is_some_and(|begins| now + SKEW < begins) {
        return Err(Fault::NotYet);
    }
    Ok(())
}

/// `"scope": "a b"` is `"scope": ["a", "b"]` (RFC 8693 4.2).
fn split_at_spaces(payload: &mut Map<String, Value>, names: &[Box<str>]) {
    for name in names {
        if let Some(value) = payload.get_mut(&**name)
            && let Some(text) = value.as_str()
        {
            *value = text
                .split(' ')
                .filter(|word| !word.is_empty())
                .map(Value::from)
                .collect();
        }
    }
}
