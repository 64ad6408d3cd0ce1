//! The authority against the shape of Istio's certificates, and against what operators do to files.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertifiedIssuer, DnType};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use super::*;

fn client() -> Identity {
    "spiffe://cluster.local/ns/ca-test/sa/client"
        .parse()
        .unwrap()
}

fn csr(key: &KeyPair) -> String {
    CertificateParams::default()
        .serialize_request(key)
        .unwrap()
        .pem()
        .unwrap()
}

fn own(directory: &Path) -> Authority {
    Authority::open(
        Source::Own(directory.into()),
        "cluster.local".into(),
        Lifetimes::default(),
    )
    .unwrap()
}

fn der(pem: &str) -> Vec<u8> {
    Pem::iter_from_buffer(pem.as_bytes())
        .next()
        .unwrap()
        .unwrap()
        .contents
}

fn parsed(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).unwrap().1
}

/// `above` signed `below`, and says so in the names and key identifiers.
fn assert_issued(above: &X509Certificate<'_>, below: &X509Certificate<'_>) {
    assert_eq!(above.subject().as_raw(), below.issuer().as_raw());
    below.verify_signature(Some(above.public_key())).unwrap();
    let find = |certificate: &X509Certificate<'_>, authority: bool| {
        certificate
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) if authority => {
                    id.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                ParsedExtension::SubjectKeyIdentifier(id) if !authority => Some(id.0.to_vec()),
                _ => None,
            })
    };
    let (subject, authority) = (find(above, false), find(below, true));
    assert!(subject.is_some());
    assert_eq!(subject, authority);
}

/// `openssl x509 -text` of Istio's leaf, extension by extension, in `golden/ca/own-identity.txt`.
#[test]
fn a_leaf_has_the_extensions_of_istios() {
    let directory = tempfile::tempdir().unwrap();
    let chain = own(directory.path())
        .sign(&client(), &csr(&KeyPair::generate().unwrap()), 3600)
        .unwrap();
    assert_eq!(chain.len(), 2);
    let (leaf, root) = (der(&chain[0]), der(&chain[1]));
    let (leaf, root) = (parsed(&leaf), parsed(&root));
    assert_issued(&root, &leaf);

    assert_eq!(root.subject().to_string(), "O=cluster.local");
    assert_eq!(leaf.subject().to_string(), "");
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && usage.value.key_encipherment());
    assert_eq!(usage.value.flags.count_ones(), 2);
    let extended = leaf.extended_key_usage().unwrap().unwrap();
    assert!(!extended.critical && extended.value.server_auth && extended.value.client_auth);
    let basic = leaf.basic_constraints().unwrap().unwrap();
    assert!(basic.critical && !basic.value.ca);
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(
        san.value.general_names,
        [GeneralName::URI(
            "spiffe://cluster.local/ns/ca-test/sa/client"
        )]
    );
    assert_eq!(leaf.extensions().len(), 5);
    assert!(
        (100..=128).contains(&leaf.serial.bits()),
        "{}",
        leaf.serial.bits()
    );

    let now = ASN1Time::now().timestamp();
    assert!((118..=122).contains(&(now - leaf.validity().not_before.timestamp())));
    assert!((3598..=3602).contains(&(leaf.validity().not_after.timestamp() - now)));
    let root_usage = root.key_usage().unwrap().unwrap();
    assert!(root_usage.value.key_cert_sign() && root_usage.value.flags.count_ones() == 1);
}

#[test]
fn serials_never_repeat() {
    let directory = tempfile::tempdir().unwrap();
    let authority = own(directory.path());
    let csr = csr(&KeyPair::generate().unwrap());
    let serials: std::collections::HashSet<_> = (0..50)
        .map(|_| {
            parsed(&der(&authority.sign(&client(), &csr, 0).unwrap()[0]))
                .raw_serial()
                .to_vec()
        })
        .collect();
    assert_eq!(serials.len(), 50);
}

