//! Trouble, on purpose, and shares.

use std::time::Duration;

use api::waypoint as wire;
use api::waypoint::filter::Filter as Kind;
use proptest::prelude::*;
use waypoint::filter::{Fraction, Reason, grpc_code};

use super::{ABOUT, compile, filters, get};

fn fraction(numerator: u32, denominator: u32) -> Option<wire::Fraction> {
    Some(wire::Fraction {
        numerator,
        denominator,
    })
}

fn fault() -> wire::Fault {
    wire::Fault {
        delay: 2000,
        delayed: fraction(10, 0),
        status: 418,
        aborted: fraction(1, 1000),
        grpc_status: None,
    }
}

#[test]
fn each_share_is_drawn_for_itself() {
    let filters = filters([Kind::Fault(fault())]);
    let run = |draws: [u64; 2]| {
        let mut draws = draws.into_iter();
        let passed = filters.request(&mut get("/"), &ABOUT, || draws.next().unwrap());
        (
            passed.delay,
            passed.answer.map(|answer| answer.status.as_u16()),
        )
    };
    let waits = Some(Duration::from_secs(2));
    assert_eq!(run([0, 0]), (waits, Some(418)));
    assert_eq!(run([0, u64::MAX]), (waits, None));
    assert_eq!(run([u64::MAX, 0]), (None, Some(418)));
    assert_eq!(run([u64::MAX, u64::MAX]), (None, None));
    assert_eq!(run([u64::MAX / 10, u64::MAX / 1000]), (waits, Some(418)));
    assert_eq!(run([u64::MAX / 10 + 1, u64::MAX / 1000 + 1]), (None, None));
}

#[test]
fn an_abort_is_one_that_grpc_understands() {
    let mut call = get("/");
    call.headers
        .insert("content-type", "application/grpc".parse().unwrap());
    let cases = [
        (
            wire::Fault {
                status: 503,
                aborted: None,
                ..wire::Fault::default()
            },
            "14",
        ),
        (
            wire::Fault {
                grpc_status: Some(8),
                ..wire::Fault::default()
            },
            "8",
        ),
    ];
    for (fault, code) in cases {
        let filters = filters([Kind::Fault(fault)]);
        let answer = filters
            .request(&mut call, &ABOUT, || u64::MAX)
            .answer
            .unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers["grpc-status"], code);
        assert_eq!(answer.headers["grpc-message"], "fault filter abort");
        assert_eq!(answer.headers["content-type"], "application/grpc");
        assert_eq!(answer.reason, Reason::Fault);
        assert!(answer.body.is_empty());
    }
}

#[test]
fn statuses_become_codes_as_grpc_says() {
    let table = [
        (400, 13),
        (401, 16),
        (403, 7),
        (404, 12),
        (429, 14),
        (502, 14),
        (503, 14),
        (504, 14),
        (500, 2),
        (302, 2),
    ];
    for (status, code) in table {
        assert_eq!(grpc_code(http::StatusCode::from_u16(status).unwrap()), code);
    }
}

#[test]
fn what_is_no_fault_is_refused() {
    for bad in [
        wire::Fault {
            status: 99,
            ..wire::Fault::default()
        },
        wire::Fault {
            status: 600,
            ..wire::Fault::default()
        },
        wire::Fault {
            delay: 1,
            delayed: fraction(101, 0),
            ..wire::Fault::default()
        },
        wire::Fault {
            status: 500,
            aborted: fraction(2, 1),
            ..wire::Fault::default()
        },
    ] {
        assert!(compile([Kind::Fault(bad)]).is_err(), "{bad:?}");
    }
    let nothing = filters([Kind::Fault(wire::Fault::default())]);
    let passed = nothing.request(&mut get("/"), &ABOUT, || 0);
    assert!(passed.answer.is_none() && passed.delay.is_none());
}

proptest! {
    #[test]
    fn a_share_holds_for_as_many_draws_as_it_says(numerator in 0u32..=100) {
        let fraction = Fraction::compile(fraction(numerator, 0).as_ref()).unwrap();
        let draws = (0..1000u64).map(|step| u64::MAX / 1000 * step + u64::MAX / 2000);
        let hits = draws.filter(|draw| fraction.holds(*draw)).count();
        prop_assert_eq!(hits, numerator as usize * 10);
    }
}
