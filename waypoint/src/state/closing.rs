//! Pure: what stands for a resource that cannot be decoded. Whatever it was for is closed until a good one comes.
//!
//! 1. a message is fields one after the other: what it is for is mostly found, whatever is wrong elsewhere in it
//! 2. of what it is for nothing is found: it is taken to be for all that passes through, but where its key says more

use api::waypoint as wire;
use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use wire::resource::Kind;

/// What closes what the resource of that key, and of these bytes, was for; of no kind, where nothing would be open.
pub(super) fn closing(key: &str, encoded: &Bytes, reason: &str) -> wire::Resource {
    let kinds = nested(encoded, |number| number > ORIGIN);
    let kind = match kinds.first() {
        Some((number, body)) => of_number(*number, key, body, reason),
        None => of_key(key, reason),
    };
    let origin = nested(encoded, |number| number == ORIGIN);
    let origin = origin.into_iter().next();
    wire::Resource {
        key: key.to_owned(),
        origin: origin.and_then(|(_, body)| wire::Origin::decode(body).ok()),
        kind,
    }
}

/// Field numbers of Resource.
const ORIGIN: u32 = 2;
const ROUTE: u32 = 5;
const TCP_ROUTE: u32 = 6;
const BACKEND_POLICY: u32 = 7;
const AUTHORIZATION: u32 = 9;
const AUTHENTICATION: u32 = 10;
const RATE_LIMIT: u32 = 11;
/// What a message is for is its first field; in a route its matches are the third.
const TARGETS: u32 = 1;
const MATCHES: u32 = 3;

fn of_number(number: u32, key: &str, body: &Bytes, reason: &str) -> Option<Kind> {
    match number {
        ROUTE => Some(Kind::Route(route(body))),
        TCP_ROUTE => Some(Kind::TcpRoute(wire::TcpRoute {
            parents: targets(body),
            ..Default::default()
        })),
        BACKEND_POLICY => {
            let service = nested(body, |number| number == TARGETS).into_iter().next();
            let service = service.and_then(|(_, body)| wire::ServiceRef::decode(body).ok());
            Some(backend_policy(service.or_else(|| called(key))?))
        }
        AUTHORIZATION => Some(Kind::Authorization(wire::Authorization {
            targets: targets(body),
            invalid: reason.to_owned(),
            ..Default::default()
        })),
        AUTHENTICATION => Some(Kind::Authentication(wire::Authentication {
            targets: targets(body),
            invalid: reason.to_owned(),
            ..Default::default()
        })),
        RATE_LIMIT => Some(Kind::RateLimit(wire::RateLimit {
            targets: targets(body),
            ..Default::default()
        })),
        _ => None,
    }
}

/// By the user's object, when there is nothing else.
fn of_key(key: &str, reason: &str) -> Option<Kind> {
    let number = match key.split('/').next()? {
        "httproute" | "grpcroute" | "virtualservice" => ROUTE,
        "tcproute" | "tlsroute" => TCP_ROUTE,
        "destinationrule" | "backendtlspolicy" | "xbackendtrafficpolicy" => BACKEND_POLICY,
        "authorizationpolicy" => AUTHORIZATION,
        "requestauthentication" => AUTHENTICATION,
        "ratelimitpolicy" | "quotapolicy" => RATE_LIMIT,
        _ => return None,
    };
    of_number(number, key, &Bytes::new(), reason)
}

/// With its matches, if all of them can be read; else for every request, before all other rules.
fn route(body: &Bytes) -> wire::Route {
    let matches = nested(body, |number| number == MATCHES).into_iter();
    let matches: Option<Vec<_>> = matches
        .map(|(_, body)| wire::Match::decode(body).ok())
        .collect();
    let known = matches.filter(|it| !it.is_empty());
    let precedence = match known {
        Some(_) => wire::route::Precedence::Specific,
        None => wire::route::Precedence::Listed,
    };
    wire::Route {
        parents: targets(body),
        matches: known.unwrap_or_default(),
        precedence: precedence.into(),
        ..Default::default()
    }
}

fn backend_policy(service: wire::ServiceRef) -> Kind {
    Kind::BackendPolicy(wire::BackendPolicy {
        service: Some(service),
        ..Default::default()
    })
}

/// The service that a policy says how to call: `kind/namespace/name/namespace of the service/its host:port…`.
fn called(key: &str) -> Option<wire::ServiceRef> {
    let mut parts = key.split('/').skip(3);
    let (namespace, host) = (parts.next()?, parts.next()?);
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    Some(wire::ServiceRef {
        namespace: namespace.to_owned(),
        hostname: host.to_owned(),
        port: 0,
    })
}

