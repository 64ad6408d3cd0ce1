//! "Only through my waypoint": who demands it, and the policy by which ztunnels see to it.
//!
//! The policy denies whoever is not one of the workload's waypoints, by identity: who has none, in plain
//! text, is denied as well. It is an `istio.security.Authorization` like any other, so any ztunnel enforces it.

use std::collections::{BTreeMap, BTreeSet};

use api::k8s::labels;
use api::security::string_match::MatchType;
use api::security::{Action, Authorization, Group, Match, Rules, Scope, StringMatch};

use super::Labels;

/// What a label says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Only {
    /// Nothing.
    #[default]
    Unsaid,
    /// It is not demanded.
    No,
    /// It is.
    Yes,
    /// Nobody knows what; who wrote it wanted something protected, so it is demanded.
    Unreadable(String),
}

impl Only {
    /// Of an object, or of a namespace for what is in it.
    pub fn read(labels: &Labels) -> Self {
        let text = labels.get(labels::WAYPOINT_ONLY).map(String::as_str);
        match text {
            None => Self::Unsaid,
            Some("true") => Self::Yes,
            Some("false") => Self::No,
            Some(text) => Self::Unreadable(text.to_owned()),
        }
    }

    /// Of something in a namespace that says `namespace`.
    pub fn or<'a>(&'a self, namespace: &'a Self) -> &'a Self {
        match self {
            Self::Unsaid => namespace,
            own => own,
        }
    }

    /// Whether it is demanded.
    pub fn demands(&self) -> bool {
        matches!(self, Self::Yes | Self::Unreadable(_))
    }

    /// What is wrong with what is written.
    pub fn fault(&self) -> Option<String> {
        let Self::Unreadable(text) = self else {
            return None;
        };
        Some(format!(
            "label {} says \"{text}\", which is neither true nor false, and counts as true",
            labels::WAYPOINT_ONLY
        ))
    }
}

/// Principals.
pub type Principals = BTreeSet<String>;

/// Who may connect to a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Through {
    /// To each port that is spoken of.
    pub ports: BTreeMap<u32, Principals>,
    /// To every other port; none if everybody.
    pub others: Option<Principals>,
}

impl Through {
    /// The policy that denies everybody else; none if there is nothing to deny.
    pub fn policy(&self, namespace: &str, name: String) -> Option<Authorization> {
        let mut alike: BTreeMap<&Principals, Vec<u32>> = BTreeMap::new();
        for (port, may) in &self.ports {
            alike.entry(may).or_default().push(*port);
        }
        let listed = alike.into_iter().map(|(may, ports)| Match {
            not_principals: exactly(may),
            destination_ports: ports,
            ..Match::default()
        });
        let others = self.others.iter().map(|may| Match {
            not_principals: exactly(may),
            not_destination_ports: self.ports.keys().copied().collect(),
            ..Match::default()
        });
        let matches: Vec<Match> = listed.chain(others).collect();
        (!matches.is_empty()).then(|| Authorization {
            name,
            namespace: namespace.to_owned(),
            scope: Scope::WorkloadSelector.into(),
            action: Action::Deny.into(),
            groups: vec![Group {
                rules: vec![Rules { matches }],
            }],
            ..Authorization::default()
        })
    }
}

/// What no identity is called. A list without anybody would be no condition.
const NOBODY: &str = "nobody";

fn exactly(principals: &Principals) -> Vec<StringMatch> {
    let one = |text: &str| StringMatch {
        match_type: Some(MatchType::Exact(text.to_owned())),
    };
    if principals.is_empty() {
        return vec![one(NOBODY)];
    }
    principals.iter().map(|it| one(it)).collect()
}

/// The name of a workload's policy. No object of a user is called so: it has underscores.
pub fn policy_name(kind: &str, workload: &str) -> String {
    let kind = kind.to_ascii_lowercase();
    format!("ambit_only_through_waypoint_{kind}_{workload}")
}
