//! Who may be called from other networks: what the mesh's settings and labels say, and how gateways are told.
//!
//! A service is GLOBAL where a rule of `serviceScopeConfigs` selects it by its labels and by those of its namespace, else
//! LOCAL: it has endpoints of its own network only, and the gateway of that network leads nobody to it. It travels in an
//! extension of the service, which a ztunnel of Istio passes over (docs/wire.md "Scope").

use api::k8s::labels;
use api::k8s::objects::ObjectKey;
use api::workload::Extension;
use prost_types::Any;
use serde::Deserialize;
use serde_json::Value;

use super::Labels;
use super::selector::Selector;

/// How far a service reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scope {
    /// Its own network only.
    #[default]
    Local,
    /// Other networks too.
    Global,
}

/// What makes services GLOBAL. By default a label does, as in Istio's profile `ambient`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scopes(Vec<Rule>);

/// These services, in those namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    services: Selector,
    namespaces: Selector,
}

/// The rules that select a service by its own labels. Its namespace's decide which of them count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate(Vec<usize>);

impl Default for Scopes {
    fn default() -> Self {
        let label = Labels::from([(labels::GLOBAL.to_owned(), YES.to_owned())]);
        Self(vec![Rule {
            services: Selector::new(label, []),
            namespaces: Selector::default(),
        }])
    }
}

impl Scopes {
    /// Of `serviceScopeConfigs`, and what of it nobody understands: that makes nothing GLOBAL.
    pub fn read(said: &Value) -> (Self, Vec<String>) {
        let Some(all) = said.as_array() else {
            let fault = "serviceScopeConfigs is no list: every service is LOCAL";
            return (Self(Vec::new()), vec![fault.to_owned()]);
        };
        let (mut rules, mut faults) = (Vec::new(), Vec::new());
        for (at, said) in all.iter().enumerate() {
            match Rule::read(said) {
                Ok(rule) => rules.extend(rule),
                Err(why) => faults.push(format!(
                    "serviceScopeConfigs[{at}]: {why}: it makes no service GLOBAL"
                )),
            }
        }
        (Self(rules), faults)
    }

    /// Of a Service with these labels.
    pub fn candidate(&self, service: &Labels) -> Candidate {
        let rules = self.0.iter().enumerate();
        let selecting = rules.filter(|(_, rule)| rule.services.selects(service));
        Candidate(selecting.map(|(at, _)| at).collect())
    }

    /// Of a ServiceEntry. Istio has none that is GLOBAL, so who wrote rules for Services did not mean it, unless it says so
    /// itself.
    pub fn candidate_entry(&self, entry: &Labels) -> Candidate {
        match entry.get(labels::GLOBAL).map(String::as_str) {
            Some(YES) => self.candidate(entry),
            _ => Candidate::default(),
        }
    }

    /// In a namespace with these labels; what is selected by those of one that nobody knows yet is LOCAL.
    pub fn of(&self, candidate: &Candidate, namespace: Option<&Labels>) -> Scope {
        let counts = |rule: &Rule| {
            let selects = |labels: &Labels| rule.namespaces.selects(labels);
            rule.namespaces.is_empty() || namespace.is_some_and(selects)
        };
        let mut rules = candidate.0.iter().filter_map(|at| self.0.get(*at));
        match rules.any(counts) {
            true => Scope::Global,
            false => Scope::Local,
        }
    }
}

impl Rule {
    /// One that says LOCAL is none: it takes nothing from what another makes GLOBAL, as in Istio.
    fn read(said: &Value) -> Result<Option<Self>, String> {
        let said = Said::deserialize(said).map_err(|error| error.to_string())?;
        let rule = Self {
            services: selector("servicesSelector", said.services_selector)?,
            namespaces: selector("namespaceSelector", said.namespace_selector)?,
        };
        Ok((said.scope == Some(Scope::Global)).then_some(rule))
    }
}

fn selector(field: &str, said: Option<LabelSelector>) -> Result<Selector, String> {
    let said = said.unwrap_or_default();
    let expressions = said.match_expressions.unwrap_or_default().into_iter();
    let expressions = expressions.map(|it| (it.key, it.operator, it.values.unwrap_or_default()));
    let selector = Selector::new(said.match_labels.unwrap_or_default(), expressions);
    match selector.fault() {
        Some(fault) => Err(format!("{field}: {fault}")),
        None => Ok(selector),
    }
}

