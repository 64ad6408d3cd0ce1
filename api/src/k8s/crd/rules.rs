//! Limits, and rules (CEL) that an API server evaluates when an object is written.
//!
//! An API server refuses a definition whose rules could cost too much, counted at the most entries
//! that every list around a rule may have. So rules stand where lists are bounded: the bounds are
//! Istio's own, for an object that Istio takes must be taken here. What is deeper (a block of
//! addresses in a source of a rule) is for the webhook, which has no such budget.

use serde_json::{Value, json};

use super::{DefinitionError, schema};
use crate::k8s::check::words;
use crate::k8s::objects::Kind;

use Limit::{Number, Word, Words};

/// Something true of every object that is admitted.
struct Rule {
    /// Of the spec, like `rules[].from[]`.
    at: &'static str,
    /// CEL; `self` is what is there.
    rule: &'static str,
    /// What is wrong, and what to do.
    message: &'static str,
    /// The field below `at` that is at fault.
    field: Option<&'static str>,
    /// CEL that puts the value before the message.
    value: Option<&'static str>,
}

const fn rule(at: &'static str, rule: &'static str, message: &'static str) -> Rule {
    Rule {
        at,
        rule,
        message,
        field: None,
        value: None,
    }
}

impl Rule {
    const fn of(mut self, field: &'static str) -> Self {
        self.field = Some(field);
        self
    }

    const fn with(mut self, value: &'static str) -> Self {
        self.value = Some(value);
        self
    }

    fn json(&self) -> Value {
        let mut json = json!({"rule": self.rule, "message": self.message});
        if let Some(field) = self.field {
            json["fieldPath"] = field.into();
        }
        if let Some(value) = self.value {
            json["messageExpression"] = format!("{value} + ' {}'", self.message).into();
        }
        json
    }
}

/// Puts limits and rules into the shape of a kind's spec.
pub(super) fn apply(kind: Kind, spec: &mut Value) -> Result<(), DefinitionError> {
    let no_field = |path, what| DefinitionError::NoField { kind, path, what };
    for (path, word, limit) in limits(kind) {
        let fields = schema::at(spec, path).ok_or(no_field(path, word))?;
        fields.insert((*word).into(), limit.json());
    }
    for rule in rules(kind) {
        let fields = schema::at(spec, rule.at).ok_or(no_field(rule.at, rule.rule))?;
        let rules = fields
            .entry("x-kubernetes-validations")
            .or_insert(json!([]));
        if let Value::Array(rules) = rules {
            rules.push(rule.json());
        }
    }
    Ok(())
}

enum Limit {
    Number(u64),
    Words(&'static [&'static str]),
    Word(&'static str),
}

impl Limit {
    fn json(&self) -> Value {
        match self {
            Number(number) => json!(number),
            Words(words) => json!(words),
            Word(word) => json!(word),
        }
    }
}

type At = (&'static str, &'static str, Limit);

fn limits(kind: Kind) -> &'static [At] {
    match kind {
        Kind::AuthorizationPolicy => POLICY_LIMITS,
        Kind::PeerAuthentication => PEER_LIMITS,
        Kind::ServiceEntry => SERVICE_LIMITS,
        Kind::WorkloadEntry => WORKLOAD_LIMITS,
        _ => &[],
    }
}

fn rules(kind: Kind) -> &'static [Rule] {
    match kind {
        Kind::AuthorizationPolicy => POLICY,
        Kind::PeerAuthentication => PEER,
        Kind::ServiceEntry => SERVICE,
        Kind::WorkloadEntry => WORKLOAD,
        _ => &[],
    }
}

