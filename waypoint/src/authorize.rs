//! Pure: whether a request may pass.
//!
//! What the control plane says enters, [`Policies`] of one service leave; a request enters ([`Policies::judge`]), a
//! [`Verdict`] leaves:
//!
//! 1. a policy that cannot be read: denied
//! 2. CUSTOM policies that match: their providers are asked first
//! 3. a DENY that matches: denied
//! 4. no ALLOW policy, or one that matches: allowed; else denied
//!
//! A condition that cannot be decided ([`Truth`]) makes an ALLOW not match, and all else match. AUDIT and dry-run
//! policies count in none of these; [`Policies::notes`] tells what they say, [`Policies::explain`] why.

mod compile;
mod condition;
mod explain;
mod facts;
mod header;
mod path;
mod pattern;
mod principal;
mod truth;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::asked::Asked;
use crate::client::Client;
use crate::process::Metadata;
use condition::Condition;
use facts::Facts;

pub use compile::Context;
pub use explain::{Explained, ExplainedCondition, ExplainedRule, Explanation};
pub use truth::Truth;

/// All policies of a service, or of all that passes a gateway.
#[derive(Debug, Clone, Default)]
pub struct Policies {
    /// By namespace and name.
    all: Box<[Policy]>,
}

/// One user's object.
#[derive(Debug, Clone)]
struct Policy {
    /// `namespace/name`
    name: Arc<str>,
    action: Action,
    /// For the log only.
    dry_run: bool,
    /// Why it cannot be read.
    invalid: Option<Box<str>>,
    /// Of CUSTOM.
    provider: Box<str>,
    /// Ports of the service it is for; empty = all.
    ports: Box<[u16]>,
    rules: Box<[Rule]>,
}

/// What a match means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Action {
    /// It is allowed, unless denied.
    Allow,
    /// It is denied.
    Deny,
    /// It is written down.
    Audit,
    /// A provider is asked.
    Custom,
}

/// Any of `from`, and any of `to`, and all of `when`; an empty list asks nothing.
#[derive(Debug, Clone)]
struct Rule {
    from: Box<[Clause]>,
    to: Box<[Clause]>,
    when: Clause,
}

/// All of them.
type Clause = Box<[Condition]>;

/// A TCP connection, as it is judged.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Who asks.
    pub client: &'a Client,
    /// Where it was addressed to.
    pub destination: SocketAddr,
    /// The service's port it was addressed to.
    pub port: u16,
    /// Server name, if it is TLS.
    pub sni: Option<&'a str>,
    /// It may be TLS, and nobody could read whom it asks for: conditions about that cannot be decided.
    pub unread: bool,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'p> {
    /// It may pass.
    Allow {
        /// The ALLOW policy that matched; None when none applies.
        by: Option<Matched<'p>>,
    },
    /// It may not: 403.
    Deny(Denied<'p>),
    /// These must be asked (keys of providers, each once), and all agree; a key that is not known denies. What holds
    /// then is for [`Policies::judge_after_asking`] to say.
    Ask(Vec<&'p str>),
}

/// Which rule of which policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched<'p> {
    /// `namespace/name`
    pub policy: &'p str,
    /// Its number, from 0.
    pub rule: usize,
}

/// Why something may not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied<'p> {
    /// A DENY matched.
    Rule(Matched<'p>),
    /// A DENY might match: one of its conditions cannot be decided, and none says no.
    Undecidable(Matched<'p>),
    /// ALLOW policies apply, and none matched.
    NothingAllows,
    /// A policy applies that cannot be read.
    Unreadable {
        /// `namespace/name`
        policy: &'p str,
        /// Why.
        why: &'p str,
    },
}

/// What a policy that does not decide would have said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note<'p> {
    /// `namespace/name`
    pub policy: &'p str,
    /// What a match of it means.
    pub action: Action,
    /// For the log only; AUDIT policies are noted when they are not, too.
    pub dry_run: bool,
    /// The rule that matched.
    pub rule: Option<usize>,
}