/// A field that we do not know would make a rule select more than was meant.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Said {
    services_selector: Option<LabelSelector>,
    namespace_selector: Option<LabelSelector>,
    scope: Option<Scope>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LabelSelector {
    match_labels: Option<Labels>,
    match_expressions: Option<Vec<Expression>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    key: String,
    operator: String,
    values: Option<Vec<String>>,
}

/// What is said of endpoints that a LOCAL service does not have.
pub fn kept_apart(service: &ObjectKey, network: &str) -> String {
    format!(
        "{service} is LOCAL, so it has no endpoint on network {network}: label it {}={YES}",
        labels::GLOBAL
    )
}

/// What gateways are told of a GLOBAL service; of a LOCAL one nothing.
pub fn extension() -> Extension {
    Extension {
        name: api::GLOBAL_EXTENSION.to_owned(),
        config: Some(Any {
            type_url: api::EMPTY_TYPE.to_owned(),
            value: Vec::new(),
        }),
    }
}

/// The value of the label.
const YES: &str = "true";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(said: Value) -> Labels {
        serde_json::from_value(said).unwrap()
    }

    fn scope(scopes: &Scopes, service: Value, namespace: Value) -> Scope {
        scopes.of(
            &scopes.candidate(&labels(service)),
            Some(&labels(namespace)),
        )
    }

    #[test]
    fn a_service_is_global_where_a_rule_selects_it_and_its_namespace_and_local_elsewhere() {
        use Scope::{Global, Local};
        let labelled = json!({"matchLabels": {"istio.io/global": "true"}});
        let by = |operator: &str, values: &[&str]| json!({"matchExpressions": [{"key": "k", "operator": operator, "values": values}]});
        let none = json!({});
        for (rules, service, namespace, expected) in [
            (
                json!([]),
                json!({"istio.io/global": "true"}),
                none.clone(),
                Local,
            ),
            (json!([{}]), none.clone(), none.clone(), Local),
            (
                json!([{"scope": "GLOBAL"}]),
                none.clone(),
                none.clone(),
                Global,
            ),
            (
                json!([{"scope": "GLOBAL", "servicesSelector": {}, "namespaceSelector": null}]),
                none.clone(),
                none.clone(),
                Global,
            ),
            (
                json!([{"scope": "GLOBAL", "servicesSelector": labelled}]),
                json!({"istio.io/global": "true"}),
                none.clone(),
                Global,
            ),
            (
                json!([{"scope": "GLOBAL", "servicesSelector": labelled}]),
                json!({"istio.io/global": "false"}),
                json!({"istio.io/global": "true"}),
                Local,
            ),
            (
                json!([{"scope": "GLOBAL", "servicesSelector": by("In", &["v", "w"])}]),
                json!({"k": "w"}),
                none.clone(),
                Global,
            ),
            (
                json!([{"scope": "GLOBAL", "servicesSelector": by("NotIn", &["v"])}]),
                json!({"k": "v"}),
                none.clone(),
                Local,
            ),
            (
                json!([{"scope": "GLOBAL", "servicesSelector": by("Exists", &[])}]),
                json!({"k": ""}),
                none.clone(),
                Global,
            ),
            (
                json!([{"scope": "GLOBAL", "namespaceSelector": by("DoesNotExist", &[])}]),
                json!({"k": "v"}),
                none.clone(),
                Global,
            ),
            // Both selectors.
            (
                json!([{"scope": "GLOBAL", "servicesSelector": labelled, "namespaceSelector": by("Exists", &[])}]),
                json!({"istio.io/global": "true"}),
                none.clone(),
                Local,
            ),
            (
                json!([{"scope": "GLOBAL", "servicesSelector": labelled, "namespaceSelector": by("Exists", &[])}]),
                json!({"istio.io/global": "true"}),
                json!({"k": "v"}),
                Global,
            ),
            // One that says LOCAL takes nothing away, wherever it stands.
            (
                json!([{"scope": "LOCAL"}, {"scope": "GLOBAL", "servicesSelector": labelled}, {"scope": "LOCAL"}]),
                json!({"istio.io/global": "true"}),
                none.clone(),
                Global,
            ),
        ] {
            let (scopes, faults) = Scopes::read(&rules);
            assert_eq!(faults, [""; 0], "{rules}");
            let found = scope(&scopes, service.clone(), namespace.clone());
            assert_eq!(found, expected, "{rules} of {service} in {namespace}");
        }
    }

    #[test]
    fn where_nothing_is_said_the_label_decides() {
        let scopes = Scopes::default();
        for (service, expected) in [
            (json!({"istio.io/global": "true"}), Scope::Global),
            (json!({"istio.io/global": "yes"}), Scope::Local),
            (json!({}), Scope::Local),
        ] {
            let candidate = scopes.candidate(&labels(service.clone()));
            assert_eq!(scopes.of(&candidate, None), expected, "{service}");
        }
    }

    #[test]
    fn of_a_namespace_that_nobody_knows_yet_nothing_is_selected() {
        let rules = json!([{"scope": "GLOBAL", "namespaceSelector": {"matchExpressions": [{"key": "closed", "operator": "DoesNotExist"}]}}]);
        let (scopes, _) = Scopes::read(&rules);
        let candidate = scopes.candidate(&Labels::new());
        assert_eq!(scopes.of(&candidate, None), Scope::Local);
        assert_eq!(scopes.of(&candidate, Some(&Labels::new())), Scope::Global);
    }

    #[test]
    fn rules_for_services_mean_no_service_entry_that_does_not_say_so_itself() {
        let (scopes, _) = Scopes::read(&json!([{"scope": "GLOBAL"}]));
        for (entry, expected) in [
            (json!({}), Scope::Local),
            (json!({"istio.io/global": "false"}), Scope::Local),
            (json!({"istio.io/global": "true"}), Scope::Global),
        ] {
            let candidate = scopes.candidate_entry(&labels(entry.clone()));
            assert_eq!(scopes.of(&candidate, None), expected, "{entry}");
        }
        let (none, _) = Scopes::read(&json!([]));
        let labelled = labels(json!({"istio.io/global": "true"}));
        let candidate = none.candidate_entry(&labelled);
        assert_eq!(none.of(&candidate, None), Scope::Local, "no rule says so");
    }

    #[test]
    fn what_nobody_understands_makes_nothing_global_and_is_named() {
        let all = |json: Value| json!([json, {"scope": "GLOBAL", "servicesSelector": {"matchLabels": {"good": "true"}}}]);
        for (wrong, named) in [
            (json!(7), "serviceScopeConfigs[0]: "),
            (json!({"scope": "EVERYWHERE"}), "EVERYWHERE"),
            (
                json!({"scope": "GLOBAL", "serviceSelector": {}}),
                "serviceSelector",
            ),
            (
                json!({"scope": "GLOBAL", "servicesSelector": {"matchLabel": {}}}),
                "matchLabel",
            ),
            (
                json!({"scope": "GLOBAL", "servicesSelector": {"matchLabels": {"a": true}}}),
                "boolean",
            ),
            (
                json!({"scope": "GLOBAL", "namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}}),
                "namespaceSelector: expression \"a\": \"Near\"",
            ),
            (
                json!({"scope": "GLOBAL", "servicesSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}),
                "servicesSelector: expression \"a\": In without values",
            ),
            (
                json!({"scope": "GLOBAL", "servicesSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}),
                "Exists with values",
            ),
        ] {
            let (scopes, faults) = Scopes::read(&all(wrong.clone()));
            assert_eq!(faults.len(), 1, "{wrong}");
            assert!(faults[0].contains(named), "{wrong}: {faults:?}");
            assert!(
                faults[0].starts_with("serviceScopeConfigs[0]: "),
                "{faults:?}"
            );
            assert_eq!(
                scope(&scopes, json!({}), json!({})),
                Scope::Local,
                "{wrong}"
            );
            let good = scope(&scopes, json!({"good": "true"}), json!({}));
            assert_eq!(good, Scope::Global, "beside {wrong}");
        }
        let (scopes, faults) = Scopes::read(&json!({"scope": "GLOBAL"}));
        assert_eq!(faults.len(), 1);
        let labelled = json!({"istio.io/global": "true"});
        assert_eq!(scope(&scopes, labelled, json!({})), Scope::Local);
    }
}
