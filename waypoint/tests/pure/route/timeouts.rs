//! How long a request may take.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use waypoint::route::{Deadlines, Limit, Timeouts, grpc_timeout};

fn asks(timeout: &str) -> HeaderMap {
    let value = HeaderValue::from_str(timeout).unwrap();
    HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), value)])
}

#[test]
fn a_grpc_timeout_is_digits_and_a_unit() {
    let cases = [
        ("1H", Some(Duration::from_secs(3600))),
        ("2M", Some(Duration::from_secs(120))),
        ("3S", Some(Duration::from_secs(3))),
        ("4m", Some(Duration::from_millis(4))),
        ("5u", Some(Duration::from_micros(5))),
        ("6n", Some(Duration::from_nanos(6))),
        ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
        ("0S", Some(Duration::ZERO)),
        ("123456789S", None),
        ("S", None),
        ("", None),
        ("1", None),
        ("1s", None),
        ("-1S", None),
        ("1.5S", None),
        (" 1S", None),
    ];
    for (text, expected) in cases {
        assert_eq!(grpc_timeout(&asks(text)), expected, "{text:?}");
    }
    assert_eq!(grpc_timeout(&HeaderMap::new()), None);
}

#[test]
fn what_a_rule_does_not_say_is_the_proxys_to_say() {
    let seconds = |number| Some(Duration::from_secs(number));
    let defaults = Deadlines {
        request: seconds(15),
        attempt: None,
        idle: seconds(300),
    };
    let none = HeaderMap::new();
    assert_eq!(Timeouts::compile(None).of(&none, defaults, None), defaults);
    let wire = api::waypoint::Timeouts {
        request: 500,
        backend: 900,
        no_request_limit: false,
        ..Default::default()
    };
    let of = Timeouts::compile(Some(&wire)).of(&none, defaults, None);
    assert_eq!(of.request, Some(Duration::from_millis(500)));
    assert_eq!(of.attempt, of.request, "a try is no longer than the whole");
    let wire = api::waypoint::Timeouts {
        no_request_limit: true,
        no_backend_limit: true,
        ..wire
    };
    let unlimited = Timeouts::compile(Some(&wire));
    assert_eq!(unlimited.request, Limit::Unlimited);
    let of = unlimited.of(&none, defaults, seconds(2));
    assert_eq!((of.request, of.attempt), (None, seconds(2)));
}

#[test]
fn a_grpc_client_can_ask_for_less_time_but_not_for_more() {
    let limit = Timeouts {
        request: Limit::After(Duration::from_secs(2)),
        ..Timeouts::default()
    };
    let request = |text: &str| limit.of(&asks(text), Deadlines::default(), None).request;
    assert_eq!(request("1S"), Some(Duration::from_secs(1)));
    assert_eq!(request("9S"), Some(Duration::from_secs(2)));
    let open = Timeouts::default().of(&asks("9S"), Deadlines::default(), None);
    assert_eq!(open.request, Some(Duration::from_secs(9)));
}