/// Those that it names, if all of them can be read; else everything.
fn targets(body: &Bytes) -> Vec<wire::Target> {
    let found = nested(body, |number| number == TARGETS).into_iter();
    let found: Option<Vec<_>> = found
        .map(|(_, body)| {
            let target = wire::Target::decode(body).ok();
            target.filter(|it| it.to.is_some())
        })
        .collect();
    found.filter(|it| !it.is_empty()).unwrap_or_else(|| {
        let to = wire::target::To::Gateway(String::new());
        vec![wire::Target { to: Some(to) }]
    })
}

/// The messages within, of fields that are wanted, as far as it can be read.
fn nested(encoded: &Bytes, is_wanted: impl Fn(u32) -> bool) -> Vec<(u32, Bytes)> {
    let mut rest = encoded.clone();
    let mut found = Vec::new();
    while rest.has_remaining() {
        let Ok((number, wire_type)) = decode_key(&mut rest) else {
            break;
        };
        if wire_type == WireType::LengthDelimited {
            let length = decode_varint(&mut rest).ok();
            let length = length.and_then(|it| usize::try_from(it).ok());
            let Some(length) = length.filter(|it| *it <= rest.len()) else {
                break;
            };
            let body = rest.split_to(length);
            if is_wanted(number) {
                found.push((number, body));
            }
        } else if skip_field(wire_type, number, &mut rest, DecodeContext::default()).is_err() {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(host: &str) -> wire::Target {
        wire::Target {
            to: Some(wire::target::To::Service(wire::ServiceRef {
                namespace: "shop".to_owned(),
                hostname: host.to_owned(),
                port: 0,
            })),
        }
    }

    /// Encoded, and then with a text that is none (field 1 of the origin): it cannot be decoded.
    fn broken(kind: Kind) -> Bytes {
        let resource = wire::Resource {
            key: "any".to_owned(),
            origin: None,
            kind: Some(kind),
        };
        let mut encoded = resource.encode_to_vec();
        encoded.extend_from_slice(&[2 << 3 | 2, 3, 1 << 3 | 2, 1, 0xff]);
        assert!(wire::Resource::decode(&*encoded).is_err());
        encoded.into()
    }

    #[test]
    fn what_it_was_for_is_found_whatever_is_wrong_elsewhere() {
        let route = |matches: Vec<wire::Match>| {
            Kind::Route(wire::Route {
                parents: vec![to("web")],
                matches,
                ..Default::default()
            })
        };
        let one = wire::Match {
            port: 80,
            ..Default::default()
        };
        let closed = closing("httproute/shop/r/0", &broken(route(vec![one.clone()])), "x");
        let Some(Kind::Route(found)) = closed.kind else {
            panic!("{:?}", closed.kind)
        };
        assert_eq!((found.parents, found.matches), (vec![to("web")], vec![one]));
        assert_eq!(found.precedence, 0);
        let closed = closing("httproute/shop/r/0", &broken(route(vec![])), "x");
        assert!(matches!(closed.kind, Some(Kind::Route(it)) if it.precedence == 1));
        let policy = broken(Kind::Authorization(wire::Authorization {
            targets: vec![to("web")],
            ..Default::default()
        }));
        let closed = closing("authorizationpolicy/shop/p", &policy, "why");
        let Some(Kind::Authorization(found)) = closed.kind else {
            panic!("{:?}", closed.kind)
        };
        assert_eq!(found.targets, [to("web")]);
        assert_eq!(found.invalid, "why");
    }

    #[test]
    fn what_says_nothing_of_what_it_was_for_is_for_all() {
        let noise = Bytes::from_static(&[0xff; 9]);
        for key in ["httproute/a/r/0", "ratelimitpolicy/a/p/0", "tlsroute/a/r/0"] {
            let closed = closing(key, &noise, "x");
            let mut gateway = 0;
            mesh::ties(&closed, |tie| {
                gateway += usize::from(tie == mesh::Tie::Gateway)
            });
            assert_eq!(gateway, 1, "{key}");
        }
        let key = "destinationrule/a/d/shop/web.shop.svc.cluster.local:80/v1";
        let closed = closing(key, &noise, "x");
        let Some(Kind::BackendPolicy(policy)) = closed.kind else {
            panic!("{:?}", closed.kind)
        };
        let service = policy.service.unwrap();
        assert_eq!(service.hostname, "web.shop.svc.cluster.local");
        assert!(closing("telemetry/a/t", &noise, "x").kind.is_none());
    }
}