#[test]
fn the_root_is_the_same_after_a_restart_and_its_key_is_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let first = own(directory.path()).roots();
    assert_eq!(own(directory.path()).roots(), first);
    assert_eq!(
        fs::read_to_string(directory.path().join("root-cert.pem")).unwrap(),
        first
    );
    let mode = fs::metadata(directory.path().join("ca-key.pem"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_start_that_crashed_half_way_is_finished_with_the_same_key() {
    for lost in [
        &["ca-cert.pem", "root-cert.pem"][..],
        &["root-cert.pem"],
        &["ca-cert.pem"],
    ] {
        let directory = tempfile::tempdir().unwrap();
        let authority = own(directory.path());
        let leaf = authority
            .sign(&client(), &csr(&KeyPair::generate().unwrap()), 0)
            .unwrap();
        for name in lost {
            fs::remove_file(directory.path().join(name)).unwrap();
        }
        let again = own(directory.path());
        assert_issued(&parsed(&der(&again.roots())), &parsed(&der(&leaf[0])));
    }
}

#[test]
fn a_root_whose_key_was_lost_is_not_replaced_behind_the_operators_back() {
    let directory = tempfile::tempdir().unwrap();
    own(directory.path());
    fs::remove_file(directory.path().join("ca-key.pem")).unwrap();
    let opened = Authority::open(
        Source::Own(directory.path().into()),
        "cluster.local".into(),
        Lifetimes::default(),
    );
    assert!(matches!(
        opened,
        Err(MaterialError::Missing("ca-key.pem", "ca-cert.pem"))
    ));
}

#[test]
fn a_root_in_the_last_fifth_of_its_life_is_renewed_with_its_key() {
    let directory = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let now = ASN1Time::now().timestamp();
    let old = root_params("cluster.local", now - 1000, now + 3600 * 24 * 100)
        .self_signed(&key)
        .unwrap();
    let old_der = old.der().to_vec();
    for (name, text) in [
        ("ca-key.pem", key.serialize_pem()),
        ("ca-cert.pem", old.pem()),
        ("root-cert.pem", old.pem()),
    ] {
        fs::write(directory.path().join(name), text).unwrap();
    }
    let authority = own(directory.path());
    let (_, end) = authority.expiries();
    assert!(end - now > 3600 * 24 * 3000);
    let chain = authority
        .sign(&client(), &csr(&KeyPair::generate().unwrap()), 0)
        .unwrap();
    let leaf = der(&chain[0]);
    // Who still trusts the old certificate only, believes new leaves.
    assert_issued(&parsed(&old_der), &parsed(&leaf));
    assert_issued(&parsed(&der(&chain[1])), &parsed(&leaf));
}

fn root_params(organisation: &str, from: i64, until: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, organisation);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, from, until).unwrap();
    params
}

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
        let now = ASN1Time::now().timestamp();
        let middle = root_params("middle", now - 10, now + 90_000);
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

fn p256() -> KeyPair {
    KeyPair::generate().unwrap()
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

#[test]
fn our_own_server_is_certified_for_names_and_addresses_but_not_as_a_client() {
    let directory = tempfile::tempdir().unwrap();
    let chain = own(directory.path())
        .sign_server(
            &p256(),
            &["istiod.istio-system.svc".into()],
            &["::1".parse().unwrap()],
        )
        .unwrap();
    let leaf = der(&chain[0]);
    let leaf = parsed(&leaf);
    let names = &leaf
        .subject_alternative_name()
        .unwrap()
        .unwrap()
        .value
        .general_names;
    assert_eq!(names[0], GeneralName::DNSName("istiod.istio-system.svc"));
    assert_eq!(
        names[1],
        GeneralName::IPAddress(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    );
    assert!(
        !leaf
            .extended_key_usage()
            .unwrap()
            .unwrap()
            .value
            .client_auth
    );
}

#[test]
fn lifetimes_are_written_as_istio_writes_them() {
    let text = |seconds| clock(&Duration::from_secs(seconds));
    assert_eq!(text(7_776_001), "2160h0m1s");
    assert_eq!(text(61), "1m1s");
    assert_eq!(text(5), "5s");
}

#[test]
fn weak_rsa_keys_are_refused_before_their_signature_is_looked_at() {
    let refused = csr::public_key(include_str!("../../testdata/ca/csr-rsa1024.pem"));
    assert!(matches!(refused, Err(CsrError::RsaSize(1024))));
}