impl Policies {
    /// No policy: all may pass.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// What is wrong with policies that cannot be read: `namespace/name` and why.
    pub fn complaints(&self) -> impl Iterator<Item = (&str, &str)> {
        let complaint = |policy: &'_ Policy| policy.invalid.is_some();
        self.all
            .iter()
            .filter(move |policy| complaint(policy))
            .map(|policy| (&*policy.name, policy.invalid.as_deref().unwrap_or_default()))
    }

    /// Whether a request may pass, or who must be asked first.
    pub fn judge(&self, asked: &Asked<'_>) -> Verdict<'_> {
        if self.is_empty() {
            return Verdict::Allow { by: None };
        }
        self.decide(&Facts::of(asked), true)
    }

    /// The same when all providers were asked and agreed; `said`: what they have said of it beside that.
    pub fn judge_after_asking(&self, asked: &Asked<'_>, said: &Metadata) -> Verdict<'_> {
        self.decide(&Facts::told(asked, said), false)
    }

    /// Whether a TCP connection may pass, or who must be asked about it beside those who have `agreed`. Conditions about
    /// requests cannot be decided, and whoever is asked about a connection is not told of requests: where a CUSTOM policy
    /// may match because of what is in them, it denies.
    pub fn judge_connection(
        &self,
        connection: &Connection<'_>,
        agreed: &[Arc<str>],
    ) -> Verdict<'_> {
        let facts = Facts::of_connection(connection);
        let asks = |policy: &&Policy| policy.action == Action::Custom && policy.invalid.is_none();
        let mut providers: Vec<&str> = Vec::new();
        for policy in self.deciding(&facts).filter(asks) {
            let provider = &*policy.provider;
            match policy.surest(&facts) {
                Some((_, Truth::Yes)) if agreed.iter().any(|it| **it == *provider) => {}
                Some((_, Truth::Yes)) if providers.contains(&provider) => {}
                Some((_, Truth::Yes)) => providers.push(provider),
                Some((rule, _)) => {
                    return Verdict::Deny(Denied::Undecidable(policy.matched(rule)));
                }
                None => {}
            }
        }
        match providers.is_empty() {
            true => self.decide(&facts, false),
            false => Verdict::Ask(providers),
        }
    }

    /// Whether any policy is for the log.
    pub fn has_notes(&self) -> bool {
        let noted = |policy: &Policy| policy.dry_run || policy.action == Action::Audit;
        self.all.iter().any(noted)
    }

    /// What the policies for the log say: all that are dry-run, and each AUDIT that matches. `said`: what those who were
    /// asked have said of it.
    pub fn notes(&self, asked: &Asked<'_>, said: &Metadata) -> Vec<Note<'_>> {
        self.noted(&Facts::told(asked, said))
    }

    /// The same of a TCP connection.
    pub fn notes_of_connection(&self, connection: &Connection<'_>) -> Vec<Note<'_>> {
        self.noted(&Facts::of_connection(connection))
    }

    fn noted(&self, facts: &Facts<'_>) -> Vec<Note<'_>> {
        let of_port = self.all.iter().filter(|policy| policy.is_for(facts));
        let noted = of_port.filter(|policy| policy.dry_run || policy.action == Action::Audit);
        let note = |policy: &'_ Policy| (policy.matching(facts), policy.dry_run);
        noted
            .map(|policy| (policy, note(policy)))
            .filter(|(_, (rule, dry_run))| *dry_run || rule.is_some())
            .map(|(policy, (rule, dry_run))| Note {
                policy: &policy.name,
                action: policy.action,
                dry_run,
                rule,
            })
            .collect()
    }

    fn decide(&self, facts: &Facts<'_>, ask: bool) -> Verdict<'_> {
        if let Some(policy) = self.deciding(facts).find(|policy| policy.invalid.is_some()) {
            return Verdict::Deny(Denied::Unreadable {
                policy: &policy.name,
                why: policy.invalid.as_deref().unwrap_or_default(),
            });
        }
        if ask {
            let providers = self.providers(facts);
            if !providers.is_empty() {
                return Verdict::Ask(providers);
            }
        }
        self.denied(facts)
            .map_or_else(|| self.allowed(facts), Verdict::Deny)
    }

    fn providers(&self, facts: &Facts<'_>) -> Vec<&str> {
        let mut providers = Vec::new();
        for policy in self.deciding(facts) {
            let asks = policy.action == Action::Custom && policy.first(facts).is_some();
            if asks && !providers.contains(&&*policy.provider) {
                providers.push(&*policy.provider);
            }
        }
        providers
    }

    fn denied(&self, facts: &Facts<'_>) -> Option<Denied<'_>> {
        let mut denies = self
            .deciding(facts)
            .filter(|policy| policy.action == Action::Deny);
        denies.find_map(|policy| {
            let (rule, truth) = policy.first(facts)?;
            let matched = policy.matched(rule);
            Some(match truth {
                Truth::Yes => Denied::Rule(matched),
                _ => Denied::Undecidable(matched),
            })
        })
    }

    fn allowed(&self, facts: &Facts<'_>) -> Verdict<'_> {
        let mut applies = false;
        for policy in self
            .deciding(facts)
            .filter(|policy| policy.action == Action::Allow)
        {
            applies = true;
            if let Some((rule, _)) = policy.first(facts) {
                let by = Some(policy.matched(rule));
                return Verdict::Allow { by };
            }
        }
        if applies {
            Verdict::Deny(Denied::NothingAllows)
        } else {
            Verdict::Allow { by: None }
        }
    }

    /// Those that count here.
    fn deciding<'p>(&'p self, facts: &Facts<'_>) -> impl Iterator<Item = &'p Policy> {
        let counts = |policy: &&Policy| !policy.dry_run && policy.is_for(facts);
        self.all.iter().filter(counts)
    }
}

impl Policy {
    fn is_for(&self, facts: &Facts<'_>) -> bool {
        self.ports.is_empty() || self.ports.contains(&facts.port)
    }

    fn matched(&self, rule: usize) -> Matched<'_> {
        let policy = &self.name;
        Matched { policy, rule }
    }

    /// The first rule that counts as a match, for what the action is.
    fn first(&self, facts: &Facts<'_>) -> Option<(usize, Truth)> {
        let enough = match self.action {
            Action::Allow => Truth::Yes,
            Action::Deny | Action::Audit | Action::Custom => Truth::Undecidable,
        };
        let truths = self.rules.iter().map(|rule| rule.holds(facts)).enumerate();
        truths.into_iter().find(|(_, truth)| *truth >= enough)
    }

    /// The first rule that matches for certain, else the first that may.
    fn surest(&self, facts: &Facts<'_>) -> Option<(usize, Truth)> {
        let mut found = None;
        for (number, rule) in self.rules.iter().enumerate() {
            match rule.holds(facts) {
                Truth::Yes => return Some((number, Truth::Yes)),
                Truth::Undecidable if found.is_none() => found = Some((number, Truth::Undecidable)),
                _ => {}
            }
        }
        found
    }

    /// The same for the log; a policy that cannot be read matches as its action makes it.
    fn matching(&self, facts: &Facts<'_>) -> Option<usize> {
        match self.invalid {
            Some(_) if self.action == Action::Allow => None,
            Some(_) => Some(0),
            None => self.first(facts).map(|(rule, _)| rule),
        }
    }
}

impl Rule {
    fn holds(&self, facts: &Facts<'_>) -> Truth {
        let clause =
            |clause: &Clause| Truth::all(clause.iter().map(|condition| condition.holds(facts)));
        let any = |list: &[Clause]| {
            if list.is_empty() {
                Truth::Yes
            } else {
                Truth::any(list.iter().map(clause))
            }
        };
        // What decides against most requests, and costs least, first.
        match any(&self.to) {
            Truth::No => Truth::No,
            to => match to.min(any(&self.from)) {
                Truth::No => Truth::No,
                both => both.min(clause(&self.when)),
            },
        }
    }
}

impl fmt::Display for Matched<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule {}", self.policy, self.rule)
    }
}

impl fmt::Display for Denied<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(matched) => write!(f, "denied by {matched}"),
            Self::Undecidable(matched) => write!(f, "denied by {matched}, which cannot be decided"),
            Self::NothingAllows => f.write_str("allow policies apply, and none allows it"),
            Self::Unreadable { policy, why } => write!(f, "policy {policy} cannot be read: {why}"),
        }
    }
}
