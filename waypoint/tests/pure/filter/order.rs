//! Filters beside each other.

use api::waypoint as wire;
use api::waypoint::backend::To;
use api::waypoint::filter::Filter as Kind;
use http::StatusCode;
use waypoint::filter::Reason;

use super::{ABOUT, compile, filters, get, header, run};

fn mirror(name: &str, fraction: Option<wire::Fraction>) -> Kind {
    Kind::Mirror(wire::Mirror {
        backend: Some(wire::Backend {
            to: Some(To::Service(wire::ServiceRef {
                namespace: "shop".into(),
                hostname: name.into(),
                port: 0,
            })),
            ..wire::Backend::default()
        }),
        fraction,
    })
}

fn set(name: &str, value: &str) -> Kind {
    Kind::RequestHeaders(wire::HeaderChange {
        set: vec![header(name, value)],
        ..wire::HeaderChange::default()
    })
}

#[test]
fn the_first_that_answers_ends_them() {
    let filters = filters([
        set("x", "1"),
        Kind::Redirect(wire::Redirect::default()),
        set("x", "2"),
        mirror("late", None),
    ]);
    let mut parts = get("/");
    let passed = run(&filters, &mut parts);
    assert_eq!(parts.headers["x"], "1");
    assert!(passed.answer.is_some() && passed.mirrors.is_empty());
}

#[test]
fn a_request_can_be_mirrored_several_times_each_with_its_share() {
    let half = Some(wire::Fraction {
        numerator: 50,
        denominator: 100,
    });
    let filters = filters([
        mirror("all", None),
        mirror("half", half),
        mirror(
            "none",
            Some(wire::Fraction {
                numerator: 0,
                denominator: 1,
            }),
        ),
    ]);
    let names = |draw: u64| {
        let passed = filters.request(&mut get("/"), &ABOUT, || draw);
        let names = passed.mirrors.iter();
        let names: Vec<_> = names
            .map(|it| it.backend.service.hostname.to_string())
            .collect();
        names
    };
    assert_eq!(names(0), ["all", "half"]);
    assert_eq!(names(u64::MAX), ["all"]);
}

#[test]
fn a_filter_that_nobody_knows_answers_500_and_says_which() {
    let filters = filters([Kind::Unknown("ExtensionRef Foo/bar".into())]);
    let answer = run(&filters, &mut get("/")).answer.unwrap();
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(&*answer.body, b"ExtensionRef Foo/bar");
    assert_eq!(answer.reason, Reason::Broken);
}

#[test]
fn a_direct_answer_is_given_as_written() {
    let filters = filters([Kind::DirectResponse(wire::DirectResponse {
        status: 503,
        body: b"closed for today".to_vec(),
        headers: vec![header("retry-after", "3600")],
    })]);
    let answer = run(&filters, &mut get("/")).answer.unwrap();
    assert_eq!(answer.status, 503);
    assert_eq!(&*answer.body, b"closed for today");
    assert_eq!(answer.headers["retry-after"], "3600");
    assert_eq!(answer.headers["content-type"], "text/plain");
    for status in [0, 99, 100, 1000] {
        let bad = wire::DirectResponse {
            status,
            ..wire::DirectResponse::default()
        };
        assert!(compile([Kind::DirectResponse(bad)]).is_err(), "{status}");
    }
}

#[test]
fn whoever_is_asked_first_is_named() {
    let filters = filters([Kind::Authorizer("provider/opa".into()), set("x", "1")]);
    let names: Vec<_> = filters.authorizers().collect();
    assert_eq!(names, ["provider/opa"]);
    assert!(compile([]).unwrap().is_empty());
}
