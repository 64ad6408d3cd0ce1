//! Who a workload is: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
//!
//! Text enters ([`Identity::from_str`]) or three names do ([`Identity::new`]); what leaves is an
//! identity that cannot be malformed. Parsing is strict: one spelling per identity, so comparing
//! strings, hashing and comparing identities always agree. Anything that could be read in two ways
//! (capital letters in the trust domain, percent signs, empty or dotted segments, a trailing slash,
//! a port, a query) is refused, because a policy would have to guess.

use std::{fmt, str::FromStr, sync::Arc};

/// Longest identity that is accepted, in bytes (the SPIFFE ID specification's ceiling).
const LONGEST: usize = 2048;
/// Longest trust domain, in bytes (the same specification).
const LONGEST_TRUST_DOMAIN: usize = 255;

/// A workload's proven or expected identity. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    trust_domain: Arc<str>,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

/// Why a text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text does not begin with `spiffe://`.
    #[error("{0:?} does not begin with spiffe://")]
    Scheme(String),
    /// The path is not `/ns/<namespace>/sa/<service account>`.
    #[error("{0:?} is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    Shape(String),
    /// The trust domain is empty, too long, or has characters other than `a-z 0-9 . - _`.
    #[error("{0:?} is not a trust domain")]
    TrustDomain(String),
    /// A path segment is empty, a dot segment, or has characters other than `A-Z a-z 0-9 . - _`.
    #[error("{0:?} is not a namespace or service account name")]
    Segment(String),
    /// Longer than 2,048 bytes.
    #[error("longer than {LONGEST} bytes")]
    TooLong,
}

impl Identity {
    /// An identity from its three names.
    ///
    /// # Errors
    /// When a name could not stand in a SPIFFE ID.
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        Self::shared(
            trust_domain.into(),
            namespace.into(),
            service_account.into(),
        )
    }

    /// An identity from three names that are shared already: nothing is copied.
    ///
    /// # Errors
    /// When a name could not stand in a SPIFFE ID.
    pub fn shared(
        trust_domain: Arc<str>,
        namespace: Arc<str>,
        service_account: Arc<str>,
    ) -> Result<Self, IdentityError> {
        check_trust_domain(&trust_domain)?;
        check_segment(&namespace)?;
        check_segment(&service_account)?;
        let fixed = "spiffe:///ns//sa/".len();
        if fixed + trust_domain.len() + namespace.len() + service_account.len() > LONGEST {
            return Err(IdentityError::TooLong);
        }
        Ok(Self {
            trust_domain,
            namespace,
            service_account,
        })
    }

    /// The trust domain, for example `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > LONGEST {
            return Err(IdentityError::TooLong);
        }
        let rest = text
            .strip_prefix("spiffe://")
            .ok_or_else(|| IdentityError::Scheme(text.to_owned()))?;
        let mut parts = rest.split('/');
        match (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) {
            (
                Some(trust_domain),
                Some("ns"),
                Some(namespace),
                Some("sa"),
                Some(service_account),
                None,
            ) => Self::new(trust_domain, namespace, service_account),
            _ => Err(IdentityError::Shape(text.to_owned())),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn check_trust_domain(text: &str) -> Result<(), IdentityError> {
    let allowed =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    if text.is_empty() || text.len() > LONGEST_TRUST_DOMAIN || !text.bytes().all(allowed) {
        return Err(IdentityError::TrustDomain(text.to_owned()));
    }
    Ok(())
}

fn check_segment(text: &str) -> Result<(), IdentityError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if text.is_empty() || text == "." || text == ".." || !text.bytes().all(allowed) {
        return Err(IdentityError::Segment(text.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn well_formed_identities_keep_their_parts() {
        let id: Identity = "spiffe://cluster.local/ns/default/sa/my-app.v1_2"
            .parse()
            .unwrap();
        assert_eq!(
            (id.trust_domain(), id.namespace(), id.service_account()),
            ("cluster.local", "default", "my-app.v1_2")
        );
        assert_eq!(
            id.to_string(),
            "spiffe://cluster.local/ns/default/sa/my-app.v1_2"
        );
    }

    #[test]
    fn anything_ambiguous_is_refused() {
        for bad in [
            "",
            "spiffe://",
            "SPIFFE://cluster.local/ns/a/sa/b",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://td:80/ns/a/sa/b",
            "spiffe://user@td/ns/a/sa/b",
            "spiffe://td/ns/a/sa/b/",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td//ns/a/sa/b",
            "spiffe://td/ns//sa/b",
            "spiffe://td/ns/a/sa/",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/../sa/b",
            "spiffe://td/ns/a/sa/.",
            "spiffe://td/NS/a/sa/b",
            "spiffe://td/ns/a/sa/b?x",
            "spiffe://td/ns/a/sa/b#x",
            "spiffe://td/ns/a%2fb/sa/b",
            "spiffe://td/ns/a b/sa/b",
            "spiffe://td/ns/ä/sa/b",
            "spiffe://td/ns/a/sa/b\0",
            " spiffe://td/ns/a/sa/b",
        ] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?} was accepted");
        }
        let long = format!("spiffe://td/ns/a/sa/{}", "b".repeat(LONGEST));
        assert_eq!(long.parse::<Identity>(), Err(IdentityError::TooLong));
        assert!(Identity::new(&"t".repeat(256), "a", "b").is_err());
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(
            td in "[a-z0-9][a-z0-9._-]{0,30}", ns in "[a-z0-9][a-z0-9-]{0,30}", sa in "[A-Za-z0-9][A-Za-z0-9._-]{0,30}",
        ) {
            let id = Identity::new(&td, &ns, &sa).unwrap();
            prop_assert_eq!(id.to_string().parse::<Identity>().unwrap(), id);
        }

        #[test]
        fn what_parses_prints_as_it_was_written(text in "(spiffe://)?[a-zA-Z0-9./:@%?#_-]{0,60}") {
            if let Ok(id) = text.parse::<Identity>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = text.parse::<Identity>();
        }
    }
}
