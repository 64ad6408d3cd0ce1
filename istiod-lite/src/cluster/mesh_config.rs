//! The mesh's settings: ConfigMap `istio`, key `mesh`, as Istio has it.
//!
//! 1. its text becomes settings                                        ([`MeshConfig::read`], pure)
//! 2. they are laid over those of our flags, before anything starts    ([`first`])
//! 3. what changes later is said, and counts from the next start on    ([`follow`]): certificates of
//!    one trust domain and policies of another would cut the mesh in two
//!
//! Without a cluster a file says the same ([`lay_file_over`]). Without the ConfigMap, or where it says nothing, the flags count. Settings of parts that we do not
//! have are passed over; those that nobody here knows are named once. What of `serviceScopeConfigs` nobody understands is named, and makes
//! no service GLOBAL: it holds nobody back, for nothing is open because of it.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use api::k8s::server::Refusal;
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Connection;
use super::trouble::Health;
use crate::translate::Labels;
use crate::translate::layer7::provider::Provider;
use crate::translate::layer7::report;
use crate::translate::scope::Scopes;
use crate::translate::service_entry::Visibility;
use crate::world::{EgressMode, Reports, Settings};
use crate::write::follow;

/// The settings we read.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    trust_domain: Option<String>,
    trust_domain_aliases: Vec<String>,
    root_namespace: Option<String>,
    service_entry_visibility: Option<ServiceEntryVisibility>,
    outbound_traffic_policy: OutboundTrafficPolicy,
    extension_providers: Vec<Provider>,
    access_log_file: Option<String>,
    access_log_format: String,
    access_log_encoding: Encoding,
    default_providers: DefaultProviders,
    default_config: DefaultConfig,
    service_scope_configs: Option<Value>,
    /// What the last says.
    #[serde(skip)]
    scopes: Scopes,
    /// What of it nobody understands.
    #[serde(skip)]
    faults: Vec<String>,
    /// Fields that are neither these nor known to mean nothing here.
    #[serde(skip)]
    unknown: Vec<String>,
}

