//! Of `waypoint::permission`: what authorizers are asked, and what their answers mean.

#[path = "permission/grpc.rs"]
mod grpc;
#[path = "permission/plain.rs"]
mod plain;

use std::time::{Duration, SystemTime};

use api::waypoint as wire;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use waypoint::client::Client;
use waypoint::permission::{Allowed, Answered, Authorizer, Heard, Names, Question, Sample};

/// A request that somebody is asked about.
struct Case {
    head: Parts,
    client: Client,
    token: Option<HeaderValue>,
    body: Option<Sample>,
}

impl Case {
    fn of(request: http::request::Builder) -> Self {
        Self {
            head: request.body(()).unwrap().into_parts().0,
            client: Client {
                identity: Some("spiffe://cluster.local/ns/shop/sa/client".parse().unwrap()),
                address: ([10, 0, 0, 1], 4321).into(),
                peer: [10, 0, 0, 1].into(),
                workload: None,
                said: Default::default(),
            },
            token: None,
            body: None,
        }
    }

    fn body(mut self, bytes: &'static [u8], whole: bool) -> Self {
        let bytes = Bytes::from_static(bytes);
        self.body = Some(Sample { bytes, whole });
        self
    }

    fn asks(&self, authorizer: &Authorizer) -> Result<Request<Bytes>, String> {
        authorizer.asks(&Question {
            head: &self.head,
            authority: "web.shop:80",
            token: self.token.as_ref(),
            client: &self.client,
            destination: ([10, 96, 0, 1], 80).into(),
            own: "spiffe://cluster.local/ns/shop/sa/way",
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1500),
            body: self.body.as_ref(),
        })
    }
}

fn authorizer(change: impl FnOnce(&mut wire::Authorizer)) -> Result<Authorizer, String> {
    let mut wire = wire::Authorizer {
        service: Some(wire::ServiceRef {
            namespace: "auth".to_owned(),
            hostname: "Judge.auth".to_owned(),
            port: 9000,
        }),
        ..Default::default()
    };
    change(&mut wire);
    Authorizer::compile(&wire)
}

fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &'static str)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    };
    fields.iter().map(field).collect()
}

fn hears(
    authorizer: &Authorizer,
    status: u16,
    said: &[(&'static str, &'static str)],
    body: &[u8],
    trailers: Option<&HeaderMap>,
) -> Result<Answered, String> {
    authorizer.hears(&Heard {
        status: StatusCode::from_u16(status).unwrap(),
        headers: &headers(said),
        body: &Bytes::copy_from_slice(body),
        trailers,
    })
}

/// A request's headers after a permission.
fn applied(answered: Answered, before: &[(&'static str, &'static str)]) -> Vec<String> {
    let Answered::Allowed(allowed) = answered else {
        panic!("{answered:?}")
    };
    let mut after = headers(before);
    allowed.apply(&mut after);
    shown(&after)
}

fn shown(headers: &HeaderMap) -> Vec<String> {
    let field = |(name, value): (&HeaderName, &HeaderValue)| {
        format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))
    };
    let mut shown: Vec<_> = headers.iter().map(field).collect();
    shown.sort();
    shown
}

#[test]
fn what_is_not_said_is_as_the_contract_says() {
    let it = authorizer(|_| {}).unwrap();
    assert_eq!(it.timeout, Duration::from_millis(600));
    assert_eq!(it.on_error, StatusCode::FORBIDDEN);
    assert!(!it.fail_open && it.body.is_none());
    assert_eq!(&*it.service.hostname, "judge.auth");
}

#[test]
fn who_cannot_be_understood_is_nobody() {
    let wrong: [fn(&mut wire::Authorizer); 6] = [
        |it| it.service = None,
        |it| it.status_on_error = 99,
        |it| it.status_on_error = 70_000,
        |it| it.send_headers = vec!["a b".to_owned()],
        |it| (it.http, it.path_prefix) = (true, "check".to_owned()),
        |it| {
            it.http = true;
            it.add_headers = vec![wire::Header {
                name: "x".to_owned(),
                value: "a\nb".to_owned(),
            }];
        },
    ];
    for (number, change) in wrong.into_iter().enumerate() {
        assert!(authorizer(change).is_err(), "{number}");
    }
}

#[test]
fn lists_of_names_are_read_as_istio_writes_them() {
    let list = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        Names::compile(&names)
    };
    let names = list(&["X-User", "x-auth-*", "*-id"]).unwrap();
    for (name, has) in [
        ("x-user", true),
        ("x-user-name", false),
        ("x-auth-", true),
        ("x-auth-a", true),
        ("x-request-id", true),
        ("id", false),
    ] {
        assert_eq!(names.has(&HeaderName::from_static(name)), has, "{name}");
    }
    // All of them, but for what is about the message itself.
    let all = list(&["*"]).unwrap();
    let kind = HeaderName::from_static("content-type");
    assert!(all.has(&kind) && !all.takes(&kind));
    assert!(list(&["content-type"]).unwrap().takes(&kind));
    for wrong in ["", "a*b", "**", "a b"] {
        assert!(list(&[wrong]).is_err(), "{wrong}");
    }
}

proptest::proptest! {
    #[test]
    fn noise_is_no_permission_and_harms_nobody(
        body: Vec<u8>,
        prefix: bool,
        status in 200_u16..600,
        code in "[0-9]{0,2}",
    ) {
        let mut noise = body;
        if prefix {
            let length = (noise.len() as u32).to_be_bytes();
            noise.splice(..0, [0].into_iter().chain(length));
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_str(&code).unwrap());
        let kind = [("content-type", "application/grpc")];
        let judge = authorizer(|_| {}).unwrap();
        let answered = hears(&judge, status, &kind, &noise, Some(&trailers));
        let good = status == 200 && code == "0" && prefix;
        proptest::prop_assert!(good || answered.is_err(), "{answered:?}");
    }
}
