//! BackendTLSPolicy and XBackendTrafficPolicy: the parts of a policy towards a service that they say.

use api::k8s::backends::{
    BackendTlsPolicySpec, BackendTrafficPolicySpec, CaRef, SessionPersistence, SubjectAltName,
};
use api::k8s::objects::ObjectKey;
use api::waypoint as wire;
use wire::session::By;

use super::duration;
use crate::translate::credential;

/// Why an object with a certificate of authority cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoCa {
    /// One word, as in the policy's status.
    pub reason: &'static str,
    /// For people.
    pub text: String,
}

/// Whom a policy believes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorities {
    /// ConfigMaps and Secrets with roots; none: the system's.
    pub found: Vec<ObjectKey>,
    /// Of several, those that cannot be used.
    pub missing: Vec<NoCa>,
}

/// Whom a policy believes. `ca`: the ConfigMap or Secret of the policy's namespace; none of another kind.
///
/// # Errors
/// No authority can be had.
pub fn authorities(
    spec: &BackendTlsPolicySpec,
    ca: &dyn Fn(&CaRef) -> Option<Result<ObjectKey, NoCa>>,
) -> Result<Authorities, NoCa> {
    let validation = &spec.validation;
    let refs = validation.ca_certificate_refs.as_slice();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    match (validation.well_known.as_deref(), refs) {
        (Some("System"), []) => return Ok(Authorities { found, missing }),
        (None, [_, ..]) => {}
        _ => {
            return Err(NoCa {
                reason: "NoValidCACertificate",
                text: "neither caCertificateRefs nor wellKnownCACertificates: System".to_owned(),
            });
        }
    }
    for one in refs {
        match ca(one) {
            Some(Ok(key)) => found.push(key),
            Some(Err(why)) => missing.push(why),
            None => missing.push(NoCa {
                reason: "InvalidKind",
                text: format!(
                    "{} {}: only a ConfigMap or a Secret is read",
                    one.kind, one.name
                ),
            }),
        }
    }
    match missing.first().filter(|_| found.is_empty()) {
        Some(first) => {
            let texts: Vec<&str> = missing.iter().map(|it| it.text.as_str()).collect();
            Err(NoCa {
                reason: first.reason,
                text: texts.join("; "),
            })
        }
        None => Ok(Authorities { found, missing }),
    }
}

impl Authorities {
    /// The key of what proxies are told of them; `own`: of the policy, where there are several.
    pub fn wire_key(&self, own: &str) -> String {
        match self.found.as_slice() {
            [] => String::new(),
            [one] => credential::wire_key(one),
            _ => format!("{own}/authorities"),
        }
    }
}

/// TLS to what a policy is for; `ca`: the key of whom it believes.
pub fn tls(spec: &BackendTlsPolicySpec, ca: String) -> wire::ClientTls {
    let validation = &spec.validation;
    let name = |it: &SubjectAltName| match it.r#type.as_str() {
        "URI" => it.uri.clone(),
        _ => it.hostname.clone(),
    };
    let names = validation.subject_alt_names.iter().filter_map(name);
    wire::ClientTls {
        mode: wire::client_tls::Mode::Simple.into(),
        sni: validation.hostname.clone(),
        ca,
        names: names.collect(),
        ..wire::ClientTls::default()
    }
}

/// TLS that cannot be had, for why: requests are refused.
pub fn no_tls(why: &NoCa) -> wire::ClientTls {
    wire::ClientTls {
        mode: wire::client_tls::Mode::Simple.into(),
        invalid: why.text.clone(),
        ..wire::ClientTls::default()
    }
}

/// How many retries, and sessions.
///
/// # Errors
/// What cannot be read.
pub fn traffic(
    spec: &BackendTrafficPolicySpec,
) -> Result<(Option<wire::RetryBudget>, Option<wire::Session>), String> {
    let budget = match &spec.retry_constraint {
        None => None,
        Some(it) => {
            let (budget, rate) = (
                it.budget.clone().unwrap_or_default(),
                it.min_retry_rate.clone().unwrap_or_default(),
            );
            let interval = budget.interval.as_deref().unwrap_or("10s");
            let least = rate.interval.as_deref().unwrap_or("1s");
            Some(wire::RetryBudget {
                percent: budget.percent.unwrap_or(20),
                interval: duration::milliseconds(interval)?,
                least: rate.count.unwrap_or(10),
                least_interval: duration::milliseconds(least)?,
            })
        }
    };
    let session = spec.session_persistence.as_ref().map(session).transpose()?;
    Ok((budget, session))
}

