//! Pure: policies in the JSON shape of Istio's `/config_dump`.

use mesh::policy::{Match, ServiceAccountMatch, StringMatch};
use mesh::{Action, Policy, PolicyScope};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyShape<'a> {
    name: &'a str,
    namespace: &'a str,
    scope: &'static str,
    action: &'static str,
    rules: Vec<Vec<Vec<MatchShape<'a>>>>,
    dry_run: bool,
}

impl<'a> PolicyShape<'a> {
    pub(super) fn of(policy: &'a Policy) -> Self {
        let groups = policy.groups.iter().map(|group| {
            let rules = group
                .rules
                .iter()
                .map(|rule| rule.matches.iter().map(MatchShape::of).collect());
            rules.collect()
        });
        Self {
            name: &policy.name,
            namespace: &policy.namespace,
            scope: match policy.scope {
                PolicyScope::Global => "Global",
                PolicyScope::Namespace => "Namespace",
                PolicyScope::WorkloadSelector => "WorkloadSelector",
            },
            action: match policy.action {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
            },
            rules: groups.collect(),
            dry_run: policy.dry_run,
        }
    }
}

/// One match; empty fields are left out.
struct MatchShape<'a>(&'a Match);

impl<'a> MatchShape<'a> {
    fn of(found: &'a Match) -> Self {
        Self(found)
    }
}

impl Serialize for MatchShape<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let found = self.0;
        let mut map = out.serialize_map(None)?;
        let texts = [
            ("namespaces", &found.namespaces),
            ("notNamespaces", &found.not_namespaces),
            ("principals", &found.principals),
            ("notPrincipals", &found.not_principals),
        ];
        for (key, matches) in texts.into_iter().filter(|(_, matches)| !matches.is_empty()) {
            map.serialize_entry(key, &matches.iter().map(TextShape::of).collect::<Vec<_>>())?;
        }
        let nets = [
            ("sourceIps", &found.source_ips),
            ("notSourceIps", &found.not_source_ips),
            ("destinationIps", &found.destination_ips),
            ("notDestinationIps", &found.not_destination_ips),
        ];
        for (key, nets) in nets.into_iter().filter(|(_, nets)| !nets.is_empty()) {
            map.serialize_entry(key, nets)?;
        }
        let numbers = [
            ("destinationPorts", &found.destination_ports),
            ("notDestinationPorts", &found.not_destination_ports),
        ];
        for (key, ports) in numbers.into_iter().filter(|(_, ports)| !ports.is_empty()) {
            map.serialize_entry(key, ports)?;
        }
        let accounts = [
            ("serviceAccounts", &found.service_accounts),
            ("notServiceAccounts", &found.not_service_accounts),
        ];
        for (key, accounts) in accounts
            .into_iter()
            .filter(|(_, accounts)| !accounts.is_empty())
        {
            map.serialize_entry(
                key,
                &accounts.iter().map(AccountShape::of).collect::<Vec<_>>(),
            )?;
        }
        if found.unreadable {
            map.serialize_entry("unreadable", &true)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
enum TextShape<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    Suffix(&'a str),
    Presence(()),
}

impl<'a> TextShape<'a> {
    fn of(found: &'a StringMatch) -> Self {
        match found {
            StringMatch::Exact(text) => Self::Exact(text),
            StringMatch::Prefix(text) => Self::Prefix(text),
            StringMatch::Suffix(text) => Self::Suffix(text),
            StringMatch::Presence => Self::Presence(()),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AccountShape<'a> {
    namespace: &'a str,
    service_account: &'a str,
}

impl<'a> AccountShape<'a> {
    fn of(found: &'a ServiceAccountMatch) -> Self {
        Self {
            namespace: &found.namespace,
            service_account: &found.service_account,
        }
    }
}
