//! What rate limit services are asked, and what their answers mean.

use std::time::{Duration, Instant};

use api::rate_limit::rate_limit_response::rate_limit::Unit;
use api::rate_limit::rate_limit_response::{Code, DescriptorStatus, RateLimit};
use api::rate_limit::{HeaderValue, RateLimitRequest, RateLimitResponse, RateLimitUnit};
use api::waypoint as wire;
use api::waypoint::limit_key::By;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use prost::Message;
use waypoint::limit::{Counted, Counter, Judged, Limiter};
use waypoint::service::Heard;

use crate::route::request::Request;

fn global(
    name: &str,
    requests: u64,
    seconds: u64,
    by: &[(By, &str)],
) -> (wire::Origin, wire::RateLimit) {
    let origin = wire::Origin {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        rule: "0".to_owned(),
        ..Default::default()
    };
    let keys = by.iter().map(|(by, name)| wire::LimitKey {
        by: (*by).into(),
        name: (*name).to_owned(),
        descriptor: String::new(),
    });
    let limit = wire::RateLimit {
        requests,
        window: seconds * 1_000,
        keys: keys.collect(),
        service: "provider/limits".to_owned(),
        domain: "shop".to_owned(),
        ..Default::default()
    };
    (origin, limit)
}

fn limiter(limits: &[(wire::Origin, wire::RateLimit)]) -> Result<Limiter, String> {
    let limits: Vec<_> = limits
        .iter()
        .map(|(origin, limit)| (origin, limit))
        .collect();
    Limiter::compile(&limits, None, Instant::now())
}

fn counter() -> Counter {
    Counter::compile(&wire::RateLimiter {
        service: Some(wire::ServiceRef {
            namespace: "shop".to_owned(),
            hostname: "counter.shop".to_owned(),
            port: 8081,
        }),
        timeout: 0,
    })
    .unwrap()
}

fn asked(limiter: &Limiter, request: &Request) -> Vec<RateLimitRequest> {
    let inquiries = limiter.inquiries(&request.asked());
    let questions = inquiries.iter().map(|inquiry| {
        let question = counter().asks(inquiry, &HeaderMap::new()).unwrap();
        let path = question.uri().path();
        assert_eq!(
            path,
            "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
        );
        RateLimitRequest::decode(question.into_body().slice(5..)).unwrap()
    });
    questions.collect()
}

#[test]
fn limits_of_one_domain_are_one_question_and_each_is_counted_apart() {
    let limiter = limiter(&[
        global("each", 5, 60, &[(By::Header, "x-user")]),
        global("all", 9, 1, &[]),
    ])
    .unwrap();
    let questions = asked(&limiter, &Request::to("/").header("x-user", "anna"));
    let [question] = questions.as_slice() else {
        panic!("{questions:?}")
    };
    assert_eq!(question.domain, "shop");
    let shown = |at: usize| {
        let descriptor = &question.descriptors[at];
        let entries = descriptor.entries.iter();
        let limit = descriptor.limit.as_ref().unwrap();
        let entries: Vec<_> = entries
            .map(|it| format!("{}={}", it.key, it.value))
            .collect();
        (entries.join(" "), limit.requests_per_unit, limit.unit())
    };
    assert_eq!(
        shown(0),
        (
            "limit=shop/each/0 x-user=anna".to_owned(),
            5,
            RateLimitUnit::Minute
        )
    );
    assert_eq!(
        shown(1),
        ("limit=shop/all/0".to_owned(), 9, RateLimitUnit::Second)
    );
}

#[test]
fn who_says_nothing_is_counted_and_who_says_much_is_told_in_short() {
    let limiter = limiter(&[global("each", 5, 60, &[(By::Header, "x-user")])]).unwrap();
    let value = |request: &Request| {
        asked(&limiter, request)[0].descriptors[0].entries[1]
            .value
            .clone()
    };
    assert_eq!(value(&Request::to("/")), "-");
    let long = "x".repeat(5_000);
    let told = value(&Request::to("/").header("x-user", &long));
    assert!(told.starts_with("sha256:") && told.len() == 71, "{told}");
}

#[test]
fn what_services_do_not_count_in_is_refused() {
    for (requests, seconds) in [(1, 10), (1, 0), (1 << 32, 1)] {
        assert!(limiter(&[global("bad", requests, seconds, &[])]).is_err());
    }
}

#[test]
fn an_answer_is_followed_only_where_it_is_one() {
    let limiter = limiter(&[global("one", 5, 60, &[]), global("two", 9, 1, &[])]).unwrap();
    let request = Request::to("/");
    let inquiries = limiter.inquiries(&request.asked());
    let hears = |answer: &RateLimitResponse, code: &'static str| -> Result<Counted, String> {
        let mut body = vec![0];
        body.extend((answer.encoded_len() as u32).to_be_bytes());
        body.extend(answer.encode_to_vec());
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/grpc".parse().unwrap());
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", code.parse().unwrap());
        counter().hears(
            &inquiries[0],
            &Heard {
                status: StatusCode::OK,
                headers: &headers,
                body: &Bytes::from(body),
                trailers: Some(&trailers),
            },
        )
    };
    let status = |code: Code, left: u32, seconds: i64| DescriptorStatus {
        code: code.into(),
        current_limit: Some(RateLimit {
            requests_per_unit: 9,
            unit: Unit::Hour.into(),
            name: String::new(),
        }),
        limit_remaining: left,
        duration_until_reset: Some(prost_types::Duration { seconds, nanos: 0 }),
    };
    let header = |key: &str| HeaderValue {
        key: key.to_owned(),
        value: "v".to_owned(),
        raw_value: Vec::new(),
    };
    let good = RateLimitResponse {
        overall_code: Code::Ok.into(),
        statuses: vec![status(Code::Ok, 7, 5), status(Code::Ok, 2, 9)],
        request_headers_to_add: vec![header("x-tier"), header("content-length")],
        ..Default::default()
    };
    let counted = hears(&good, "0").unwrap();
    let told = counted.told.unwrap();
    assert!(counted.passes && counted.request.len() == 1);
    assert_eq!((&*told.name, told.left), ("shop/two/0", 2));
    assert_eq!(told.window, Duration::from_secs(3600));

    let over = RateLimitResponse {
        overall_code: Code::OverLimit.into(),
        statuses: vec![status(Code::OverLimit, 0, 5), status(Code::Ok, 2, 9)],
        ..Default::default()
    };
    let counted = hears(&over, "0").unwrap();
    let told = counted.told.unwrap();
    assert!(!counted.passes && told.refused);
    assert_eq!(
        (&*told.name, told.after),
        ("shop/one/0", Duration::from_secs(5))
    );

    assert!(
        hears(&RateLimitResponse::default(), "0").is_err(),
        "it says nothing"
    );
    assert!(hears(&good, "14").is_err(), "it has failed");
    let bad = RateLimitResponse {
        response_headers_to_add: vec![header("bad name")],
        ..good
    };
    assert!(hears(&bad, "0").is_err());
}

#[test]
fn what_others_refuse_is_given_back() {
    let (origin, mut limit) = global("own", 1, 60, &[]);
    limit.service = String::new();
    let limiter = limiter(&[(origin, limit)]).unwrap();
    let (request, now) = (Request::to("/"), Instant::now());
    let asked = request.asked();
    assert!(matches!(limiter.judge(&asked, now), Judged::Pass(_)));
    limiter.give_back(&asked);
    assert!(matches!(limiter.judge(&asked, now), Judged::Pass(_)));
    assert!(matches!(limiter.judge(&asked, now), Judged::Refuse(_)));
}
