//! BackendTLSPolicy and XBackendTrafficPolicy: the parts of a policy towards a service that they say.

use api::k8s::backends::{
    BackendTlsPolicySpec, BackendTrafficPolicySpec, CaRef, SessionPersistence, SubjectAltName,
};
use api::waypoint as wire;
use wire::session::By;

use super::duration;

/// Why an object with a certificate of authority cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoCa {
    /// One word, as in the policy's status.
    pub reason: &'static str,
    /// For people.
    pub text: String,
}

/// TLS to what a policy is for. `ca`: the key of the secret made of a ConfigMap or Secret of the policy's namespace.
///
/// # Errors
/// No authority can be had: connections fail, and what is said of it.
pub fn tls(
    spec: &BackendTlsPolicySpec,
    ca: &dyn Fn(&CaRef) -> Option<Result<String, NoCa>>,
) -> Result<wire::ClientTls, NoCa> {
    let validation = &spec.validation;
    let refs = validation.ca_certificate_refs.as_slice();
    let key = match (validation.well_known.as_deref(), refs) {
        (Some("System"), []) => String::new(),
        (None, [one, ..]) => ca(one).unwrap_or_else(|| {
            let (kind, name) = (&one.kind, &one.name);
            Err(NoCa {
                reason: "InvalidKind",
                text: format!("{kind} {name}: only a ConfigMap or a Secret is read"),
            })
        })?,
        _ => {
            return Err(NoCa {
                reason: "NoValidCACertificate",
                text: "neither caCertificateRefs nor wellKnownCACertificates: System".to_owned(),
            });
        }
    };
    let name = |it: &SubjectAltName| match it.r#type.as_str() {
        "URI" => it.uri.clone(),
        _ => it.hostname.clone(),
    };
    let names = validation.subject_alt_names.iter().filter_map(name);
    Ok(wire::ClientTls {
        mode: wire::client_tls::Mode::Simple.into(),
        sni: validation.hostname.clone(),
        ca: key,
        names: names.collect(),
        ..wire::ClientTls::default()
    })
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
    use super::*;

    fn spec(text: &str) -> BackendTlsPolicySpec {
        serde_saphyr::from_str(text).expect("a spec")
    }

    #[test]
    fn an_authority_is_a_config_map_or_the_systems_and_nothing_else() {
        let ca = |it: &CaRef| match (&*it.kind, &*it.name) {
            ("ConfigMap", "good") => Some(Ok("configmap/a/good".to_owned())),
            ("ConfigMap", name) => Some(Err(NoCa {
                reason: "InvalidCACertificateRef",
                text: format!("ConfigMap {name}"),
            })),
            _ => None,
        };
        let made = tls(
            &spec("validation: {hostname: web.example, caCertificateRefs: [{kind: ConfigMap, name: good}], subjectAltNames: [{type: URI, uri: 'spiffe://a'}]}"),
            &ca,
        )
        .expect("tls");
        assert_eq!(
            (made.ca.as_str(), made.sni.as_str()),
            ("configmap/a/good", "web.example")
        );
        assert_eq!(made.names, ["spiffe://a"]);
        for (text, reason) in [
            (
                "validation: {caCertificateRefs: [{kind: ConfigMap, name: bad}]}",
                "InvalidCACertificateRef",
            ),
            (
                "validation: {caCertificateRefs: [{kind: Service, name: good}]}",
                "InvalidKind",
            ),
            ("validation: {hostname: x}", "NoValidCACertificate"),
        ] {
            assert_eq!(tls(&spec(text), &ca).map_err(|it| it.reason), Err(reason));
        }
        assert!(tls(&spec("validation: {wellKnownCACertificates: System}"), &ca).is_ok());
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
