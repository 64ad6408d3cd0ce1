//! Policies of layer 7: what they must say to mean anything.
//!
//! Here stands only what makes an object useless as a whole. What makes one of its entries so is said in its
//! status, by who translates it: the other entries count.

use super::policy::check_target;
use super::{Problems, spec};
use crate::k8s::istio::destination_rule::DestinationRuleSpec;
use crate::k8s::istio::request_authentication::RequestAuthenticationSpec;
use crate::k8s::istio::virtual_service::VirtualServiceSpec;
use crate::k8s::limits::LimitSpec;
use crate::k8s::objects::Object;
use crate::k8s::processors::ExternalProcessorSpec;

pub(super) fn check(object: &Object, problems: &mut Problems) {
    match object {
        Object::RequestAuthentication(it) => authentication(&it.spec, problems),
        Object::Telemetry(it) => {
            let it = &it.spec;
            let (selector, target) = (it.selector.as_ref(), it.target_ref.as_ref());
            check_target(selector, target, &it.target_refs, problems);
        }
        Object::DestinationRule(it) => destination(&it.spec, problems),
        Object::VirtualService(it) => virtual_service(&it.spec, problems),
        Object::RateLimitPolicy(it) => limits(&it.spec, problems),
        Object::QuotaPolicy(it) => limits(&it.spec, problems),
        Object::ExternalProcessor(it) => processor(&it.spec, problems),
        _ => {}
    }
}

fn authentication(it: &RequestAuthenticationSpec, problems: &mut Problems) {
    let (selector, target) = (it.selector.as_ref(), it.target_ref.as_ref());
    check_target(selector, target, &it.target_refs, problems);
    for (index, rule) in it.jwt_rules.iter().enumerate() {
        let path = spec().key("jwtRules").index(index);
        if rule.issuer.is_empty() {
            problems.add(path.key("issuer"), "missing; name the issuer of the tokens");
        }
        if !rule.jwks.is_empty() && !rule.jwks_uri.is_empty() {
            problems.add(path, "only one of jwks and jwksUri can be set");
        }
    }
}

fn destination(it: &DestinationRuleSpec, problems: &mut Problems) {
    if it.host.is_empty() {
        problems.add(spec().key("host"), "missing; name the service");
    }
    for (index, subset) in it.subsets.iter().enumerate() {
        if subset.name.is_empty() {
            let path = spec().key("subsets").index(index).key("name");
            problems.add(path, "missing; routes call a subset by its name");
        }
    }
}

fn virtual_service(it: &VirtualServiceSpec, problems: &mut Problems) {
    if it.hosts.is_empty() {
        problems.add(spec().key("hosts"), "missing; name the services");
    }
    for (index, entry) in it.http.iter().enumerate() {
        let path = spec().key("http").index(index);
        let answers = [
            !entry.route.is_empty(),
            entry.redirect.is_some(),
            entry.direct_response.is_some(),
            entry.delegate.is_some(),
        ];
        if answers.into_iter().filter(|it| *it).count() != 1 {
            problems.add(
                path,
                "exactly one of route, redirect, directResponse and delegate says what becomes of a request",
            );
        }
    }
}

fn limits(it: &LimitSpec, problems: &mut Problems) {
    check_target(None, None, &it.target_refs, problems);
    if it.target_refs.is_empty() {
        problems.add(
            spec().key("targetRefs"),
            "missing; name a Service, Gateway or HTTPRoute",
        );
    }
    if it.limits.is_empty() {
        problems.add(spec().key("limits"), "missing; say how many requests");
    }
}