const POLICY_LIMITS: &[At] = &[
    ("rules", "maxItems", Number(512)),
    ("rules[].from", "maxItems", Number(512)),
    ("rules[].from[]", "required", Words(&["source"])),
    // Of any name: a mistyped one is told as such by the webhook, not as "nobody is named".
    ("rules[].from[].source", "minProperties", Number(1)),
    ("rules[].from[].source.principals", "minItems", Number(1)),
    ("rules[].from[].source.notPrincipals", "minItems", Number(1)),
    (
        "rules[].from[].source.requestPrincipals",
        "minItems",
        Number(1),
    ),
    (
        "rules[].from[].source.notRequestPrincipals",
        "minItems",
        Number(1),
    ),
    ("rules[].from[].source.namespaces", "minItems", Number(1)),
    ("rules[].from[].source.notNamespaces", "minItems", Number(1)),
    ("rules[].from[].source.ipBlocks", "minItems", Number(1)),
    ("rules[].from[].source.notIpBlocks", "minItems", Number(1)),
    (
        "rules[].from[].source.remoteIpBlocks",
        "minItems",
        Number(1),
    ),
    (
        "rules[].from[].source.notRemoteIpBlocks",
        "minItems",
        Number(1),
    ),
    (
        "rules[].from[].source.serviceAccounts",
        "minItems",
        Number(1),
    ),
    (
        "rules[].from[].source.serviceAccounts",
        "maxItems",
        Number(16),
    ),
    (
        "rules[].from[].source.serviceAccounts[]",
        "maxLength",
        Number(320),
    ),
    (
        "rules[].from[].source.notServiceAccounts",
        "minItems",
        Number(1),
    ),
    (
        "rules[].from[].source.notServiceAccounts",
        "maxItems",
        Number(16),
    ),
    (
        "rules[].from[].source.notServiceAccounts[]",
        "maxLength",
        Number(320),
    ),
    ("rules[].to[]", "required", Words(&["operation"])),
    ("rules[].to[].operation", "minProperties", Number(1)),
    ("rules[].to[].operation.hosts", "minItems", Number(1)),
    ("rules[].to[].operation.notHosts", "minItems", Number(1)),
    ("rules[].to[].operation.ports", "minItems", Number(1)),
    ("rules[].to[].operation.notPorts", "minItems", Number(1)),
    ("rules[].to[].operation.methods", "minItems", Number(1)),
    ("rules[].to[].operation.notMethods", "minItems", Number(1)),
    ("rules[].to[].operation.paths", "minItems", Number(1)),
    ("rules[].to[].operation.notPaths", "minItems", Number(1)),
    ("rules[].when[]", "required", Words(&["key"])),
    ("rules[].when[].key", "minLength", Number(1)),
    ("rules[].when[].values", "minItems", Number(1)),
    ("rules[].when[].notValues", "minItems", Number(1)),
    ("selector.matchLabels", "maxProperties", Number(4096)),
    ("selector.matchLabels{}", "maxLength", Number(63)),
    ("targetRefs", "maxItems", Number(16)),
];

const POLICY: &[Rule] = &[
    rule(
        "",
        "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) && size(self.targetRefs) > 0 ? 1 : 0) <= 1",
        words::ONE_TARGET,
    ),
    rule(
        "",
        "!has(self.action) || self.action != 'CUSTOM' || has(self.provider)",
        words::CUSTOM_NEEDS_PROVIDER,
    )
    .of(".action"),
    rule(
        "",
        "!has(self.provider) || (has(self.action) && self.action == 'CUSTOM')",
        words::ONLY_CUSTOM,
    )
    .of(".provider"),
    rule(
        "provider",
        "has(self.name) && size(self.name) > 0",
        words::PROVIDER_NAME,
    ),
    rule(
        "rules[]",
        "!has(self.from) || size(self.from) > 0",
        words::EMPTY_LIST,
    )
    .of(".from"),
    rule(
        "rules[]",
        "!has(self.to) || size(self.to) > 0",
        words::EMPTY_LIST,
    )
    .of(".to"),
    rule(
        "rules[]",
        "!has(self.when) || size(self.when) > 0",
        words::EMPTY_LIST,
    )
    .of(".when"),
    rule(
        "rules[].from[].source",
        "!(has(self.serviceAccounts) || has(self.notServiceAccounts)) || !(has(self.principals) || has(self.notPrincipals) || has(self.namespaces) || has(self.notNamespaces))",
        words::ACCOUNTS_ALONE,
    ),
    rule(
        "selector.matchLabels",
        "self.all(key, size(key) > 0)",
        words::SELECTOR_KEY,
    ),
    rule(
        "selector.matchLabels",
        "self.all(key, !key.contains('*'))",
        words::SELECTOR_WILDCARD,
    ),
    rule(
        "selector.matchLabels{}",
        "!self.contains('*')",
        words::SELECTOR_WILDCARD,
    ),
    rule("targetRef", TARGET_NAMED, words::TARGET_NAME),
    rule("targetRefs[]", TARGET_NAMED, words::TARGET_NAME),
    rule(
        "targetRef.namespace",
        "size(self) == 0",
        words::TARGET_NAMESPACE,
    ),
    rule(
        "targetRefs[].namespace",
        "size(self) == 0",
        words::TARGET_NAMESPACE,
    ),
];

