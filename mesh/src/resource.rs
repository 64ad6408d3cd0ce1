//! Pure: what a waypoint's resource is tied to: services, routes, listeners, or the gateway as a whole.
//!
//! Both ends ask it. The control plane sends a gateway the addresses of every service that a resource of it names;
//! the proxy makes anew what a resource that changed is tied to.

use api::waypoint::{
    Backend, Filter, Resource, ServiceRef, Target, backend, filter, fronted, provider,
    resource::Kind, target,
};

use crate::names::NamespacedHost;

/// One tie of a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tie<'a> {
    /// It is for the gateway itself: everything that passes through.
    Gateway,
    /// It is for requests to that service.
    Service(&'a ServiceRef),
    /// It is for what comes in at that listener, a key.
    Listener(&'a str),
    /// It is for the requests of all rules of that route: a key without its rule.
    Route(&'a str),
    /// It says how that service is called.
    Towards(&'a ServiceRef),
    /// Requests are sent, copied or shown to that service because of it.
    Leads(&'a ServiceRef),
    /// That workload, a uid, is behind the gateway.
    Workload(&'a str),
    /// Others name it by its key: a provider, a secret, a listener.
    Named,
}

impl<'a> Tie<'a> {
    /// The service, if it is one.
    pub fn service(self) -> Option<&'a ServiceRef> {
        match self {
            Self::Service(service) | Self::Towards(service) | Self::Leads(service) => Some(service),
            Self::Gateway
            | Self::Listener(_)
            | Self::Route(_)
            | Self::Workload(_)
            | Self::Named => None,
        }
    }

    /// The name of the address that must be known because of it, as it is on the wire.
    pub fn address(self) -> Option<String> {
        match self {
            Self::Workload(uid) => Some(uid.to_owned()),
            other => other.service().map(|it| service_of(it).to_string()),
        }
    }
}

/// Every tie of a resource; some may come twice.
pub fn ties<'a>(resource: &'a Resource, mut each: impl FnMut(Tie<'a>)) {
    let each = &mut each;
    match &resource.kind {
        None => {}
        Some(Kind::Gateway(_)) => each(Tie::Gateway),
        Some(Kind::Fronted(fronted)) => fronted.it.iter().map(behind).for_each(each),
        Some(Kind::Listener(_) | Kind::Secret(_)) => each(Tie::Named),
        Some(Kind::Route(route)) => {
            targets(&route.parents, each);
            filters(&route.filters, each);
            backends(&route.backends, each);
        }
        Some(Kind::TcpRoute(route)) => {
            targets(&route.parents, each);
            backends(&route.backends, each);
        }
        Some(Kind::BackendPolicy(policy)) => {
            policy.service.iter().map(Tie::Towards).for_each(each);
        }
        Some(Kind::Subset(subset)) => subset.service.iter().map(Tie::Towards).for_each(each),
        Some(Kind::Authorization(policy)) => targets(&policy.targets, each),
        Some(Kind::Authentication(policy)) => {
            targets(&policy.targets, each);
            let issuers = policy.rules.iter();
            let issuers = issuers.filter_map(|it| it.service.as_ref());
            issuers.map(Tie::Leads).for_each(each);
        }
        Some(Kind::RateLimit(policy)) => targets(&policy.targets, each),
        Some(Kind::Telemetry(telemetry)) => targets(&telemetry.targets, each),
        Some(Kind::Processing(processing)) => {
            targets(&processing.targets, each);
            let asked = processing.processor.iter();
            let asked = asked.filter_map(|it| it.service.as_ref());
            asked.map(Tie::Leads).for_each(each);
        }
        Some(Kind::Provider(provider)) => {
            each(Tie::Named);
            provider.kind.iter().filter_map(asked).for_each(each);
        }
    }
}

fn behind(it: &fronted::It) -> Tie<'_> {
    match it {
        fronted::It::Service(service) => Tie::Leads(service),
        fronted::It::Workload(uid) => Tie::Workload(uid),
    }
}

fn targets<'a>(targets: &'a [Target], each: &mut impl FnMut(Tie<'a>)) {
    for target in targets.iter().filter_map(|target| target.to.as_ref()) {
        each(match target {
            target::To::Service(service) => Tie::Service(service),
            target::To::Gateway(_) => Tie::Gateway,
            target::To::Listener(key) => Tie::Listener(key),
            target::To::Route(key) => Tie::Route(key),
        });
    }
}

fn backends<'a>(backends: &'a [Backend], each: &mut impl FnMut(Tie<'a>)) {
    for backend in backends {
        if let Some(backend::To::Service(service)) = &backend.to {
            each(Tie::Leads(service));
        }
        filters(&backend.filters, each);
    }
}

/// Of filters only a mirror leads anywhere. What is copied there passes no filters of its own.
fn filters<'a>(filters: &'a [Filter], each: &mut impl FnMut(Tie<'a>)) {
    for filter in filters {
        if let Some(filter::Filter::Mirror(mirror)) = &filter.filter
            && let Some(backend::To::Service(service)) =
                mirror.backend.as_ref().and_then(|copy| copy.to.as_ref())
        {
            each(Tie::Leads(service));
        }
    }
}

fn asked(provider: &provider::Kind) -> Option<Tie<'_>> {
    let service = match provider {
        provider::Kind::Authorizer(kind) => &kind.service,
        provider::Kind::RateLimiter(kind) => &kind.service,
        provider::Kind::TraceCollector(kind) => &kind.service,
        provider::Kind::LogCollector(kind) => &kind.service,
        provider::Kind::LogFile(_) => &None,
    };
    service.as_ref().map(Tie::Leads)
}

/// The service that a reference means.
pub fn service_of(reference: &ServiceRef) -> NamespacedHost {
    NamespacedHost::new(&*reference.namespace, &*reference.hostname)
}

/// The key of a resource, of its name on the wire: `gateway namespace/gateway name/key`.
pub fn key_of<'a>(name: &'a str, gateway: &str) -> Option<&'a str> {
    name.strip_prefix(gateway)?
        .strip_prefix('/')
        .filter(|key| !key.is_empty())
}