fn processor(it: &ExternalProcessorSpec, problems: &mut Problems) {
    check_target(None, None, &it.target_refs, problems);
    if it.target_refs.is_empty() {
        problems.add(
            spec().key("targetRefs"),
            "missing; name a Service, Gateway or HTTPRoute",
        );
    }
    if it.backend_ref.name.is_empty() || it.backend_ref.port == 0 {
        problems.add(
            spec().key("backendRef"),
            "name and port of a service of this namespace are needed",
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::k8s::json::read;
    use crate::k8s::objects::Kind;

    fn said(kind: Kind, spec: Value) -> String {
        let value = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec});
        read(kind, &value).map_or_else(|why| why.join("; "), |_| String::new())
    }

    #[test]
    fn an_object_that_can_mean_nothing_is_refused() {
        let target = json!([{"kind": "Service", "name": "web"}]);
        for (kind, spec, expected) in [
            (
                Kind::RequestAuthentication,
                json!({"jwtRules": [{"jwks": "x"}]}),
                "issuer",
            ),
            (
                Kind::RequestAuthentication,
                json!({"selector": {}, "targetRefs": target}),
                "only one of selector",
            ),
            (
                Kind::RequestAuthentication,
                json!({"jwtRules": [{"issuer": "x", "jwksURI": "y"}]}),
                "jwksUri",
            ),
            (Kind::DestinationRule, json!({"trafficPolicy": {}}), "host"),
            (
                Kind::DestinationRule,
                json!({"host": "a", "trafficPolicy": {"loadBalancer": {"simple": "BEST"}}}),
                "BEST",
            ),
            (
                Kind::DestinationRule,
                json!({"host": "a", "trafficPolicy": {"outlierDetection": {"splitExternalLocalOriginErrors": 1}}}),
                "true or false",
            ),
            (
                Kind::VirtualService,
                json!({"hosts": ["a"], "http": [{}]}),
                "exactly one",
            ),
            (Kind::VirtualService, json!({"http": []}), "hosts"),
            (
                Kind::Telemetry,
                json!({"targetRefs": [{"kind": "Service"}]}),
                "name",
            ),
            (
                Kind::RateLimitPolicy,
                json!({"targetRefs": target}),
                "limits",
            ),
            (
                Kind::ExternalProcessor,
                json!({"targetRefs": target}),
                "backendRef",
            ),
            (
                Kind::QuotaPolicy,
                json!({"limits": [{"requests": 1, "window": "1s"}]}),
                "targetRefs",
            ),
        ] {
            let said = said(kind, spec.clone());
            assert!(said.contains(expected), "{kind} {spec}: {said:?}");
        }
    }

    #[test]
    fn what_istio_takes_is_taken() {
        let target = json!([{"kind": "Service", "name": "web"}]);
        for (kind, spec) in [
            (
                Kind::RequestAuthentication,
                json!({"targetRefs": target, "jwtRules": [{"issuer": "x", "jwksUri": "y", "timeout": "5s"}]}),
            ),
            (
                Kind::DestinationRule,
                json!({"host": "a", "trafficPolicy": {"loadBalancer": {"consistentHash": {"httpCookie": {"name": "c", "ttl": "0s"}}},
                "connectionPool": {"tcp": {"maxConnections": 1}, "http": {"h2UpgradePolicy": "UPGRADE"}},
                "outlierDetection": {"consecutive5xxErrors": 7, "baseEjectionTime": "15m"},
                "portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}]},
                "subsets": [{"name": "v1", "labels": {"version": "v1"}}]}),
            ),
            (
                Kind::VirtualService,
                json!({"hosts": ["a"], "http": [{"match": [{"uri": {"prefix": "/"}, "headers": {"x": {}}}],
                "route": [{"destination": {"host": "a", "subset": "v1", "port": {"number": 80}}, "weight": 100}],
                "fault": {"delay": {"percentage": {"value": 0.1}, "fixedDelay": "5s"}}, "retries": {"attempts": 3, "retryOn": "5xx"}}]}),
            ),
            (
                Kind::Telemetry,
                json!({"tracing": [{"randomSamplingPercentage": 10.5}], "accessLogging": [{"providers": [{"name": "envoy"}]}]}),
            ),
            (
                Kind::RateLimitPolicy,
                json!({"targetRefs": target, "limits": [{"requests": 1, "window": "1s", "keys": [{"by": "Identity"}]}]}),
            ),
        ] {
            assert_eq!(said(kind, spec.clone()), "", "{kind} {spec}");
        }
    }
}