const TARGET_NAMED: &str =
    "has(self.kind) && size(self.kind) > 0 && has(self.name) && size(self.name) > 0";

const PEER_LIMITS: &[At] = &[
    ("selector.matchLabels", "maxProperties", Number(4096)),
    ("selector.matchLabels{}", "maxLength", Number(63)),
];

const PEER: &[Rule] = &[
    rule(
        "",
        "!has(self.portLevelMtls) || size(self.portLevelMtls) == 0 || (has(self.selector) && has(self.selector.matchLabels) && size(self.selector.matchLabels) > 0)",
        words::PORTS_NEED_SELECTOR,
    )
    .of(".portLevelMtls"),
    rule(
        "portLevelMtls",
        "self.all(key, size(key) < 6 && key.matches('^[0-9]+$') && int(key) >= 1 && int(key) <= 65535)",
        words::PORT_KEY,
    ),
    rule("selector.matchLabels", "self.all(key, size(key) > 0)", words::SELECTOR_KEY),
    rule("selector.matchLabels", "self.all(key, !key.contains('*'))", words::SELECTOR_WILDCARD),
    rule("selector.matchLabels{}", "!self.contains('*')", words::SELECTOR_WILDCARD),
];

const SERVICE_LIMITS: &[At] = &[
    ("", "required", Words(&["hosts"])),
    ("hosts", "minItems", Number(1)),
    ("hosts", "maxItems", Number(256)),
    ("addresses", "maxItems", Number(256)),
    ("addresses[]", "maxLength", Number(64)),
    ("ports", "maxItems", Number(256)),
    ("ports", "x-kubernetes-list-type", Word("map")),
    ("ports", "x-kubernetes-list-map-keys", Words(&["name"])),
    ("ports[]", "required", Words(&["number", "name"])),
    ("ports[].number", "minimum", Number(1)),
    ("ports[].number", "maximum", Number(65535)),
    // 0 is how programs write "none".
    ("ports[].targetPort", "maximum", Number(65535)),
    ("ports[].name", "maxLength", Number(256)),
    ("ports[].protocol", "maxLength", Number(256)),
    ("endpoints", "maxItems", Number(4096)),
    ("endpoints[].address", "maxLength", Number(256)),
    ("endpoints[].network", "maxLength", Number(2048)),
    ("endpoints[].locality", "maxLength", Number(2048)),
    ("endpoints[].labels", "maxProperties", Number(256)),
    ("endpoints[].ports", "maxProperties", Number(128)),
    ("endpoints[].ports{}", "minimum", Number(1)),
    ("endpoints[].ports{}", "maximum", Number(65535)),
    ("endpoints[].serviceAccount", "maxLength", Number(253)),
    ("workloadSelector.labels", "maxProperties", Number(256)),
    ("workloadSelector.labels{}", "maxLength", Number(63)),
];

