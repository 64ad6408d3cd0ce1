//! The roots in every namespace.

use super::*;

fn has_roots(roots: &str) -> impl Fn(&Value) -> bool + use<> {
    let roots = roots.to_owned();
    move |map| {
        map["data"][ROOTS_KEY] == *roots && map["metadata"]["labels"]["istio.io/config"] == "true"
    }
}

fn roots_of(namespace: &str) -> (&'static str, &str, &'static str) {
    ("configmaps", namespace, ROOTS_NAME)
}

#[tokio::test(start_paused = true)]
async fn roots_are_in_every_namespace_and_come_back_whatever_is_done_to_them() {
    let bench = bench();
    let roots = bench.ground.authority.roots();
    for namespace in ["alpha", "kube-system", "kube-public", "kube-node-lease"] {
        bench.fake.put("namespaces", "", namespace, json!({}));
    }
    let _writer = running(roots::write(bench.ground.clone()));
    for namespace in ["alpha", "kube-system"] {
        bench
            .fake
            .until(roots_of(namespace), has_roots(&roots))
            .await;
        let revoked = ("configmaps", namespace, "istio-ca-crl");
        bench
            .fake
            .until(revoked, |map| map["data"]["ca-crl.pem"] == "")
            .await;
    }
    bench.fake.put("namespaces", "", "new", json!({}));
    bench.fake.until(roots_of("new"), has_roots(&roots)).await;

    let labels = json!({"istio.io/config": "true"});
    let tampered = json!({"metadata": {"labels": labels}, "data": {ROOTS_KEY: "evil"}});
    bench.fake.put("configmaps", "alpha", ROOTS_NAME, tampered);
    bench.fake.until(roots_of("alpha"), has_roots(&roots)).await;
    bench.fake.remove("configmaps", "alpha", ROOTS_NAME);
    bench.fake.until(roots_of("alpha"), has_roots(&roots)).await;
    for left_out in ["kube-public", "kube-node-lease"] {
        assert_eq!(bench.fake.object("configmaps", left_out, ROOTS_NAME), None);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_right_is_not_written_and_new_roots_are_written_everywhere() {
    let bench = bench();
    for number in 0..40 {
        bench
            .fake
            .put("namespaces", "", &format!("n{number}"), json!({}));
    }
    let first = running(roots::write(bench.ground.clone()));
    for number in 0..40 {
        let roots = has_roots(&bench.ground.authority.roots());
        bench
            .fake
            .until(roots_of(&format!("n{number}")), roots)
            .await;
    }
    drop(first);
    bench
        .fake
        .until(("configmaps", "n39", "istio-ca-crl"), |map| !map.is_null())
        .await;
    bench.fake.writes();
    // The next leader finds everything as it should be.
    let _second = running(roots::write(bench.ground.clone()));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(bench.fake.writes(), Vec::<String>::new());

    let file = bench.directory.path().join("root-cert.pem");
    let mut both = std::fs::read_to_string(&file).unwrap();
    both.push_str(&other_root());
    std::fs::write(&file, both).unwrap();
    assert!(bench.ground.authority.reload().unwrap());
    for number in 0..40 {
        let roots = has_roots(&bench.ground.authority.roots());
        bench
            .fake
            .until(roots_of(&format!("n{number}")), roots)
            .await;
    }
    assert_eq!(bench.fake.writes().len(), 40, "the CRLs did not change");
}

fn other_root() -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().pem()
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_refuses_does_not_hold_up_the_others_and_one_that_goes_is_no_failure() {
    let bench = bench();
    let roots = bench.ground.authority.roots();
    let tries = Arc::new(AtomicUsize::new(0));
    let tried = tries.clone();
    bench.fake.refuse(move |method, path| {
        let bad = *method == http::Method::PATCH && path.contains("/bad/");
        tried.fetch_add(usize::from(bad), Ordering::SeqCst);
        bad.then_some(500)
    });
    for namespace in ["bad", "good"] {
        bench.fake.put("namespaces", "", namespace, json!({}));
    }
    let leaving = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    bench.fake.put("namespaces", "", "leaving", leaving);
    let _writer = running(roots::write(bench.ground.clone()));
    bench.fake.until(roots_of("good"), has_roots(&roots)).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let writes = bench.fake.writes();
    // Two ConfigMaps, with pauses that double up to a minute.
    let tries = tries.load(Ordering::SeqCst);
    assert!((20..50).contains(&tries), "{tries}");
    assert!(
        !writes.iter().any(|it| it.contains("/leaving/")),
        "{writes:?}"
    );
    bench.fake.refuse_nothing();
    bench.fake.until(roots_of("bad"), has_roots(&roots)).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_keeps_changing_the_roots_back_does_not_get_us_into_a_race() {
    let bench = bench();
    let roots = bench.ground.authority.roots();
    bench.fake.put("namespaces", "", "alpha", json!({}));
    let _writer = running(roots::write(bench.ground.clone()));
    let fake = bench.fake.clone();
    let _rival = running(async move {
        loop {
            fake.until(roots_of("alpha"), has_roots(&roots)).await;
            let theirs = json!({"data": {ROOTS_KEY: "theirs"}});
            fake.put("configmaps", "alpha", ROOTS_NAME, theirs);
        }
    });
    tokio::time::sleep(Duration::from_secs(600)).await;
    let writes = bench.fake.writes();
    let ours = writes.iter().filter(|it| it.contains(ROOTS_NAME)).count();
    assert!((8..40).contains(&ours), "{ours}");
}
