//! Secrets and ConfigMaps that policies name: keys and roots for TLS towards endpoints.
//!
//! 1. which ones a policy names, and for what                 ([`named`])
//! 2. of an object what proxies may need, and nothing else    ([`Credential`])
//! 3. what is wrong with it, for whoever named it             ([`Credential::lacks`])
//!
//! Nothing here shows key material: not in a log, not in a status, not when it is printed.

use std::collections::BTreeMap;
use std::fmt;

use api::k8s::backends::{BackendTlsPolicySpec, CaRef};
use api::k8s::istio::destination_rule::{ClientTls, DestinationRuleSpec, TlsMode, TrafficPolicy};
use api::k8s::objects::{ConfigMap, Kind, ObjectKey, Secret};
use api::waypoint as wire;
use hbone::Revocations;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// What a policy needs of a Secret or ConfigMap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Use {
    /// Roots that endpoints are believed by.
    Authority,
    /// Also a certificate of our own, and its key.
    Certificate,
}

/// What proxies may need of an object.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credential {
    chain: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
    /// Whom it says not to believe any more.
    crl: Vec<u8>,
    /// It is not one that is read.
    odd: Option<String>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential")
    }
}

impl Credential {
    /// Of a Secret of type kubernetes.io/tls or Opaque; no other kind of Secret is for this.
    pub fn of_secret(secret: &Secret) -> Self {
        let kind = secret.type_.as_deref().unwrap_or_default();
        if !matches!(kind, "" | "Opaque" | "kubernetes.io/tls") {
            return Self {
                odd: Some(format!(
                    "is of type {kind}; only kubernetes.io/tls and Opaque are read"
                )),
                ..Self::default()
            };
        }
        let field = |names: [&str; 2]| {
            let text = secret.string_data.as_ref();
            let data = secret.data.as_ref();
            let one = |name: &str| {
                let text = text.and_then(|it| it.get(name));
                let text = text.map(|it| it.clone().into_bytes());
                text.or_else(|| Some(data?.get(name)?.0.clone()))
            };
            names.into_iter().find_map(one).unwrap_or_default()
        };
        Self {
            chain: field(["tls.crt", "cert"]),
            key: field(["tls.key", "key"]),
            ca: field(["ca.crt", "cacert"]),
            crl: field(["ca.crl", "crl"]),
            odd: None,
        }
    }

    /// Of a ConfigMap: roots.
    pub fn of_config_map(map: &ConfigMap) -> Self {
        let field = |name: &str| map.data.as_ref().and_then(|it| it.get(name));
        let field = |name: &str| field(name).map(|it| it.clone().into_bytes());
        Self {
            ca: field("ca.crt").unwrap_or_default(),
            crl: field("ca.crl").unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Whether it has roots of its own.
    pub fn has_authority(&self) -> bool {
        !self.ca.is_empty()
    }

    /// With the roots of its companion, where it has none; whom either of them revokes is revoked.
    pub fn with_authority_of(&self, companion: &Self) -> Self {
        Self {
            ca: companion.ca.clone(),
            crl: [&*self.crl, b"\n", &companion.crl].concat(),
            odd: self.odd.clone().or(companion.odd.clone()),
            ..self.clone()
        }
    }

    /// The roots of several: whoever one of them vouches for is believed, unless a list of one of them says otherwise.
    pub fn authorities<'a>(all: impl Iterator<Item = &'a Self>) -> wire::Secret {
        let (mut ca, mut crl) = (Vec::new(), Vec::new());
        for one in all {
            // A file need not end its last line.
            for (text, of) in [(&mut ca, &one.ca), (&mut crl, &one.crl)] {
                text.extend_from_slice(of);
                text.push(b'\n');
            }
        }
        wire::Secret {
            ca,
            crl: told(&crl),
            ..wire::Secret::default()
        }
    }

    /// Why it is of no use for that; none if it is.
    pub fn lacks(&self, r#use: Use) -> Option<String> {
        if self.odd.is_some() {
            return self.odd.clone();
        }
        if let Some(why) = certificates(&self.ca) {
            return Some(format!("ca.crt {why}"));
        }
        // As who is told it reads it.
        if let Err(why) = Revocations::default().replace(&self.crl) {
            return Some(format!("ca.crl: {why}"));
        }
        if r#use == Use::Authority {
            return None;
        }
        if let Some(why) = certificates(&self.chain) {
            return Some(format!("tls.crt {why}"));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key);
        key.err()
            .map(|_| "tls.key is no private key in PEM".to_owned())
    }