const SERVICE: &[Rule] = &[
    rule("hosts[]", "self != '*'", words::ANY_HOST),
    rule("addresses[]", "isIP(self) || isCIDR(self)", words::ADDRESS).with("self"),
    rule(
        "",
        "!has(self.addresses) || !has(self.resolution) || self.resolution in ['NONE', 'STATIC'] || self.addresses.all(address, !address.contains('/'))",
        words::BLOCK_RESOLUTION,
    )
    .of(".addresses"),
    rule("ports[].name", "size(self) > 0", words::PORT_NAME),
    rule(
        "ports",
        "self.all(one, self.exists_one(other, one.number == other.number))",
        words::PORT_TWICE,
    ),
    rule(
        "",
        "!has(self.workloadSelector) || !has(self.endpoints) || size(self.endpoints) == 0",
        words::SELECTOR_OR_ENDPOINTS,
    ),
    rule(
        "",
        "(has(self.resolution) && self.resolution != 'NONE') || !has(self.workloadSelector)",
        words::SELECTOR_RESOLUTION,
    )
    .of(".workloadSelector"),
    rule(
        "",
        "(has(self.resolution) && self.resolution != 'NONE') || !has(self.endpoints) || size(self.endpoints) == 0",
        words::NONE_HAS_NO_ENDPOINTS,
    )
    .of(".endpoints"),
    rule(
        "",
        "(has(self.resolution) && self.resolution != 'NONE') || !has(self.ports) || self.ports.all(port, !has(port.targetPort) || port.targetPort == 0 || port.targetPort == port.number)",
        words::NONE_KEEPS_PORT,
    )
    .of(".ports"),
    rule(
        "",
        "!has(self.resolution) || !(self.resolution in ['DNS', 'DNS_ROUND_ROBIN']) || (has(self.endpoints) && size(self.endpoints) > 0) || self.hosts.all(host, !host.startsWith('*'))",
        words::WILDCARD_UNRESOLVED,
    )
    .of(".hosts"),
    rule(
        "",
        "!has(self.resolution) || self.resolution != 'DNS_ROUND_ROBIN' || !has(self.endpoints) || size(self.endpoints) <= 1",
        words::ROUND_ROBIN_ONE,
    )
    .of(".endpoints"),
    rule(
        "",
        "!has(self.resolution) || self.resolution != 'DYNAMIC_DNS' || !has(self.endpoints) || size(self.endpoints) == 0",
        words::DYNAMIC_HAS_NO_ENDPOINTS,
    )
    .of(".endpoints"),
    rule(
        "",
        "!has(self.resolution) || self.resolution != 'STATIC' || !has(self.endpoints) || self.endpoints.all(endpoint, !has(endpoint.address) || size(endpoint.address) == 0 || isIP(endpoint.address))",
        words::STATIC_NEEDS_IPS,
    )
    .of(".endpoints"),
    rule("endpoints[]", HAS_ADDRESS, words::NO_ADDRESS),
    rule("endpoints[].address", "!self.startsWith('unix://')", words::NO_SOCKETS),
];

const WORKLOAD_LIMITS: &[At] = &[
    ("address", "maxLength", Number(256)),
    ("network", "maxLength", Number(2048)),
    ("locality", "maxLength", Number(2048)),
    ("labels", "maxProperties", Number(256)),
    ("ports", "maxProperties", Number(128)),
    ("ports{}", "minimum", Number(1)),
    ("ports{}", "maximum", Number(65535)),
    ("serviceAccount", "maxLength", Number(253)),
];

const WORKLOAD: &[Rule] = &[
    rule("", HAS_ADDRESS, words::NO_ADDRESS),
    rule("address", "!self.startsWith('unix://')", words::NO_SOCKETS),
];

const HAS_ADDRESS: &str = "(has(self.address) && size(self.address) > 0) || (has(self.network) && size(self.network) > 0)";
