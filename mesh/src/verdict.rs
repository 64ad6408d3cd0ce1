//! Pure: may this connection pass?
//!
//! 1. a DENY that matches: denied
//! 2. a policy that is named and not known: undecided; whoever asks waits a moment, then denies
//! 3. no ALLOW applies, or one matches: allowed
//! 4. else denied
//!
//! Policies for the log only (dry run) count in none of these; [`dry_runs`] tells what they say.
//! Nothing here allocates.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::policy::{Action, Group, Match, Policy, Rule, ServiceAccountMatch, StringMatch};
use crate::snapshot::Applicable;

/// What a policy can know of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Proven identity of the source; `None` for plaintext.
    pub source: Option<SourceIdentity<'a>>,
    /// Address of the source.
    pub source_ip: IpAddr,
    /// Address of the destination.
    pub destination_ip: IpAddr,
    /// Port at the destination.
    pub destination_port: u16,
}

/// The parts of a SPIFFE id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceIdentity<'a> {
    /// Trust domain.
    pub trust_domain: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Service account.
    pub service_account: &'a str,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allowed {
        /// The ALLOW policy that matched; `None` when none applies.
        by: Option<Arc<str>>,
    },
    /// It may not.
    Denied {
        /// Why.
        by: DeniedBy,
    },
    /// Nobody knows: the workload names a policy that has not arrived. Hold the connection
    /// briefly, judge again, then deny with [`DeniedBy::UnknownPolicy`].
    Undecided {
        /// The first name that is not known.
        missing: Arc<str>,
    },
}

/// Why a connection may not pass.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeniedBy {
    /// A DENY matched.
    #[error("explicitly denied by: {0}")]
    Explicit(Arc<str>),
    /// ALLOW policies apply, none matched.
    #[error("allow policies exist, but none allowed")]
    NoAllowMatched,
    /// A policy that is named has not arrived in time.
    #[error("policy {0} applies and is not known here")]
    UnknownPolicy(Arc<str>),
}

/// What a policy for the log only would have done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    /// The policy.
    pub policy: Arc<str>,
    /// Its action.
    pub action: Action,
    /// Whether it matched.
    pub matched: bool,
}

/// Judges a connection by the policies that apply to its destination.
pub fn judge(policies: &Applicable<'_>, connection: &Connection<'_>) -> Verdict {
    let mut allow_applies = false;
    let mut allowed_by = None;
    for policy in policies.known().filter(|policy| !policy.dry_run) {
        match policy.action {
            Action::Deny if policy.matches(connection) => {
                return Verdict::Denied {
                    by: DeniedBy::Explicit(policy.key.clone()),
                };
            }
            Action::Deny => {}
            Action::Allow => {
                allow_applies = true;
                if allowed_by.is_none() && policy.matches(connection) {
                    allowed_by = Some(&policy.key);
                }
            }
        }
    }
    if let Some(missing) = policies.unknown().next() {
        return Verdict::Undecided {
            missing: missing.clone(),
        };
    }
    if allow_applies && allowed_by.is_none() {
        return Verdict::Denied {
            by: DeniedBy::NoAllowMatched,
        };
    }
    Verdict::Allowed {
        by: allowed_by.cloned(),
    }
}

/// What the policies for the log only would have done.
pub fn dry_runs<'a, 'c>(
    policies: &Applicable<'a>,
    connection: &'a Connection<'c>,
) -> impl Iterator<Item = DryRun> + use<'a, 'c> {
    policies
        .known()
        .filter(|policy| policy.dry_run)
        .map(move |policy| DryRun {
            policy: policy.key.clone(),
            action: policy.action,
            matched: policy.matches(connection),
        })
}

impl Policy {
    /// Whether the policy matches, whatever that means for its action.
    pub fn matches(&self, connection: &Connection<'_>) -> bool {
        if self.unreadable && self.action == Action::Allow {
            return false;
        }
        self.groups
            .iter()
            .any(|group| group.matches(self.action, connection))
    }
}

impl Group {
    fn matches(&self, action: Action, connection: &Connection<'_>) -> bool {
        self.rules
            .iter()
            .all(|rule| rule.matches(action, connection))
    }
}

impl Rule {
    fn matches(&self, action: Action, connection: &Connection<'_>) -> bool {
        self.matches.is_empty()
            || self
                .matches
                .iter()
                .any(|found| found.matches(action, connection))
    }
}

