//! Which trace a request belongs to.

use http::HeaderMap;
use http::header::HeaderName;
use proptest::prelude::*;
use waypoint::report::trace::{Form, Trace};

const ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| {
        let name: HeaderName = name.parse().unwrap();
        (name, value.parse().unwrap())
    };
    pairs.iter().map(pair).collect()
}

fn begin(pairs: &[(&str, &str)], percent: f64) -> Trace {
    Trace::begin(&headers(pairs), Form::W3c, percent, [1, 2, 3, 1 << 60])
}

#[test]
fn what_a_client_says_is_kept() {
    let w3c = format!("00-{ID}-{SPAN}-01");
    let rows: [(&[(&str, &str)], bool); 9] = [
        (&[("traceparent", &w3c)], true),
        (&[("traceparent", &format!("00-{ID}-{SPAN}-00"))], false),
        (
            &[(
                "traceparent",
                &format!("cc-{ID}-{SPAN}-01-what-comes-later"),
            )],
            true,
        ),
        (&[("b3", &format!("{ID}-{SPAN}-1"))], true),
        (&[("b3", &format!("{ID}-{SPAN}-0-{SPAN}"))], false),
        (&[("b3", &format!("{ID}-{SPAN}-d"))], true),
        (
            &[
                ("x-b3-traceid", ID),
                ("x-b3-spanid", SPAN),
                ("x-b3-sampled", "1"),
            ],
            true,
        ),
        (
            &[
                ("x-b3-traceid", ID),
                ("x-b3-spanid", SPAN),
                ("x-b3-flags", "1"),
            ],
            true,
        ),
        (
            &[
                ("x-b3-traceid", ID),
                ("x-b3-spanid", SPAN),
                ("x-b3-sampled", "0"),
            ],
            false,
        ),
    ];
    for (pairs, sampled) in rows {
        for percent in [0.0, 100.0] {
            let trace = begin(pairs, percent);
            assert_eq!(trace.id().to_string(), ID, "{pairs:?}");
            assert_eq!(trace.parent().unwrap().to_string(), SPAN);
            assert_eq!(trace.sampled(), sampled, "{pairs:?}: decided already");
        }
    }
}

#[test]
fn an_open_decision_is_ours() {
    for pairs in [
        &[("b3", &*format!("{ID}-{SPAN}"))][..],
        &[("x-b3-traceid", ID), ("x-b3-spanid", SPAN)],
        &[],
    ] {
        assert!(!begin(pairs, 0.0).sampled() && begin(pairs, 100.0).sampled());
    }
}

#[test]
fn what_is_malformed_begins_a_new_trace() {
    for (name, value) in [
        ("traceparent", format!("00-{ID}-{SPAN}-01-more")),
        ("traceparent", format!("ff-{ID}-{SPAN}-01")),
        ("traceparent", format!("00-{}-{SPAN}-01", "0".repeat(32))),
        ("traceparent", format!("00-{ID}-{}-01", "0".repeat(16))),
        ("traceparent", format!("00-{}-{SPAN}-01", ID.to_uppercase())),
        ("traceparent", format!("00-{ID}-{SPAN}")),
        ("traceparent", "rubbish".to_owned()),
        ("b3", "0".to_owned()),
        ("b3", format!("{}-{SPAN}-1", &ID[1..])),
        ("x-b3-traceid", ID.to_owned()),
    ] {
        let trace = begin(&[(name, &value)], 0.0);
        assert!(
            trace.parent().is_none() && trace.id().to_string() != ID,
            "{name}: {value}"
        );
    }
}

#[test]
fn a_decision_is_kept_also_where_the_trace_is_yet_to_begin() {
    for (name, value, sampled) in [
        ("b3", "0", false),
        ("b3", "1", true),
        ("b3", "d", true),
        ("x-b3-sampled", "0", false),
        ("x-b3-sampled", "1", true),
        ("x-b3-flags", "1", true),
    ] {
        let percent = if sampled { 0.0 } else { 100.0 };
        let trace = begin(&[(name, value)], percent);
        assert!(trace.parent().is_none(), "{name}: {value}");
        assert_eq!(trace.sampled(), sampled, "{name}: {value}");
    }
}

#[test]
fn upstream_is_told_in_the_clients_form() {
    let told = |pairs: &[(&str, &str)]| {
        let trace = begin(pairs, 100.0);
        let mut out = headers(pairs);
        trace.write(&mut out);
        let text = |name: &str| {
            out.get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        (
            trace,
            text("traceparent"),
            text("b3"),
            text("x-b3-spanid"),
            text("x-b3-parentspanid"),
        )
    };
    let (trace, w3c, b3, ..) = told(&[("traceparent", &format!("00-{ID}-{SPAN}-01"))]);
    assert_eq!(
        (w3c, b3),
        (Some(format!("00-{ID}-{}-01", trace.span())), None)
    );
    let (trace, w3c, b3, ..) = told(&[("b3", &format!("{ID}-{SPAN}-1"))]);
    assert_eq!(
        (w3c, b3),
        (None, Some(format!("{ID}-{}-1-{SPAN}", trace.span())))
    );
    let (trace, _, _, span, parent) = told(&[("x-b3-traceid", ID), ("x-b3-spanid", SPAN)]);
    assert_eq!(
        (span, parent),
        (Some(trace.span().to_string()), Some(SPAN.to_owned()))
    );
    let (trace, w3c, ..) = told(&[]);
    assert_eq!(w3c, Some(format!("00-{}-{}-01", trace.id(), trace.span())));
}

#[test]
fn ids_of_eight_bytes_are_understood() {
    let trace = begin(&[("b3", &format!("{SPAN}-{SPAN}-1"))], 0.0);
    assert_eq!(trace.id().to_string(), format!("{}{SPAN}", "0".repeat(16)));
}

#[test]
fn as_many_are_sampled_as_asked() {
    let draw = |nth: u64| nth.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for percent in [0.0, 1.0, 12.5, 99.0, 100.0] {
        let sampled = (0..10_000).filter(|nth| {
            Trace::begin(&HeaderMap::new(), Form::W3c, percent, [1, 2, 3, draw(*nth)]).sampled()
        });
        let due = percent * 100.0;
        let found = sampled.count() as f64;
        assert!((found - due).abs() <= 20.0, "{percent}: {found}");
    }
}

proptest! {
    #[test]
    fn whatever_is_said_is_read_without_panic_and_told_well_formed(
        name in prop::sample::select(vec!["traceparent", "b3", "x-b3-traceid", "x-b3-spanid"]),
        value in "[0-9a-f-]{0,70}|[ -~]{0,80}",
        draws in any::<[u64; 4]>(),
    ) {
        let trace = Trace::begin(&headers(&[(name, &value)]), Form::W3c, 50.0, draws);
        let mut out = HeaderMap::new();
        trace.write(&mut out);
        let again = Trace::begin(&out, Form::W3c, 0.0, [0; 4]);
        prop_assert_eq!(again.id(), trace.id());
        prop_assert_eq!(again.parent(), Some(trace.span()));
        prop_assert_eq!(again.sampled(), trace.sampled());
        prop_assert_ne!(trace.id().0, 0);
    }
}
