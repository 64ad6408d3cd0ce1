//! Where requests go, by weight.

use std::collections::HashMap;

use api::waypoint::backend::To;
use api::waypoint::{Backend, ServiceRef};
use proptest::collection::vec;
use proptest::prelude::*;
use waypoint::route::{Backends, Picked};

fn backend(name: &str, weight: u32) -> Backend {
    Backend {
        to: Some(To::Service(ServiceRef {
            namespace: "shop".into(),
            hostname: format!("{name}.shop.svc.cluster.local"),
            port: 80,
        })),
        weight,
        ..Backend::default()
    }
}

fn invalid(why: &str, weight: u32) -> Backend {
    Backend {
        to: Some(To::Invalid(why.into())),
        weight,
        ..Backend::default()
    }
}

/// How many of `steps` evenly spread draws go where.
fn shares(backends: &Backends, steps: u64) -> HashMap<String, u64> {
    let mut shares = HashMap::new();
    for step in 0..steps {
        let name = match backends.pick(u64::MAX / steps * step + u64::MAX / steps / 2) {
            Picked::Backend(backend) => backend.service.hostname.split('.').next().unwrap(),
            Picked::Invalid(why) => why,
            Picked::Nothing => "nothing",
        };
        *shares.entry(name.to_owned()).or_default() += 1;
    }
    shares
}

#[test]
fn each_gets_the_share_its_weight_says() {
    let backends = [backend("a", 70), backend("b", 30), backend("c", 0)];
    let shares = shares(&Backends::compile(&backends).unwrap(), 1000);
    assert_eq!(
        shares,
        HashMap::from([("a".into(), 700), ("b".into(), 300)])
    );
}

#[test]
fn an_invalid_one_keeps_its_share() {
    let backends = [backend("a", 1), invalid("no such service", 3)];
    let shares = shares(&Backends::compile(&backends).unwrap(), 1000);
    let expected = HashMap::from([("a".into(), 250), ("no such service".into(), 750)]);
    assert_eq!(shares, expected);
}

#[test]
fn no_weight_at_all_is_nothing() {
    for backends in [vec![], vec![backend("a", 0), invalid("gone", 0)]] {
        let compiled = Backends::compile(&backends).unwrap();
        assert!(matches!(compiled.pick(7), Picked::Nothing));
        assert_eq!(compiled.named(), backends.len());
    }
}

#[test]
fn weights_of_the_largest_size_do_not_overflow() {
    let backends: Vec<_> = (0..16).map(|_| backend("a", u32::MAX)).collect();
    let compiled = Backends::compile(&backends).unwrap();
    for draw in [0, 1, u64::MAX / 2, u64::MAX] {
        assert!(matches!(compiled.pick(draw), Picked::Backend(_)));
    }
}

#[test]
fn a_backend_that_is_nothing_is_refused() {
    assert!(
        Backends::compile(&[Backend {
            weight: 1,
            ..Backend::default()
        }])
        .is_err()
    );
}

proptest! {
    #[test]
    fn shares_are_never_off_by_more_than_rounding(weights in vec(0u32..50, 1..6)) {
        let backends: Vec<_> = weights.iter().enumerate()
            .map(|(number, weight)| backend(&number.to_string(), *weight))
            .collect();
        let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        prop_assume!(sum > 0);
        let shares = shares(&Backends::compile(&backends).unwrap(), sum * 100);
        for (number, weight) in weights.iter().enumerate() {
            let got = shares.get(&number.to_string()).copied().unwrap_or(0);
            let wanted = u64::from(*weight) * 100;
            prop_assert!(got.abs_diff(wanted) <= 1, "{got} for {wanted}");
        }
    }
}
