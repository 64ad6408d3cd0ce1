//! What may be written of policies: which spec, and who refuses it with which words.

use api::k8s::objects::Kind::{self, AuthorizationPolicy, PeerAuthentication};
use serde_json::{Value, json};

use super::Refused::{self, Both, Nowhere, Shape, Webhook};

pub(super) fn policies() -> Vec<(Kind, Value, Refused)> {
    let source = |source: Value| json!({"rules": [{"from": [{"source": source}]}]});
    let operation = |operation: Value| json!({"rules": [{"to": [{"operation": operation}]}]});
    let condition = |condition: Value| json!({"rules": [{"when": [condition]}]});
    let target = |target: Value| json!({"targetRefs": [target]});
    vec![
        // ---- nothing wrong
        (AuthorizationPolicy, json!({}), Nowhere),
        (AuthorizationPolicy, json!({"rules": [{}]}), Nowhere),
        (
            AuthorizationPolicy,
            json!({"selector": {}, "action": "DENY", "rules": []}),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            json!({"selector": {"matchLabels": {"app": "a"}}}),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            json!({"action": "CUSTOM", "provider": {"name": "x"}}),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            source(json!({"ipBlocks": ["10.0.0.1", "2001:db8::/32"]})),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            source(json!({"serviceAccounts": ["a", "b/c"]})),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            operation(json!({"ports": ["80"], "paths": ["/*"]})),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            condition(json!({"key": "source.ip", "values": ["10.0.0.0/8"]})),
            Nowhere,
        ),
        (
            AuthorizationPolicy,
            target(json!({"kind": "Service", "name": "a", "group": ""})),
            Nowhere,
        ),
        (PeerAuthentication, json!({}), Nowhere),
        (
            PeerAuthentication,
            json!({"mtls": {"mode": "STRICT"}}),
            Nowhere,
        ),
        (
            PeerAuthentication,
            json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"8080": {"mode": "DISABLE"}}}),
            Nowhere,
        ),
        // ---- something wrong
        (
            AuthorizationPolicy,
            json!({"selector": {}, "targetRef": {"kind": "Service", "name": "a"}}),
            Both("only one of selector"),
        ),
        (
            AuthorizationPolicy,
            json!({"action": "CUSTOM"}),
            Both("spec.provider.name"),
        ),
        (
            AuthorizationPolicy,
            json!({"provider": {"name": "x"}}),
            Both("remove spec.provider"),
        ),
        (
            AuthorizationPolicy,
            json!({"action": "CUSTOM", "provider": {}}),
            Both("extension provider"),
        ),
        (
            AuthorizationPolicy,
            json!({"rules": [{"from": []}]}),
            Both("leave the field out"),
        ),
        (
            AuthorizationPolicy,
            json!({"rules": [{"to": []}]}),
            Both("leave the field out"),
        ),
        (
            AuthorizationPolicy,
            json!({"rules": [{"when": []}]}),
            Both("leave the field out"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"serviceAccounts": ["a"], "namespaces": ["b"]})),
            Both("cannot be combined"),
        ),
        (
            AuthorizationPolicy,
            json!({"selector": {"matchLabels": {"app": "a*"}}}),
            Both("wildcards"),
        ),
        (
            AuthorizationPolicy,
            json!({"selector": {"matchLabels": {"a*": "b"}}}),
            Both("wildcards"),
        ),
        (
            AuthorizationPolicy,
            json!({"selector": {"matchLabels": {"": "b"}}}),
            Both("without a name"),
        ),
        (
            AuthorizationPolicy,
            target(json!({"kind": "Service"})),
            Both("kind and name"),
        ),
        (
            AuthorizationPolicy,
            target(json!({"kind": "Service", "name": "a", "namespace": "b"})),
            Both("own namespace"),
        ),
        (
            AuthorizationPolicy,
            source(json!({})),
            Shape("at least 1 properties", "name somebody"),
        ),
        (
            AuthorizationPolicy,
            operation(json!({})),
            Shape("at least 1 properties", "name ports"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"principals": []})),
            Shape("at least 1 items", "leave the field out"),
        ),
        (
            AuthorizationPolicy,
            operation(json!({"notPorts": []})),
            Shape("at least 1 items", "leave the field out"),
        ),
        (
            AuthorizationPolicy,
            operation(json!({"ports": [80]})),
            Shape("must be of type string", "in quotes"),
        ),
        (
            AuthorizationPolicy,
            json!({"action": "FORBID"}),
            Shape("supported values", "FORBID"),
        ),
        (
            AuthorizationPolicy,
            condition(json!({"values": ["a"]})),
            Shape("key", "key is missing"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"serviceAccounts": vec!["a"; 17]})),
            Shape("at most 16 items", "more than 16"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"ipBlocks": ["10.0.0.0/33"]})),
            Webhook("ipBlocks[0]: \"10.0.0.0/33\" is neither"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"notRemoteIpBlocks": ["nowhere"]})),
            Webhook("nowhere"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"principals": [""]})),
            Webhook("matches nothing"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"serviceAccounts": ["a/b/c"]})),
            Webhook("a/b/c"),
        ),
        (
            AuthorizationPolicy,
            operation(json!({"ports": ["99999"]})),
            Webhook("99999"),
        ),
        (
            AuthorizationPolicy,
            condition(json!({"key": "destination.port", "values": ["http"]})),
            Webhook("is not a port"),
        ),
        (
            AuthorizationPolicy,
            condition(json!({"key": "source.ip"})),
            Webhook("values and notValues"),
        ),
        (
            AuthorizationPolicy,
            source(json!({"principal": ["a"]})),
            Webhook("did you mean principals"),
        ),
        (
            AuthorizationPolicy,
            json!({"rulez": []}),
            Webhook("did you mean rules"),
        ),
        (
            PeerAuthentication,
            json!({"portLevelMtls": {"8080": {"mode": "STRICT"}}}),
            Both("requires a selector"),
        ),
        (
            PeerAuthentication,
            json!({"selector": {}, "portLevelMtls": {"8080": {}}}),
            Both("requires a selector"),
        ),
        (
            PeerAuthentication,
            json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"http": {}}}),
            Both("is not a port"),
        ),
        (
            PeerAuthentication,
            json!({"selector": {"matchLabels": {"a": "b"}}, "portLevelMtls": {"65536": {}}}),
            Both("is not a port"),
        ),
        (
            PeerAuthentication,
            json!({"selector": {"matchLabels": {"a": "*"}}}),
            Both("wildcards"),
        ),
        (
            PeerAuthentication,
            json!({"mtls": {"mode": "SOMETIMES"}}),
            Shape("supported values", "SOMETIMES"),
        ),
        (
            PeerAuthentication,
            json!({"mtls": {"mod": "STRICT"}}),
            Webhook("did you mean mode"),
        ),
    ]
}
