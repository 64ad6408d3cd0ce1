//! Signers that an operator plugs in as files.

use super::*;

/// root → intermediate → signer, as an organisation with a CA of its own plugs in.
struct Plugged {
    directory: tempfile::TempDir,
    root: CertifiedIssuer<'static, KeyPair>,
}

impl Plugged {
    fn new(key: fn() -> KeyPair) -> Self {
        let now = ASN1Time::now().timestamp();
        let root = root_params("root", now - 10, now + 100_000);
        let root = CertifiedIssuer::self_signed(root, key()).unwrap();
        let plugged = Self {
            directory: tempfile::tempdir().unwrap(),
            root,
        };
        plugged.plug(key, 50_000);
        plugged
    }

    /// A fresh intermediate and signer under the same root; returns the signer.
    fn plug(&self, key: fn() -> KeyPair, seconds: i64) -> Vec<u8> {
        self.plug_below(key, 90_000, seconds)
    }

    /// The same, with an intermediate that lasts for so many seconds.
    fn plug_below(&self, key: fn() -> KeyPair, middle: i64, seconds: i64) -> Vec<u8> {
        let now = ASN1Time::now().timestamp();
        let middle = root_params("middle", now - 10, now + middle);
        let middle = CertifiedIssuer::signed_by(middle, key(), &self.root).unwrap();
        let signing = key();
        let signer = root_params("signer", now - 10, now + seconds)
            .signed_by(&signing, &middle)
            .unwrap();
        // In the wrong order and with the root repeated, as one finds them.
        let chain = self.root.pem() + &middle.pem() + &signer.pem();
        for (name, text) in [
            ("ca-key.pem", signing.serialize_pem()),
            ("ca-cert.pem", signer.pem()),
            ("cert-chain.pem", chain),
            ("root-cert.pem", self.root.pem()),
        ] {
            fs::write(self.directory.path().join(name), text).unwrap();
        }
        signer.der().to_vec()
    }

    fn open(&self) -> Result<Authority, MaterialError> {
        let source = Source::PluggedIn(self.directory.path().into());
        Authority::open(source, "cluster.local".into(), Lifetimes::default())
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.directory.path().join(name), text).unwrap();
    }
}

fn rsa() -> KeyPair {
    KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap()
}

#[test]
fn a_plugged_in_chain_is_sent_from_the_signer_up_and_the_root_comes_last() {
    for key in [p256, rsa] {
        let plugged = Plugged::new(key);
        let authority = plugged.open().unwrap();
        let chain = authority.sign(&client(), &csr(&p256()), 0).unwrap();
        let ders: Vec<_> = chain.iter().map(|pem| der(pem)).collect();
        let chain: Vec<_> = ders.iter().map(|der| parsed(der)).collect();
        assert_eq!(chain.len(), 4);
        for pair in chain.windows(2) {
            assert_issued(&pair[1], &pair[0]);
        }
        assert_eq!(ders[3], plugged.root.der().to_vec());
    }
}

#[test]
fn a_leaf_never_outlives_its_signer() {
    let plugged = Plugged::new(p256);
    let signer = plugged.plug(p256, 600);
    let chain = plugged
        .open()
        .unwrap()
        .sign(&client(), &csr(&p256()), 86_400)
        .unwrap();
    let leaf = der(&chain[0]);
    assert_eq!(
        parsed(&leaf).validity().not_after,
        parsed(&signer).validity().not_after
    );
}

#[test]
fn a_leaf_never_outlives_who_stands_between_its_signer_and_the_root() {
    let plugged = Plugged::new(p256);
    plugged.plug_below(p256, 300, 600);
    let authority = plugged.open().unwrap();
    let chain = authority.sign(&client(), &csr(&p256()), 86_400).unwrap();
    let (leaf, middle) = (der(&chain[0]), der(&chain[2]));
    let [leaf, middle] = [&leaf, &middle].map(|it| parsed(it).validity().not_after);
    assert_eq!(leaf, middle);
    assert_eq!(authority.expiries().1, middle.timestamp());
}