    /// What a proxy is told: what it needs.
    pub fn told(&self, r#use: Use) -> wire::Secret {
        let own = r#use == Use::Certificate;
        wire::Secret {
            ca: self.ca.clone(),
            certificate: if own { self.chain.clone() } else { Vec::new() },
            key: if own { self.key.clone() } else { Vec::new() },
            crl: told(&self.crl),
        }
    }
}

/// Lists, if there are any.
fn told(crl: &[u8]) -> Vec<u8> {
    match crl.trim_ascii().is_empty() {
        true => Vec::new(),
        false => crl.to_vec(),
    }
}

/// What is wrong with certificates in PEM.
fn certificates(pem: &[u8]) -> Option<String> {
    if pem.is_empty() {
        return Some("is missing".to_owned());
    }
    let mut all = CertificateDer::pem_slice_iter(pem).peekable();
    let some = all.peek().is_some();
    (!some || all.any(|it| it.is_err())).then(|| "is no certificate in PEM".to_owned())
}

/// What a policy names, and the most that it needs of it.
pub type Named = BTreeMap<ObjectKey, Use>;

/// What a DestinationRule of a namespace names.
pub fn of_rule(rule: &DestinationRuleSpec, namespace: &str) -> Named {
    let subsets = rule.subsets.iter();
    let subsets = subsets.filter_map(|it| it.traffic_policy.as_ref());
    let policies = rule.traffic_policy.iter().chain(subsets);
    let tls = policies.flat_map(|it: &TrafficPolicy| {
        let ports = it.port_level_settings.iter();
        ports.filter_map(|it| it.tls.as_ref()).chain(&it.tls)
    });
    let mut named = Named::new();
    for (key, r#use) in tls.filter_map(|it| of_tls(it, namespace)) {
        let held = named.entry(key).or_insert(r#use);
        *held = r#use.max(*held);
    }
    named
}

fn of_tls(tls: &ClientTls, namespace: &str) -> Option<(ObjectKey, Use)> {
    let r#use = match tls.mode {
        TlsMode::Simple => Use::Authority,
        TlsMode::Mutual => Use::Certificate,
        TlsMode::Disable | TlsMode::IstioMutual => return None,
    };
    let name = tls.credential_name.as_deref().filter(|it| !it.is_empty())?;
    Some((credential(name, namespace), r#use))
}

/// `name`, `kubernetes://name` or `configmap://name`, of a namespace.
pub fn credential(name: &str, namespace: &str) -> ObjectKey {
    match name.strip_prefix("configmap://") {
        Some(name) => ObjectKey::new(Kind::ConfigMap, namespace, name),
        None => {
            let name = name.strip_prefix("kubernetes://").unwrap_or(name);
            ObjectKey::new(Kind::Secret, namespace, name)
        }
    }
}

/// The Secret that has the roots for one that has none: Istio's convention for what DestinationRules name.
pub fn companion(key: &ObjectKey) -> Option<ObjectKey> {
    let name = format!("{}-cacert", key.name);
    (key.kind == Kind::Secret).then(|| ObjectKey::new(Kind::Secret, &key.namespace, &name))
}

/// What a BackendTLSPolicy of a namespace names.
pub fn of_backend_tls(spec: &BackendTlsPolicySpec, namespace: &str) -> Named {
    let refs = spec.validation.ca_certificate_refs.iter();
    let refs = refs.filter_map(|it| Some((authority(it, namespace)?, Use::Authority)));
    refs.collect()
}

/// A Secret or ConfigMap of a namespace; none if it is something else.
pub fn authority(it: &CaRef, namespace: &str) -> Option<ObjectKey> {
    let kind = match (it.group.as_str(), it.kind.as_str()) {
        ("" | "core", "ConfigMap") => Kind::ConfigMap,
        ("" | "core", "Secret") => Kind::Secret,
        _ => return None,
    };
    Some(ObjectKey::new(kind, namespace, &it.name))
}

/// Its key on the wire, as policies name it.
pub fn wire_key(key: &ObjectKey) -> String {
    let kind = key.kind.name().to_ascii_lowercase();
    format!("{kind}/{}/{}", key.namespace, key.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        (
            parameters.self_signed(&key).unwrap().pem(),
            key.serialize_pem(),
        )
    }

    fn secret(kind: &str, fields: &[(&str, &str)]) -> Credential {
        let fields = fields.iter();
        Credential::of_secret(&Secret {
            type_: Some(kind.to_owned()),
            string_data: Some(
                fields
                    .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                    .collect(),
            ),
            ..Secret::default()
        })
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_is_shown() {
        let (certificate, key) = pair();
        let whole = secret(
            "kubernetes.io/tls",
            &[
                ("tls.crt", &certificate),
                ("tls.key", &key),
                ("ca.crt", &certificate),
            ],
        );
        assert_eq!(whole.lacks(Use::Certificate), None);
        assert_eq!(format!("{whole:?}"), "Credential");
        let generic = [
            ("cert", &*certificate),
            ("key", &*key),
            ("cacert", &*certificate),
        ];
        assert_eq!(secret("Opaque", &generic).lacks(Use::Certificate), None);
        for (kind, fields, r#use, said) in [
            (
                "Opaque",
                &[("ca.crt", &*certificate)][..],
                Use::Certificate,
                "tls.crt is missing",
            ),
            (
                "Opaque",
                &[("tls.crt", &*certificate)],
                Use::Authority,
                "ca.crt is missing",
            ),
            (
                "Opaque",
                &[("ca.crt", "hello")],
                Use::Authority,
                "ca.crt is no certificate in PEM",
            ),
            (
                "Opaque",
                &[("ca.crt", &*certificate), ("ca.crl", "x")],
                Use::Authority,
                "ca.crl: the list of revoked certificates cannot be read: it holds none in PEM",
            ),
            (
                "kubernetes.io/service-account-token",
                &[("ca.crt", &*certificate)],
                Use::Authority,
                "is of type kubernetes.io/service-account-token; only kubernetes.io/tls and Opaque are read",
            ),
        ] {
            let lacks = secret(kind, fields).lacks(r#use);
            assert_eq!(lacks.as_deref(), Some(said), "{kind}");
        }
    }

    #[test]
    fn who_is_revoked_is_told_with_the_roots() {
        let (certificate, _) = pair();
        let list = |name: &str| format!("-----{name}-----\n");
        let with = |crl: &str| secret("Opaque", &[("ca.crt", &certificate), ("ca.crl", crl)]);
        let told = |it: &Credential| String::from_utf8(it.told(Use::Authority).crl).unwrap();
        assert_eq!(told(&with(" \n")), "");
        assert_eq!(with(" \n").lacks(Use::Authority), None);
        let (one, other) = (with(&list("one")), with(&list("other")));
        assert_eq!(told(&one), list("one"));
        let generic = secret("Opaque", &[("cacert", &certificate), ("crl", &list("one"))]);
        assert_eq!(told(&generic), list("one"));
        let both = told(&one.with_authority_of(&other));
        assert!(both.contains(&list("one")) && both.contains(&list("other")));
        let all = Credential::authorities([&one, &other].into_iter());
        let all = String::from_utf8(all.crl).unwrap();
        assert!(all.contains(&list("one")) && all.contains(&list("other")));
        let none = Credential::authorities([&with("")].into_iter());
        assert!(none.crl.is_empty());
    }

    #[test]
    fn a_key_is_told_only_to_who_needs_it() {
        let (certificate, key) = pair();
        let whole = secret(
            "Opaque",
            &[
                ("tls.crt", &certificate),
                ("tls.key", &key),
                ("ca.crt", &certificate),
            ],
        );
        let told = whole.told(Use::Authority);
        assert!(told.key.is_empty() && told.certificate.is_empty() && !told.ca.is_empty());
        assert!(!whole.told(Use::Certificate).key.is_empty());
    }
}