fn session(it: &SessionPersistence) -> Result<wire::Session, String> {
    let by_header = it.r#type.as_deref() == Some("Header");
    let name = it.session_name.clone();
    let name = name.unwrap_or_else(|| if by_header { "x-session" } else { "session" }.to_owned());
    let lifetime = it.cookie_config.as_ref();
    let lifetime = lifetime.and_then(|it| it.lifetime_type.as_deref());
    let permanent = lifetime == Some("Permanent");
    let absolute_timeout = duration::optional(it.absolute_timeout.as_deref())?;
    if permanent && absolute_timeout == 0 {
        return Err("sessionPersistence: a permanent cookie needs absoluteTimeout".to_owned());
    }
    Ok(wire::Session {
        by: Some(if by_header {
            By::Header(name)
        } else {
            By::Cookie(name)
        }),
        absolute_timeout,
        idle_timeout: duration::optional(it.idle_timeout.as_deref())?,
        permanent,
        path: String::new(),
    })
}

#[cfg(test)]
mod tests {
    use api::k8s::objects::Kind;

    use super::*;

    fn spec(text: &str) -> BackendTlsPolicySpec {
        serde_saphyr::from_str(text).expect("a spec")
    }

    #[test]
    fn authorities_are_config_maps_and_secrets_or_the_systems_and_nothing_else() {
        let ca = |it: &CaRef| match (&*it.kind, &*it.name) {
            ("ConfigMap", "bad") => Some(Err(NoCa {
                reason: "InvalidCACertificateRef",
                text: "ConfigMap bad".to_owned(),
            })),
            ("ConfigMap", name) => Some(Ok(ObjectKey::new(Kind::ConfigMap, "a", name))),
            _ => None,
        };
        let read = |refs: &str| authorities(&spec(&format!("validation: {{{refs}}}")), &ca);
        let good = "{kind: ConfigMap, name: good}";
        // (what is written, the key that proxies are told, how many cannot be used)
        for (text, key, missing) in [
            (
                format!("caCertificateRefs: [{good}]"),
                "configmap/a/good",
                0,
            ),
            (
                format!("caCertificateRefs: [{good}, {{kind: ConfigMap, name: other}}]"),
                "own/authorities",
                0,
            ),
            (
                format!(
                    "caCertificateRefs: [{{kind: ConfigMap, name: bad}}, {good}, {{kind: Service, name: x}}]"
                ),
                "configmap/a/good",
                2,
            ),
            ("wellKnownCACertificates: System".to_owned(), "", 0),
        ] {
            let read = read(&text).expect("some authority");
            let found = (read.wire_key("own"), read.missing.len());
            assert_eq!(found, (key.to_owned(), missing), "{text}");
        }
        for (text, reason) in [
            (
                "caCertificateRefs: [{kind: ConfigMap, name: bad}, {kind: Service, name: x}]",
                "InvalidCACertificateRef",
            ),
            (
                "caCertificateRefs: [{kind: Service, name: good}]",
                "InvalidKind",
            ),
            ("hostname: x", "NoValidCACertificate"),
        ] {
            assert_eq!(read(text).map_err(|it| it.reason), Err(reason));
        }
        let made = tls(
            &spec(
                "validation: {hostname: web.example, subjectAltNames: [{type: URI, uri: 'spiffe://a'}]}",
            ),
            "key".to_owned(),
        );
        assert_eq!((&*made.ca, &*made.sni), ("key", "web.example"));
        assert_eq!(made.names, ["spiffe://a"]);
    }

    #[test]
    fn retries_and_sessions_have_the_defaults_of_their_definition() {
        let read = |text: &str| traffic(&serde_saphyr::from_str(text).expect("a spec"));
        let (budget, session) = read("retryConstraint: {}\nsessionPersistence: {sessionName: who, type: Header, idleTimeout: 1m}").expect("good");
        let budget = budget.expect("a budget");
        assert_eq!(
            (
                budget.percent,
                budget.interval,
                budget.least,
                budget.least_interval
            ),
            (20, 10_000, 10, 1_000)
        );
        let session = session.expect("a session");
        assert_eq!(
            (session.by, session.idle_timeout),
            (Some(By::Header("who".to_owned())), 60_000)
        );
        assert!(read("sessionPersistence: {cookieConfig: {lifetimeType: Permanent}}").is_err());
        assert_eq!(read("{}"), Ok((None, None)));
    }
}
