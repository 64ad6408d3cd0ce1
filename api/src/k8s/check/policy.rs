//! AuthorizationPolicy and PeerAuthentication.

use std::net::IpAddr;

use super::{Path, Problems, spec, words};
use crate::k8s::istio::{
    Action, AuthorizationPolicy, Condition, Operation, PeerAuthentication, PolicySelector, Source,
    TargetRef,
};

pub(super) fn check(policy: &AuthorizationPolicy, problems: &mut Problems) {
    let path = spec();
    let it = &policy.spec;
    check_target(
        it.selector.as_ref(),
        it.target_ref.as_ref(),
        &it.target_refs,
        problems,
    );
    for (index, rule) in policy.spec.rules.iter().enumerate() {
        let path = path.key("rules").index(index);
        for (index, from) in rule.from.iter().enumerate() {
            check_source(
                &from.source,
                &path.key("from").index(index).key("source"),
                problems,
            );
        }
        for (index, to) in rule.to.iter().enumerate() {
            check_operation(
                &to.operation,
                &path.key("to").index(index).key("operation"),
                problems,
            );
        }
        for (index, condition) in rule.when.iter().enumerate() {
            check_condition(condition, &path.key("when").index(index), problems);
        }
    }
    match (policy.spec.action, &policy.spec.provider) {
        (Action::Custom, None) => problems.add(path.key("action"), words::CUSTOM_NEEDS_PROVIDER),
        (Action::Custom, Some(provider)) if provider.name.is_empty() => {
            problems.add(path.key("provider"), words::PROVIDER_NAME);
        }
        (Action::Custom, Some(_)) | (_, None) => {}
        (_, Some(_)) => problems.add(path.key("provider"), words::ONLY_CUSTOM),
    }
}

/// Whom a policy is for: in one way, and each target named.
pub(super) fn check_target(
    selector: Option<&PolicySelector>,
    target_ref: Option<&TargetRef>,
    target_refs: &[TargetRef],
    problems: &mut Problems,
) {
    let path = spec();
    let ways = [
        selector.is_some(),
        target_ref.is_some(),
        !target_refs.is_empty(),
    ];
    if ways.into_iter().filter(|way| *way).count() > 1 {
        problems.add(path.clone(), words::ONE_TARGET);
    }
    if target_refs.len() > 16 {
        problems.add(
            path.key("targetRefs"),
            "more than 16 targets; write several policies",
        );
    }
    let targets = target_refs
        .iter()
        .enumerate()
        .map(|(index, target)| (path.key("targetRefs").index(index), target));
    for (path, target) in targets.chain(
        target_ref
            .iter()
            .map(|target| (path.key("targetRef"), *target)),
    ) {
        if target.kind.is_empty() || target.name.is_empty() {
            problems.add(path.clone(), words::TARGET_NAME);
        }
        if target.namespace.as_deref().is_some_and(|it| !it.is_empty()) {
            problems.add(path.key("namespace"), words::TARGET_NAMESPACE);
        }
    }
    check_selector(selector, problems);
}

fn check_selector(selector: Option<&PolicySelector>, problems: &mut Problems) {
    let path = spec().key("selector").key("matchLabels");
    for (label, value) in selector.iter().flat_map(|selector| &selector.match_labels) {
        if label.is_empty() {
            problems.add(path.clone(), words::SELECTOR_KEY);
        }
        if label.contains('*') || value.contains('*') {
            problems.add(path.key(label), words::SELECTOR_WILDCARD);
        }
    }
}