/// What becomes of connections to who is unknown.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
struct OutboundTrafficPolicy {
    mode: Option<OutboundMode>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum OutboundMode {
    AllowAny,
    RegistryOnly,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Encoding {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DefaultProviders {
    tracing: Vec<String>,
    access_logging: Vec<String>,
}

/// What of the proxies' settings is about reports.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DefaultConfig {
    tracing: DefaultTracing,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DefaultTracing {
    sampling: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceEntryVisibility {
    default_visibility: Shown,
    policies: Vec<Policy>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    visibility: Shown,
    #[serde(default)]
    matching_rules: Vec<Rule>,
}

/// Fields that we do not know would make a rule match more than was meant.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    namespace_selector: Selector,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Selector {
    match_labels: Labels,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Shown {
    #[default]
    Public,
    Namespace,
    None,
}

/// Settings that are for parts we do not have, or that others of our parts read.
const PASSED_OVER: [&str; 5] = [
    "caCertificates",
    "enablePrometheusMerge",
    "enableTracing",
    "serviceSettings",
    "tcpKeepalive",
];
const READ: [&str; 12] = [
    "trustDomain",
    "trustDomainAliases",
    "rootNamespace",
    "serviceEntryVisibility",
    "outboundTrafficPolicy",
    "extensionProviders",
    "accessLogFile",
    "accessLogFormat",
    "accessLogEncoding",
    "defaultProviders",
    "defaultConfig",
    "serviceScopeConfigs",
];

impl MeshConfig {
    /// Pure: the settings in the text of the key `mesh`.
    ///
    /// # Errors
    /// What is wrong with it: better none than half of it.
    pub fn read(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let fields: Option<Map<String, Value>> =
            serde_saphyr::from_str(text).map_err(|error| first_line(&error.to_string()))?;
        // What is null is not said: charts leave it so.
        let mut fields = fields.unwrap_or_default();
        fields.retain(|_, value| !value.is_null());
        let known =
            |name: &&String| READ.contains(&name.as_str()) || PASSED_OVER.contains(&name.as_str());
        let unknown = fields.keys().filter(|name| !known(name)).cloned().collect();
        let mut config: Self =
            serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())?;
        config.unknown = unknown;
        if let Some(said) = &config.service_scope_configs {
            (config.scopes, config.faults) = Scopes::read(said);
        }
        let domains = config
            .trust_domain
            .iter()
            .chain(&config.trust_domain_aliases);
        let file = config.access_log_file.as_deref().unwrap_or_default();
        if !report::is_output(file) {
            return Err(format!(
                "accessLogFile {file:?}: proxies write to /dev/stdout only"
            ));
        }
        report::own(
            &config.access_log_format,
            config.access_log_encoding == Encoding::Json,
        )?;
        for domain in domains.filter(|domain| !domain.is_empty()) {
            if hbone::Identity::new(domain, "namespace", "account").is_err() {
                return Err(format!("{domain:?} is no trust domain"));
            }
        }
        Ok(config)
    }

    fn of(map: Option<&ConfigMap>) -> Result<Self, String> {
        let text = map.and_then(|map| map.data.as_ref()?.get("mesh"));
        Self::read(text.map_or("", String::as_str))
    }

    /// Lays them over `settings`.
    pub fn lay_over(&self, settings: &mut Settings) {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(domain) = given(&self.trust_domain) {
            settings.trust_domain = domain;
        }
        if let Some(namespace) = given(&self.root_namespace) {
            settings.root_namespace = namespace;
        }
        settings
            .trust_domain_aliases
            .clone_from(&self.trust_domain_aliases);
        let visibility = self.service_entry_visibility.as_ref();
        settings.service_entry_visibility = visibility.map(rules).unwrap_or_default();
        if let Some(mode) = self.outbound_traffic_policy.mode {
            settings.egress = match mode {
                OutboundMode::AllowAny => EgressMode::Allow,
                OutboundMode::RegistryOnly => EgressMode::Refuse,
            };
        }
        settings.providers.clone_from(&self.extension_providers);
        settings.reports = self.reports();
        settings.scopes.clone_from(&self.scopes);
    }

    fn reports(&self) -> Reports {
        Reports {
            format: self.access_log_format.clone(),
            json: self.access_log_encoding == Encoding::Json,
            tracing: self.default_providers.tracing.clone(),
            logging: self.default_providers.access_logging.clone(),
            sampling: self.default_config.tracing.sampling,
        }
    }

    /// The settings that are not the same in `other`.
    fn differences(&self, other: &Self) -> Vec<&'static str> {
        let same = [
            self.trust_domain == other.trust_domain,
            self.trust_domain_aliases == other.trust_domain_aliases,
            self.root_namespace == other.root_namespace,
            self.service_entry_visibility == other.service_entry_visibility,
            self.outbound_traffic_policy == other.outbound_traffic_policy,
            self.extension_providers == other.extension_providers,
            self.access_log_file == other.access_log_file,
            self.access_log_format == other.access_log_format,
            self.access_log_encoding == other.access_log_encoding,
            self.default_providers == other.default_providers,
            self.default_config == other.default_config,
            self.service_scope_configs == other.service_scope_configs,
        ];
        let pairs = READ.into_iter().zip(same);
        pairs
            .filter(|(_, same)| !same)
            .map(|(name, _)| name)
            .collect()
    }
}

/// The first that matches counts; the default matches last, and every namespace.
fn rules(visibility: &ServiceEntryVisibility) -> Vec<(Labels, Visibility)> {
    let rule = |policy: &Policy| {
        let selectors = policy.matching_rules.iter();
        let labels = selectors.flat_map(|rule| rule.namespace_selector.match_labels.clone());
        (labels.collect(), shown(policy.visibility))
    };
    let mut rules: Vec<_> = visibility.policies.iter().map(rule).collect();
    rules.push((Labels::new(), shown(visibility.default_visibility)));
    rules
}

fn shown(visibility: Shown) -> Visibility {
    match visibility {
        Shown::Public => Visibility::Public,
        Shown::Namespace => Visibility::Namespace,
        Shown::None => Visibility::None,
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The ConfigMap as it is, and each time it changes.
pub type Versions = Pin<Box<dyn Stream<Item = Option<ConfigMap>> + Send>>;

/// A file with the mesh's settings is none.
#[derive(Debug, thiserror::Error)]
#[error("mesh settings {0}: {1}")]
pub struct FileError(PathBuf, String);

/// Lays over `settings` what a file says, where there is no cluster.
///
/// # Errors
/// It cannot be read, or what is wrong with it.
pub fn lay_file_over(file: Option<&Path>, settings: &mut Settings) -> Result<(), FileError> {
    let Some(file) = file else { return Ok(()) };
    let refused = |why| FileError(file.to_owned(), why);
    let text = std::fs::read_to_string(file).map_err(|error| refused(error.to_string()))?;
    let config = MeshConfig::read(&text).map_err(refused)?;
    note(&config);
    config.lay_over(settings);
    Ok(())
}

/// Follows ConfigMap `istio` in `namespace`.
pub fn versions(connection: &Connection, namespace: &str, health: &Health) -> Versions {
    let maps = Api::namespaced(connection.watching.clone(), namespace);
    Box::pin(follow::object(maps, NAME, health, RESOURCE))
}

/// The first version that can be read; one that cannot is waited over, and said at `/ready`.
pub async fn first(versions: &mut Versions, health: &Health) -> MeshConfig {
    let mut latest = versions.next().await.flatten();
    loop {
        match MeshConfig::of(latest.as_ref()) {
            Ok(config) => {
                health.answered(RESOURCE);
                note(&config);
                return config;
            }
            Err(why) => health.failed(RESOURCE, Refusal::Unreadable(format!("key mesh: {why}"))),
        }
        if let Ok(next) = tokio::time::timeout(AGAIN, versions.next()).await {
            latest = next.flatten();
        }
    }
}

/// Says what would be different after a restart; ends with the stream.
pub async fn follow(mut versions: Versions, mut current: MeshConfig) {
    let in_effect = current.clone();
    while let Some(version) = versions.next().await {
        match MeshConfig::of(version.as_ref()) {
            Err(why) => {
                tracing::error!(
                    why,
                    "ConfigMap istio, key mesh, cannot be read; a restart would wait for it"
                );
            }
            Ok(config) if config == current => {}
            Ok(config) => {
                note(&config);
                let settings = config.differences(&in_effect).join(", ");
                if !settings.is_empty() {
                    tracing::warn!(
                        settings,
                        "ConfigMap istio changed; takes effect after a restart"
                    );
                }
                current = config;
            }
        }
    }
}

fn note(config: &MeshConfig) {
    for why in &config.faults {
        tracing::error!(why, "settings in ConfigMap istio that nobody understands");
    }
    if !config.unknown.is_empty() {
        let fields = config.unknown.join(", ");
        tracing::warn!(
            fields,
            "settings in ConfigMap istio that have no effect here"
        );
    }
}

const NAME: &str = "istio";
const RESOURCE: &str = "configmaps istio";
/// What is wrong is said at `/ready` for as long as it is repeated.
const AGAIN: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        let mut settings = Settings::default();
        MeshConfig::read(text).unwrap().lay_over(&mut settings);
        settings
    }

    #[test]
    fn what_is_said_counts_and_the_rest_stays() {
        let read = settings(
            "trustDomain: example.org\ntrustDomainAliases: [old.org]\nrootNamespace: mesh\n",
        );
        assert_eq!(read.trust_domain, "example.org");
        assert_eq!(read.trust_domain_aliases, ["old.org"]);
        assert_eq!(read.root_namespace, "mesh");
        for nothing in ["", "{}", "# nothing\n", "trustDomain: ''", "defaultConfig:"] {
            assert_eq!(
                settings(nothing).trust_domain,
                "cluster.local",
                "{nothing:?}"
            );
            assert_eq!(settings(nothing).root_namespace, "istio-system");
        }
    }

    #[test]
    fn fields_nobody_knows_are_named_and_those_of_parts_we_lack_are_not() {
        let text = "tcpKeepalive: {}\naccessLogFile: /dev/stdout\nmeshMTLS: {}\nfoo: 1\n";
        assert_eq!(MeshConfig::read(text).unwrap().unknown, ["foo", "meshMTLS"]);
    }

    #[test]
    fn which_services_are_global_is_said_here_and_where_it_is_not_by_their_label() {
        use crate::translate::scope::Scope::{self, Global, Local};
        let scopes = |text: &str| -> [Scope; 3] {
            let scopes = settings(text).scopes;
            ["", "istio.io/global", "mine"].map(|label| {
                let labels = Labels::from([(label.to_owned(), "true".to_owned())]);
                scopes.of(&scopes.candidate(&labels), Some(&Labels::new()))
            })
        };
        let profile = "serviceScopeConfigs:
- servicesSelector:
    matchExpressions:
    - key: istio.io/global
      operator: In
      values: [\"true\"]
  scope: GLOBAL
";
        for (text, expected) in [
            ("", [Local, Global, Local]),
            ("serviceScopeConfigs:", [Local, Global, Local]),
            (profile, [Local, Global, Local]),
            ("serviceScopeConfigs: []", [Local, Local, Local]),
            (
                "serviceScopeConfigs: [{scope: GLOBAL}]",
                [Global, Global, Global],
            ),
            (
                "serviceScopeConfigs: [{scope: GLOBAL, servicesSelector: {matchLabels: {mine: 'true'}}}]",
                [Local, Local, Global],
            ),
        ] {
            assert_eq!(scopes(text), expected, "{text:?}");
            assert_eq!(MeshConfig::read(text).unwrap().faults, [""; 0], "{text:?}");
        }
        for wrong in [
            "serviceScopeConfigs: GLOBAL",
            "serviceScopeConfigs: [{scope: GLOBAL, selector: {}}]",
        ] {
            assert_eq!(scopes(wrong), [Local, Local, Local], "{wrong}");
            let faults = MeshConfig::read(wrong).unwrap().faults;
            assert!(faults[0].starts_with("serviceScopeConfigs"), "{faults:?}");
        }
    }

    #[test]
    fn visibility_is_the_first_rule_that_matches_and_then_the_default() {
        let text = "serviceEntryVisibility:
  defaultVisibility: NAMESPACE
  policies:
  - visibility: PUBLIC
    matchingRules:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: istio-system}}
    - namespaceSelector: {matchLabels: {trusted: 'true'}}
";
        let labels = |labels: &[(&str, &str)]| -> Labels {
            labels
                .iter()
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect()
        };
        let both = labels(&[
            ("kubernetes.io/metadata.name", "istio-system"),
            ("trusted", "true"),
        ]);
        assert_eq!(
            settings(text).service_entry_visibility,
            [
                (both, Visibility::Public),
                (labels(&[]), Visibility::Namespace)
            ]
        );
        assert!(settings("").service_entry_visibility.is_empty());
    }

    #[test]
    fn whom_the_mesh_may_call_is_said_here_or_by_a_flag() {
        let with_flag = |text| {
            let mut settings = Settings {
                egress: EgressMode::Log,
                ..Settings::default()
            };
            MeshConfig::read(text).unwrap().lay_over(&mut settings);
            settings.egress
        };
        for (text, mode) in [
            (
                "outboundTrafficPolicy: {mode: REGISTRY_ONLY}",
                EgressMode::Refuse,
            ),
            (
                "outboundTrafficPolicy: {mode: ALLOW_ANY}",
                EgressMode::Allow,
            ),
            ("outboundTrafficPolicy: {}", EgressMode::Log),
            ("", EgressMode::Log),
        ] {
            assert_eq!(with_flag(text), mode, "{text}");
        }
    }

    #[test]
    fn half_understood_settings_are_refused_as_a_whole() {
        for wrong in [
            "trustDomain: [a]",
            "trustDomain: 'has space'",
            "trustDomainAliases: ['a/b']",
            "outboundTrafficPolicy: {mode: NONE}",
            "- a list",
            "a: b: c",
            "serviceEntryVisibility: {defaultVisibility: SECRET}",
            "serviceEntryVisibility: {policies: [{visibility: PUBLIC, matchingRules: [{namespaceSelector: {matchExpressions: [{key: a, operator: Exists}]}}]}]}",
            "serviceEntryVisibility: {policies: [{visibility: PUBLIC, matchingRules: [{hostSelector: {}}]}]}",
        ] {
            assert!(MeshConfig::read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_changed_is_named() {
        let read = |text| MeshConfig::read(text).unwrap();
        let (old, new) = (
            read("trustDomain: a"),
            read("trustDomain: b\nrootNamespace: c\nfoo: 1"),
        );
        assert_eq!(old.differences(&new), ["trustDomain", "rootNamespace"]);
        let scopes = read("trustDomain: a\nserviceScopeConfigs: []");
        assert_eq!(old.differences(&scopes), ["serviceScopeConfigs"]);
        assert!(old.differences(&read("trustDomain: a\nfoo: 2")).is_empty());
    }

    #[test]
    fn without_a_cluster_a_file_says_it_and_one_that_does_not_holds_back_the_start() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mesh");
        let mut settings = Settings::default();
        assert!(lay_file_over(None, &mut settings).is_ok());
        assert!(lay_file_over(Some(&file), &mut settings).is_err());
        std::fs::write(&file, "extensionProviders: [{name: a, prometheus: {}}]\n").unwrap();
        lay_file_over(Some(&file), &mut settings).unwrap();
        assert_eq!(settings.providers[0].name, "a");
        std::fs::write(&file, "extensionProviders: 7\n").unwrap();
        assert!(lay_file_over(Some(&file), &mut settings).is_err());
    }
}
