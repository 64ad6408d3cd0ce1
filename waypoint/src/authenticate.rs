//! Tokens of requests: which are good, and what they say.
//!
//! RequestAuthentication policies of a service enter, [`Tokens`] leave; a request enters ([`Tokens::check`]):
//!
//! 1. its tokens are looked for where the rules say                       (`find`)
//! 2. each must be good by one of the rules that look there                (`token`, pure)
//! 3. keys that are not here yet, or a key nobody knows, are waited for    (`sets`, `fetch`, `guard`, `mesh`)
//! 4. the first good one, in the order of the rules, is who asks           ([`Verified`])
//!
//! A request without a token passes: that it must have one is for an AuthorizationPolicy to say. Stricter than Envoy:
//! a token that is not good is refused even beside one that is, because the app may believe it; so is a place that
//! has two.

mod fetch;
mod find;
mod guard;
mod keys;
mod mesh;
mod rule;
mod seen;
mod sets;
mod token;
mod verified;

use std::sync::Arc;
use std::time::SystemTime;

use api::waypoint as wire;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use serde_json::{Map, Value};

use crate::asked::remove_doubles;
use find::Found;
use rule::{Rule, Source};
use seen::Seen;

pub use fetch::{Fetch, Fetched, Http};
pub use guard::{is_allowed, may_be_asked};
pub use keys::{KeyError, Keys};
pub use mesh::Through;
pub use sets::KeySets;
pub use token::Fault;
pub use verified::Verified;

/// The payload of a token that was found good.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    /// `iss`
    pub issuer: String,
    /// `sub`; empty if there is none.
    pub subject: String,
    /// `aud`, one or several.
    pub audiences: Vec<String>,
    /// All of it.
    pub all: Map<String, Value>,
}

/// What a service asks of tokens.
#[derive(Debug, Default)]
pub struct Tokens {
    rules: Box<[Arc<Rule>]>,
    /// Headers that only we may write.
    ours: Box<[HeaderName]>,
    complaints: Vec<(String, String)>,
    seen: Arc<Seen>,
}

/// A request that is refused for its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct Refused {
    /// Why; the text is the answer's body.
    pub fault: Fault,
}

impl Tokens {
    /// Compiles the policies of a service. Never fails: a rule that cannot be read refuses requests that carry a
    /// token; see [`Tokens::complaints`]. Keys are fetched from now on, if a runtime is there.
    pub fn compile(policies: &[(&wire::Origin, &wire::Authentication)], sets: &KeySets) -> Self {
        let mut tokens = Self {
            seen: sets.seen(),
            ..Self::default()
        };
        let mut rules = Vec::new();
        for (origin, policy) in policies {
            let name = format!("{}/{}", origin.namespace, origin.name);
            for rule in rule::compile(policy, sets) {
                if let Source::Unreadable(why) = &rule.source {
                    tokens.complaints.push((name.clone(), why.to_string()));
                }
                rules.push(Arc::new(rule));
            }
        }
        tokens.ours = rule::written_headers(&rules);
        tokens.rules = rules.into();
        tokens
    }

    /// Looks at one policy.
    ///
    /// # Errors
    /// What is wrong with it; one that the control plane could not read itself is none.
    pub fn check_policy(policy: &wire::Authentication) -> Result<(), String> {
        let tokens = Self::compile(&[(&wire::Origin::default(), policy)], &KeySets::idle());
        match tokens
            .complaints()
            .first()
            .filter(|_| policy.invalid.is_empty())
        {
            Some((_, why)) => Err(why.clone()),
            None => Ok(()),
        }
    }

    /// Nobody asks for tokens.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What is wrong with policies: `namespace/name` and why.
    pub fn complaints(&self) -> &[(String, String)] {
        &self.complaints
    }

    /// Removes what a client must not send: headers that tell the app what a good token says, also those that are
    /// the same ones to apps which read an underscore as a dash.
    pub fn strip(&self, headers: &mut HeaderMap) {
        for name in &self.ours {
            headers.remove(name);
        }
        remove_doubles(headers, &self.ours);
    }

    /// Headers that only we may write: they tell the app what a good token says.
    pub fn written(&self) -> &[HeaderName] {
        &self.ours
    }

    /// Whether two heads carry the same tokens, each where it was. No, where that cannot be told.
    pub fn are_same(&self, one: (&HeaderMap, &Uri), other: (&HeaderMap, &Uri)) -> bool {
        let one = find::tokens(&self.rules, one.0, one.1);
        let other = find::tokens(&self.rules, other.0, other.1);
        let (Ok(one), Ok(other)) = (one, other) else {
            return false;
        };
        let mut pairs = one.iter().zip(&other);
        one.len() == other.len() && pairs.all(|(a, b)| a.place == b.place && a.text == b.text)
    }