#[test]
fn a_new_signer_is_taken_up_and_a_broken_one_is_not() {
    let plugged = Plugged::new(p256);
    let authority = plugged.open().unwrap();
    let mut changed = authority.changed();
    assert!(!authority.reload().unwrap());

    let signer = plugged.plug(p256, 50_000);
    assert!(authority.reload().unwrap());
    assert!(changed.has_changed().unwrap());
    changed.mark_unchanged();
    let chain = authority.sign(&client(), &csr(&p256()), 0).unwrap();
    assert_issued(&parsed(&signer), &parsed(&der(&chain[0])));

    // The key of a rotation arrived, its certificate not yet.
    plugged.write("ca-key.pem", &p256().serialize_pem());
    assert!(matches!(
        authority.reload(),
        Err(MaterialError::KeyMismatch(..))
    ));
    assert!(!changed.has_changed().unwrap());
    let chain = authority.sign(&client(), &csr(&p256()), 0).unwrap();
    assert_issued(&parsed(&signer), &parsed(&der(&chain[0])));
}

#[test]
fn roots_of_a_rotation_are_all_sent() {
    let plugged = Plugged::new(p256);
    let now = ASN1Time::now().timestamp();
    let next = root_params("next root", now, now + 1000)
        .self_signed(&p256())
        .unwrap();
    plugged.write("root-cert.pem", &(plugged.root.pem() + &next.pem()));
    let chain = plugged
        .open()
        .unwrap()
        .sign(&client(), &csr(&p256()), 0)
        .unwrap();
    let roots = chain.last().unwrap();
    assert_eq!(roots.matches("BEGIN CERTIFICATE").count(), 2);
    assert!(roots.ends_with("-----END CERTIFICATE-----\n"));
}

#[test]
fn files_that_do_not_belong_together_are_refused_by_name() {
    let other = root_params("other", 0, 4_000_000_000)
        .self_signed(&p256())
        .unwrap()
        .pem();
    type Case = (&'static str, fn(&Plugged, &str), fn(&MaterialError) -> bool);
    let cases: [Case; 6] = [
        (
            "no way to the root",
            |it, other| it.write("root-cert.pem", other),
            |e| matches!(e, MaterialError::NoPath { .. }),
        ),
        (
            "intermediate missing",
            |it, _| it.write("cert-chain.pem", ""),
            |e| matches!(e, MaterialError::NoPath { .. }),
        ),
        (
            "not PEM",
            |it, _| it.write("ca-cert.pem", "hello"),
            |e| matches!(e, MaterialError::Malformed("ca-cert.pem", _)),
        ),
        (
            "no key in it",
            |it, other| it.write("ca-key.pem", other),
            |e| matches!(e, MaterialError::Malformed("ca-key.pem", _)),
        ),
        (
            "gone",
            |it, _| fs::remove_file(it.directory.path().join("ca-key.pem")).unwrap(),
            |e| matches!(e, MaterialError::Absent("ca-key.pem")),
        ),
        (
            "expired",
            |it, _| drop(it.plug(p256, -5)),
            |e| matches!(e, MaterialError::Time { .. }),
        ),
    ];
    for (what, spoil, expected) in cases {
        let plugged = Plugged::new(p256);
        spoil(&plugged, &other);
        match plugged.open() {
            Err(error) => assert!(expected(&error), "{what}: {error}"),
            Ok(_) => panic!("{what}: accepted"),
        }
    }
}

#[test]
fn a_leaf_certificate_cannot_be_plugged_in_as_a_signer() {
    let directory = tempfile::tempdir().unwrap();
    let key = p256();
    let leaf = own(directory.path())
        .sign(&client(), &csr(&key), 0)
        .unwrap();
    fs::write(directory.path().join("ca-key.pem"), key.serialize_pem()).unwrap();
    fs::write(directory.path().join("ca-cert.pem"), &leaf[0]).unwrap();
    let source = Source::PluggedIn(directory.path().into());
    let opened = Authority::open(source, "cluster.local".into(), Lifetimes::default());
    assert!(matches!(opened, Err(MaterialError::NotCa(_))));
}