impl Match {
    fn matches(&self, action: Action, connection: &Connection<'_>) -> bool {
        if self.unreadable && action == Action::Allow {
            return false;
        }
        (self.unreadable || !self.is_empty())
            && self.source_matches(connection.source.as_ref())
            && within(&self.source_ips, connection.source_ip)
            && outside(&self.not_source_ips, connection.source_ip)
            && within(&self.destination_ips, connection.destination_ip)
            && outside(&self.not_destination_ips, connection.destination_ip)
            && (self.destination_ports.is_empty()
                || self
                    .destination_ports
                    .contains(&connection.destination_port))
            && !self
                .not_destination_ports
                .contains(&connection.destination_port)
    }

    fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.not_namespaces.is_empty()
            && self.principals.is_empty()
            && self.not_principals.is_empty()
            && self.source_ips.is_empty()
            && self.not_source_ips.is_empty()
            && self.destination_ips.is_empty()
            && self.not_destination_ips.is_empty()
            && self.destination_ports.is_empty()
            && self.not_destination_ports.is_empty()
            && self.service_accounts.is_empty()
            && self.not_service_accounts.is_empty()
    }

    /// Without an identity every positive condition fails and every negated one holds.
    fn source_matches(&self, source: Option<&SourceIdentity<'_>>) -> bool {
        let namespace = |list: &[StringMatch]| {
            source.is_some_and(|source| {
                list.iter()
                    .any(|wanted| wanted.matches(&[source.namespace]))
            })
        };
        let principal = |list: &[StringMatch]| {
            source.is_some_and(|source| {
                list.iter()
                    .any(|wanted| wanted.matches(&source.principal()))
            })
        };
        let account = |list: &[ServiceAccountMatch]| {
            source.is_some_and(|source| list.iter().any(|wanted| wanted.matches(source)))
        };
        (self.namespaces.is_empty() || namespace(&self.namespaces))
            && !namespace(&self.not_namespaces)
            && (self.principals.is_empty() || principal(&self.principals))
            && !principal(&self.not_principals)
            && (self.service_accounts.is_empty() || account(&self.service_accounts))
            && !account(&self.not_service_accounts)
    }
}

impl SourceIdentity<'_> {
    /// `trust-domain/ns/namespace/sa/account`, in pieces: put together it would have to be allocated.
    fn principal(&self) -> [&str; 5] {
        [
            self.trust_domain,
            "/ns/",
            self.namespace,
            "/sa/",
            self.service_account,
        ]
    }
}

impl ServiceAccountMatch {
    fn matches(&self, source: &SourceIdentity<'_>) -> bool {
        *self.namespace == *source.namespace && *self.service_account == *source.service_account
    }
}

impl StringMatch {
    /// `pieces`, read one after the other, are the text.
    fn matches(&self, pieces: &[&str]) -> bool {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        match self {
            Self::Presence => true,
            Self::Exact(wanted) => wanted.len() == length && starts_with(pieces, wanted),
            Self::Prefix(wanted) => wanted.len() <= length && starts_with(pieces, wanted),
            Self::Suffix(wanted) => wanted.len() <= length && ends_with(pieces, wanted),
        }
    }
}

fn starts_with(pieces: &[&str], wanted: &str) -> bool {
    let mut left = wanted.as_bytes();
    for piece in pieces {
        let shared = piece.len().min(left.len());
        if piece.as_bytes()[..shared] != left[..shared] {
            return false;
        }
        left = &left[shared..];
    }
    left.is_empty()
}

fn ends_with(pieces: &[&str], wanted: &str) -> bool {
    let mut left = wanted.as_bytes();
    for piece in pieces.iter().rev() {
        let shared = piece.len().min(left.len());
        if piece.as_bytes()[piece.len() - shared..] != left[left.len() - shared..] {
            return false;
        }
        left = &left[..left.len() - shared];
    }
    left.is_empty()
}

fn within(nets: &[IpNet], ip: IpAddr) -> bool {
    nets.is_empty() || nets.iter().any(|net| net.contains(&ip))
}

fn outside(nets: &[IpNet], ip: IpAddr) -> bool {
    !nets.iter().any(|net| net.contains(&ip))
}

#[cfg(test)]
mod tests;