fn check_source(source: &Source, path: &Path, problems: &mut Problems) {
    if *source == Source::default() {
        problems.add(path.clone(), words::EMPTY_SOURCE);
    }
    let identities = [
        &source.principals,
        &source.not_principals,
        &source.namespaces,
        &source.not_namespaces,
    ];
    let accounts = [&source.service_accounts, &source.not_service_accounts];
    if accounts.iter().any(|list| !list.is_empty())
        && identities.iter().any(|list| !list.is_empty())
    {
        problems.add(path.clone(), words::ACCOUNTS_ALONE);
    }
    for (name, list) in [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ] {
        check_each(list, &path.key(name), problems, check_block);
    }
    for (name, list) in [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
    ] {
        check_each(list, &path.key(name), problems, not_empty);
    }
    for (name, list) in [
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
    ] {
        check_each(list, &path.key(name), problems, service_account);
    }
}

fn check_operation(operation: &Operation, path: &Path, problems: &mut Problems) {
    if *operation == Operation::default() {
        problems.add(path.clone(), words::EMPTY_OPERATION);
    }
    for (name, list) in [
        ("ports", &operation.ports),
        ("notPorts", &operation.not_ports),
    ] {
        check_each(list, &path.key(name), problems, port);
    }
}

fn check_condition(condition: &Condition, path: &Path, problems: &mut Problems) {
    if condition.key.is_empty() {
        problems.add(
            path.clone(),
            "key is missing; name an attribute, as in source.ip",
        );
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        problems.add(
            path.clone(),
            "at least one of values and notValues is needed; without them the condition says nothing",
        );
    }
    let check: fn(&str) -> Result<(), String> = match condition.key.as_str() {
        "source.ip" | "destination.ip" | "remote.ip" => check_block,
        "destination.port" => port,
        "source.serviceAccount" => service_account,
        _ => not_empty,
    };
    check_each(&condition.values, &path.key("values"), problems, check);
    check_each(
        &condition.not_values,
        &path.key("notValues"),
        problems,
        check,
    );
}

fn check_each(
    list: &[String],
    path: &Path,
    problems: &mut Problems,
    check: fn(&str) -> Result<(), String>,
) {
    for (index, text) in list.iter().enumerate() {
        if problems.full() {
            return;
        }
        if let Err(reason) = check(text) {
            problems.add(path.index(index), reason);
        }
    }
}

/// An address or a CIDR.
fn check_block(text: &str) -> Result<(), String> {
    let refused = || Err(format!("{text:?} {}", words::ADDRESS));
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return refused();
    };
    let widest = if address.is_ipv4() { 32 } else { 128 };
    match length.map(str::parse::<u8>) {
        None => Ok(()),
        Some(Ok(length)) if length <= widest => Ok(()),
        Some(_) => refused(),
    }
}

fn port(text: &str) -> Result<(), String> {
    match text.parse::<u16>() {
        Ok(1..) => Ok(()),
        _ => Err(format!("{text:?} {}", words::PORT)),
    }
}

fn service_account(text: &str) -> Result<(), String> {
    let mut parts = text.split('/');
    let named = parts
        .by_ref()
        .take(2)
        .all(|part| !part.is_empty() && !part.contains('*'));
    if named && parts.next().is_none() {
        Ok(())
    } else {
        Err(format!(
            "{text:?} is neither `account` nor `namespace/account`; wildcards are for principals"
        ))
    }
}

fn not_empty(text: &str) -> Result<(), String> {
    if text.is_empty() {
        Err("an empty text matches nothing; remove it, or write `*` for any".into())
    } else {
        Ok(())
    }
}

pub(super) fn check_peer_authentication(policy: &PeerAuthentication, problems: &mut Problems) {
    let path = spec().key("portLevelMtls");
    let selects = policy
        .spec
        .selector
        .as_ref()
        .is_some_and(|selector| !selector.match_labels.is_empty());
    if !policy.spec.port_level_mtls.is_empty() && !selects {
        problems.add(path.clone(), words::PORTS_NEED_SELECTOR);
    }
    for number in policy.spec.port_level_mtls.keys() {
        if let Err(reason) = port(number) {
            problems.add(path.key(number), reason);
        }
    }
    check_selector(policy.spec.selector.as_ref(), problems);
}
