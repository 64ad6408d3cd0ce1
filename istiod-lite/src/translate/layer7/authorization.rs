//! AuthorizationPolicies that are attached to something: their rules as written, for waypoints to enforce whole.

use api::k8s::istio::{self as k8s, AuthorizationPolicySpec, Condition, Operation, Rule, Source};
use api::waypoint as wire;

use super::provider;

/// Of a spec; its targets are filled in by who knows what stands there.
pub fn authorization(spec: &AuthorizationPolicySpec, dry_run: bool) -> wire::Authorization {
    let action = match spec.action {
        k8s::Action::Allow => wire::authorization::Action::Allow,
        k8s::Action::Deny => wire::authorization::Action::Deny,
        k8s::Action::Audit => wire::authorization::Action::Audit,
        k8s::Action::Custom => wire::authorization::Action::Custom,
    };
    let named = spec.provider.as_ref().map(|it| provider::key(&it.name));
    wire::Authorization {
        targets: Vec::new(),
        action: action.into(),
        rules: spec.rules.iter().map(rule).collect(),
        provider: named.unwrap_or_default(),
        dry_run,
        invalid: String::new(),
    }
}

/// What stands in the place of a policy that cannot be read: it denies everything it is for.
pub fn closed(why: &str) -> wire::Authorization {
    wire::Authorization {
        action: wire::authorization::Action::Deny.into(),
        invalid: why.to_owned(),
        ..wire::Authorization::default()
    }
}

fn rule(rule: &Rule) -> wire::AuthorizationRule {
    wire::AuthorizationRule {
        from: rule.from.iter().map(|it| source(&it.source)).collect(),
        to: rule.to.iter().map(|it| operation(&it.operation)).collect(),
        when: rule.when.iter().map(condition).collect(),
    }
}

fn source(it: &Source) -> wire::Source {
    wire::Source {
        principals: it.principals.clone(),
        not_principals: it.not_principals.clone(),
        request_principals: it.request_principals.clone(),
        not_request_principals: it.not_request_principals.clone(),
        namespaces: it.namespaces.clone(),
        not_namespaces: it.not_namespaces.clone(),
        ip_blocks: it.ip_blocks.clone(),
        not_ip_blocks: it.not_ip_blocks.clone(),
        remote_ip_blocks: it.remote_ip_blocks.clone(),
        not_remote_ip_blocks: it.not_remote_ip_blocks.clone(),
        service_accounts: it.service_accounts.clone(),
        not_service_accounts: it.not_service_accounts.clone(),
    }
}

fn operation(it: &Operation) -> wire::Operation {
    wire::Operation {
        hosts: it.hosts.clone(),
        not_hosts: it.not_hosts.clone(),
        ports: it.ports.clone(),
        not_ports: it.not_ports.clone(),
        methods: it.methods.clone(),
        not_methods: it.not_methods.clone(),
        paths: it.paths.clone(),
        not_paths: it.not_paths.clone(),
    }
}

fn condition(it: &Condition) -> wire::Condition {
    wire::Condition {
        key: it.key.clone(),
        values: it.values.clone(),
        not_values: it.not_values.clone(),
    }
}

#[cfg(test)]
mod tests {
    use api::k8s::istio::{Action, From, Provider, To};

    use super::*;

    #[test]
    fn rules_go_to_the_waypoint_as_they_are_written() {
        let text = |it: &str| vec![it.to_owned()];
        let spec = AuthorizationPolicySpec {
            action: Action::Custom,
            provider: Some(Provider {
                name: "ext".to_owned(),
            }),
            rules: vec![Rule {
                from: vec![From {
                    source: Source {
                        principals: text("*/sa/a"),
                        not_remote_ip_blocks: text("10.0.0.0/8"),
                        ..Source::default()
                    },
                }],
                to: vec![To {
                    operation: Operation {
                        not_paths: text("/admin/{**}"),
                        ..Operation::default()
                    },
                }],
                when: vec![Condition {
                    key: "request.headers[x]".to_owned(),
                    values: Vec::new(),
                    not_values: text("y"),
                }],
            }],
            ..AuthorizationPolicySpec::default()
        };
        let made = authorization(&spec, true);
        assert_eq!(made.action(), wire::authorization::Action::Custom);
        assert_eq!(
            (made.provider.as_str(), made.dry_run),
            ("provider/ext", true)
        );
        let [rule] = made.rules.as_slice() else {
            unreachable!("one rule")
        };
        assert_eq!(rule.from[0].principals, ["*/sa/a"]);
        assert_eq!(rule.from[0].not_remote_ip_blocks, ["10.0.0.0/8"]);
        assert_eq!(rule.to[0].not_paths, ["/admin/{**}"]);
        assert_eq!(rule.when[0].key, "request.headers[x]");
        assert_eq!(rule.when[0].not_values, ["y"]);
    }
}