    /// Who asks, by the request's tokens; None if it has none. Ready at once, but for keys that must be fetched.
    ///
    /// # Errors
    /// When a token is not good, or nobody can tell.
    pub async fn check(
        &self,
        headers: &HeaderMap,
        uri: &Uri,
        now: SystemTime,
    ) -> Result<Option<Verified>, Refused> {
        if self.rules.is_empty() {
            return Ok(None);
        }
        let found = find::tokens(&self.rules, headers, uri).map_err(|fault| Refused { fault })?;
        if found.is_empty() {
            return Ok(None);
        }
        self.judge(&found, now).await.map(Some)
    }

    async fn judge(&self, found: &[Found<'_>], now: SystemTime) -> Result<Verified, Refused> {
        let mut first: Option<(usize, Arc<Claims>)> = None;
        let mut good = Vec::with_capacity(found.len());
        for token in found {
            let (rule, claims) = self
                .judge_one(token, now)
                .await
                .map_err(|fault| Refused { fault })?;
            if first.as_ref().is_none_or(|(before, _)| rule < *before) {
                first = Some((rule, claims.clone()));
            }
            good.push((
                token.place.clone(),
                self.rules[rule].clone(),
                claims,
                token.payload(),
            ));
        }
        let claims = first
            .map(|(_, claims)| claims)
            .ok_or(Refused { fault: Fault::Form })?;
        Ok(Verified::new(claims, good))
    }

    /// By the first rule that finds it good, of those that look where it is; the last one's fault if none does.
    async fn judge_one(
        &self,
        token: &Found<'_>,
        now: SystemTime,
    ) -> Result<(usize, Arc<Claims>), Fault> {
        let mut fault = Fault::Issuer;
        for &number in &token.rules {
            let rule = &self.rules[number];
            match self.by_rule(rule, &token.text, now).await {
                Ok(claims) => return Ok((number, claims)),
                // That it is another's token says less than what its own rule says.
                Err(Fault::Issuer) => {}
                Err(other) => fault = other,
            }
        }
        Err(fault)
    }

    async fn by_rule(
        &self,
        rule: &Rule,
        text: &str,
        now: SystemTime,
    ) -> Result<Arc<Claims>, Fault> {
        let at_hand = rule.source.keys_at_hand();
        let known = |keys: Arc<Keys>| self.seen.find(text, &keys, &rule.lists);
        if let Some(claims) = at_hand.and_then(known) {
            rule.is_by_issuer(&claims.issuer)?;
            token::is_current(&claims.all, now)?;
            return rule.is_for_us(&claims.audiences).map(|()| claims);
        }
        let parsed = token::parse(text)?;
        parsed.is_for(rule)?;
        let set = match &rule.source {
            Source::Unreadable(_) => return Err(Fault::Policy),
            Source::Inline(keys) => return self.verified(rule, parsed, keys, now),
            Source::Fetched(set) => set,
        };
        let keys = set.keys(rule.fetch_timeout).await?;
        match self.verified(rule, parsed.clone(), &keys, now) {
            // A key that was made since we last asked.
            Err(Fault::NoKey) => {
                let newer = set.newer_than(&keys, rule.fetch_timeout).await;
                self.verified(rule, parsed, &newer.ok_or(Fault::NoKey)?, now)
            }
            other => other,
        }
    }

    fn verified(
        &self,
        rule: &Rule,
        parsed: token::Parsed<'_>,
        keys: &Arc<Keys>,
        now: SystemTime,
    ) -> Result<Arc<Claims>, Fault> {
        parsed.is_current(now)?;
        parsed.is_signed(keys)?;
        let text = parsed.text;
        let claims = Arc::new(parsed.claims(rule)?);
        self.seen.keep(text, keys, &rule.lists, &claims);
        Ok(claims)
    }
}

impl Refused {
    /// Of the answer.
    pub fn status(&self) -> StatusCode {
        match self.fault {
            Fault::Audience => StatusCode::FORBIDDEN,
            _ => StatusCode::UNAUTHORIZED,
        }
    }

    /// `www-authenticate` of a 401: where a token would be good, as `scheme://host/path`.
    pub fn challenge(&self, scheme: &str, host: &str, path: &str) -> Option<HeaderValue> {
        if self.status() != StatusCode::UNAUTHORIZED {
            return None;
        }
        // The path is the client's own, and goes into quotes.
        let plain = |text: &str| !text.bytes().any(|byte| matches!(byte, b'"' | b'\\'));
        let place = [scheme, "://", host, path].concat();
        let realm = if plain(&place) { place.as_str() } else { host };
        HeaderValue::from_str(&format!(
            "Bearer realm=\"{realm}\", error=\"invalid_token\""
        ))
        .ok()
    }
}
