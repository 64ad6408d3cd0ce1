//! The authority against the shape of Istio's certificates, and against what operators do to files.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertifiedIssuer, DnType};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;

use super::*;

mod plugged_in;

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

fn p256() -> KeyPair {
    KeyPair::generate().unwrap()
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
    let asked = ASN1Time::now().timestamp();
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
    let (from, until) = (leaf.validity().not_before, leaf.validity().not_after);
    assert!((asked - 122..=now - 118).contains(&from.timestamp()));
    assert!((asked + 3598..=now + 3602).contains(&until.timestamp()));
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