/// The gateway of a resource, of its name on the wire: `namespace/name`.
pub fn gateway_of(name: &str) -> Option<&str> {
    let (namespace, rest) = name.split_once('/')?;
    let (gateway, _) = rest.split_once('/')?;
    name.get(..namespace.len() + 1 + gateway.len())
}

#[cfg(test)]
mod tests {
    use api::waypoint::{Authentication, JwtRule, Mirror, Route};

    use super::*;

    #[test]
    fn the_name_on_the_wire_is_the_gateway_and_the_key() {
        let name = "shop/waypoint/httproute/shop/web/0";
        assert_eq!(gateway_of(name), Some("shop/waypoint"));
        assert_eq!(key_of(name, "shop/waypoint"), Some("httproute/shop/web/0"));
        for other in ["shop/way", "shop/waypoint/httproute/shop/web/0", ""] {
            assert_eq!(key_of(name, other), None, "{other}");
        }
        assert_eq!(gateway_of("shop/waypoint"), None);
    }

    #[test]
    fn tokens_lead_to_the_service_that_their_issuer_is() {
        let service = ServiceRef {
            namespace: "auth".to_owned(),
            hostname: "keys".to_owned(),
            port: 80,
        };
        let rule = |service: Option<ServiceRef>| JwtRule {
            service,
            ..JwtRule::default()
        };
        let resource = Resource {
            kind: Some(Kind::Authentication(Authentication {
                rules: vec![rule(None), rule(Some(service.clone()))],
                ..Authentication::default()
            })),
            ..Resource::default()
        };
        let mut found = Vec::new();
        ties(&resource, |tie| found.push(tie));
        assert_eq!(found, [Tie::Leads(&service)]);
        assert_eq!(found[0].address().as_deref(), Some("auth/keys"));
    }

    #[test]
    fn a_route_is_for_its_parents_and_leads_to_backends_and_mirrors() {
        let service = |host: &str| ServiceRef {
            namespace: "shop".to_owned(),
            hostname: host.to_owned(),
            port: 80,
        };
        let to = |host: &str| Backend {
            to: Some(backend::To::Service(service(host))),
            ..Backend::default()
        };
        let copied = |host: &str| Filter {
            filter: Some(filter::Filter::Mirror(Mirror {
                backend: Some(to(host)),
                fraction: None,
            })),
        };
        let route = Route {
            parents: vec![Target {
                to: Some(target::To::Service(service("web"))),
            }],
            filters: vec![copied("all")],
            backends: vec![
                Backend {
                    filters: vec![copied("some")],
                    ..to("v1")
                },
                Backend {
                    to: Some(backend::To::Invalid("no such service".to_owned())),
                    ..Backend::default()
                },
            ],
            ..Route::default()
        };
        let resource = Resource {
            kind: Some(Kind::Route(route)),
            ..Resource::default()
        };
        let mut found = Vec::new();
        ties(&resource, |tie| {
            let what = if matches!(tie, Tie::Leads(_)) {
                "leads"
            } else {
                "for"
            };
            found.push((what, &*tie.service().unwrap().hostname));
        });
        assert_eq!(
            found,
            [
                ("for", "web"),
                ("leads", "all"),
                ("leads", "v1"),
                ("leads", "some")
            ]
        );
    }
}
