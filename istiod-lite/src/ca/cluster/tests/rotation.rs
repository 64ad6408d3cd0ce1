//! A new signer, and what must come before it.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_root_is_rotated_in_three_steps_and_each_step_left_out_is_refused() {
    let mesh = Mesh::new();
    let (old, new) = (root("old"), root("new"));
    let (one, two) = (signer(&old, 90 * DAY), signer(&new, 90 * DAY));
    let both = old.pem() + &new.pem();
    mesh.secret("cacerts", cacerts(&one, &old.pem()));
    let authority = mesh.open(None).await;
    let mut changes = authority.changed();

    // Before the first: nobody knows the new root.
    mesh.secret("cacerts", cacerts(&two, &both));
    mesh.settle().await;
    assert!(mesh.is_refusing() && !changes.has_changed().unwrap());
    mesh.secret("cacerts", cacerts(&one, &both));
    mesh.settle().await;
    assert!(!mesh.is_refusing() && changes.has_changed().unwrap());
    changes.mark_unchanged();
    assert_eq!(count(&authority), 2);
    // Before the third: certificates of the old root are in use.
    mesh.secret("cacerts", cacerts(&two, &new.pem()));
    mesh.settle().await;
    assert!(mesh.is_refusing() && !changes.has_changed().unwrap());
    mesh.secret("cacerts", cacerts(&two, &both));
    mesh.settle().await;
    assert!(!mesh.is_refusing() && count(&authority) == 2);
    mesh.secret("cacerts", cacerts(&two, &new.pem()));
    mesh.settle().await;
    assert!(!mesh.is_refusing());
    assert_eq!(authority.roots(), new.pem().replace("\r\n", "\n"));
}

#[tokio::test(start_paused = true)]
async fn a_signer_that_came_before_its_root_is_not_swapped_in_the_moment_the_root_is_told() {
    let mesh = Mesh::new();
    let authority = mesh.open(None).await;
    let own = authority.roots();
    let company = root("company");
    mesh.secret(
        "cacerts",
        cacerts(&signer(&company, 90 * DAY), &company.pem()),
    );
    mesh.settle().await;
    assert!(mesh.is_refusing());
    // The mesh's settings tell both roots; this much is done, whoever signs.
    let told = settings(&[&company.pem(), &own]);
    mesh.fake.put("configmaps", NAMESPACE, "istio", told);
    mesh.settle().await;
    assert_eq!(
        (count(&authority), signs(&authority)),
        (2, "O=cluster.local".into())
    );
    assert!(mesh.is_refusing());
    // Written again by who knows that all proxies have it.
    let mut again = mesh.fake.object("secrets", NAMESPACE, "cacerts").unwrap();
    again["metadata"]["annotations"] = json!({"ambit.io/swap": "now"});
    mesh.secret("cacerts", again);
    mesh.settle().await;
    assert_eq!(
        (count(&authority), signs(&authority)),
        (2, "O=signer".into())
    );
    assert!(!mesh.is_refusing());
    mesh.fake.remove("configmaps", NAMESPACE, "istio");
    mesh.settle().await;
    assert_eq!(count(&authority), 1);
}

#[tokio::test(start_paused = true)]
async fn whatever_is_wrong_with_the_settings_the_roots_that_they_told_stay() {
    let mesh = Mesh::new();
    let (one, two, three) = (root("one").pem(), root("two").pem(), root("three").pem());
    let told = |settings| mesh.fake.put("configmaps", NAMESPACE, "istio", settings);
    told(settings(&[&one, &two]));
    let authority = mesh.open(None).await;
    mesh.settle().await;
    assert_eq!(count(&authority), 3);
    let has = |root: &str| authority.roots().contains(root.trim());
    for (what, wrong) in [
        ("no YAML", json!({"data": {"mesh": "caCertificates: [}"}})),
        ("no list", json!({"data": {"mesh": "caCertificates: none"}})),
        ("one is no certificate", settings(&[&one, "-----BEGIN"])),
    ] {
        told(wrong);
        mesh.settle().await;
        assert_eq!(count(&authority), 3, "{what}");
        assert!(has(&one) && has(&two), "{what}");
    }
    // One that is new counts beside them; what was meant is done once all can be read.
    told(settings(&[&three, "-----BEGIN"]));
    mesh.settle().await;
    assert_eq!((count(&authority), has(&three)), (4, true));
    told(settings(&[&three]));
    mesh.settle().await;
    assert_eq!((count(&authority), has(&three)), (2, true));
    mesh.fake.remove("configmaps", NAMESPACE, "istio");
    mesh.settle().await;
    assert_eq!(count(&authority), 1);
}

#[tokio::test(start_paused = true)]
async fn whatever_is_wrong_with_a_new_secret_the_last_good_signer_stays() {
    let mesh = Mesh::new();
    let (root, stranger) = (root("company"), root("stranger").pem());
    let (certificate, key) = signer(&root, 90 * DAY);
    let good = cacerts(&(certificate.clone(), key.clone()), &root.pem());
    let (_, foreign) = signer(&root, 90 * DAY);
    let expired = signer(&root, -60);
    let mut garbled = good.clone();
    garbled["data"]["ca-cert.pem"] = "////".into();
    let mut with_crl = good.clone();
    with_crl["data"]["ca-crl.pem"] = data(&[(
        "x",
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
    )])["data"]["x"]
        .clone();
    let leaf = {
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::default().signed_by(&key, &root).unwrap();
        (leaf.pem(), key.serialize_pem())
    };
    let bad = [
        (
            "a foreign key",
            cacerts(&(certificate.clone(), foreign), &root.pem()),
        ),
        ("expired", cacerts(&expired, &root.pem())),
        (
            "no way to the root",
            cacerts(&(certificate, key), &stranger),
        ),
        ("not text", garbled),
        ("a leaf", cacerts(&leaf, &root.pem())),
        ("no CRL", with_crl),
        ("empty", data(&[])),
    ];
    mesh.secret("cacerts", good.clone());
    let authority = mesh.open(None).await;
    let before = authority.expiries();
    for (what, secret) in bad {
        mesh.secret("cacerts", secret);
        mesh.settle().await;
        assert!(mesh.is_refusing(), "{what}");
        assert_eq!(
            (authority.expiries(), count(&authority)),
            (before, 1),
            "{what}"
        );
        mesh.secret("cacerts", good.clone());
        mesh.settle().await;
        assert!(!mesh.is_refusing(), "{what}");
    }
    // Gone: no root of ours takes its place.
    mesh.fake.remove("secrets", NAMESPACE, "cacerts");
    mesh.settle().await;
    assert!(mesh.is_refusing());
    assert_eq!(authority.expiries(), before);
    assert_eq!(
        mesh.fake.object("secrets", NAMESPACE, "istio-ca-secret"),
        None
    );
}
