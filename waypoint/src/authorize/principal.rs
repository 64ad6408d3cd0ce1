//! Who asks: principals of workloads, and of tokens.

use hbone::Identity;

use super::compile::Context;
use super::pattern::{Case, Pattern};
use super::truth::Truth;
use crate::authenticate::Claims;

/// `trust-domain/ns/namespace/sa/account` as policies name it; a trust domain that is ours stands for all of its
/// names.
pub(super) fn principals(text: &str, context: &Context<'_>) -> Vec<Pattern> {
    let text = text.strip_prefix("spiffe://").unwrap_or(text);
    let mut patterns = vec![Pattern::new(text)];
    let Some((domain, rest)) = text.split_once('/') else {
        return patterns;
    };
    let ours = || {
        std::iter::once(context.trust_domain).chain(context.aliases.iter().map(|alias| &**alias))
    };
    let names = |ours: &str| match domain.strip_prefix('*') {
        Some(end) => ours.ends_with(end),
        None => ours == domain,
    };
    if domain == "*" || !(domain == "cluster.local" || ours().any(names)) {
        return patterns;
    }
    for name in ours().filter(|name| *name != domain) {
        patterns.push(Pattern::new(&format!("{name}/{rest}")));
    }
    patterns
}

/// Whether an identity is one of them.
pub(super) fn is_one(identity: Option<&Identity>, patterns: &[Pattern]) -> Truth {
    let Some(identity) = identity else {
        return Truth::No;
    };
    let pieces: [&[u8]; 5] = [
        identity.trust_domain().as_bytes(),
        b"/ns/",
        identity.namespace().as_bytes(),
        b"/sa/",
        identity.service_account().as_bytes(),
    ];
    Truth::any(
        patterns
            .iter()
            .map(|pattern| pattern.matches(&pieces, Case::Counts)),
    )
}

/// `namespace/account`, or an account of the policy's namespace. Names are literal: neither dots nor stars mean
/// anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    namespace: Box<str>,
    name: Box<str>,
}

impl Account {
    /// None: no account can have this name.
    pub(super) fn new(text: &str, namespace: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
        let odd = |text: &str| text.is_empty() || text.contains(['*', '/']);
        if odd(namespace) || odd(name) {
            return None;
        }
        Some(Self {
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    pub(super) fn is(&self, identity: &Identity) -> bool {
        *self.namespace == *identity.namespace() && *self.name == *identity.service_account()
    }
}

/// `issuer/subject` of a token. Both may have slashes; the last one divides what a policy wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RequestPrincipal {
    issuer: Pattern,
    subject: Pattern,
    whole: Pattern,
}

impl RequestPrincipal {
    pub(super) fn new(text: &str) -> Self {
        let whole = Pattern::new(text);
        let divided = text.rsplit_once('/');
        let (issuer, subject) = match (&whole, divided) {
            (Pattern::Any, _) => (Pattern::Any, Pattern::Any),
            (_, Some((issuer, subject))) => (Pattern::new(issuer), Pattern::new(subject)),
            (Pattern::Suffix(_), None) => (Pattern::Any, Pattern::new(text)),
            (Pattern::Prefix(_), None) => (Pattern::new(text), Pattern::Any),
            (_, None) => (Pattern::new(text), Pattern::new("")),
        };
        Self {
            issuer,
            subject,
            whole,
        }
    }

    /// A token without issuer or subject has no principal. When the two, put together, match although neither does
    /// alone (a subject with a slash), nobody knows whom the policy means.
    pub(super) fn is(&self, claims: Option<&Claims>) -> Truth {
        let Some(claims) =
            claims.filter(|claims| !claims.issuer.is_empty() && !claims.subject.is_empty())
        else {
            return Truth::No;
        };
        let (issuer, subject) = (claims.issuer.as_bytes(), claims.subject.as_bytes());
        let of_issuer = self.issuer.matches(&[issuer], Case::Counts);
        let divided = of_issuer.min(self.subject.matches(&[subject], Case::Counts));
        let whole = self.whole.matches(&[issuer, b"/", subject], Case::Counts);
        match (divided, whole) {
            (Truth::No, Truth::No) => Truth::No,
            (Truth::No, _) => Truth::Undecidable,
            (divided, _) => divided,
        }
    }
}
