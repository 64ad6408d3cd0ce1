//! The keeper before an API server in memory: who makes the root, what is taken up, what refused.

use base64::Engine as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use x509_parser::time::ASN1Time;

use super::*;
use crate::ca::set_validity;
use crate::write::fake::Fake;

mod rotation;

const NAMESPACE: &str = "istio-system";
const DAY: i64 = 24 * 3600;

type Root = CertifiedIssuer<'static, KeyPair>;

fn params(organisation: &str, until: i64) -> CertificateParams {
    let now = ASN1Time::now().timestamp();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, organisation);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    set_validity(&mut params, now - DAY, now + until).unwrap();
    params
}

fn root(organisation: &str) -> Root {
    CertifiedIssuer::self_signed(
        params(organisation, 1000 * DAY),
        KeyPair::generate().unwrap(),
    )
    .unwrap()
}

/// A signer under `root`: certificate and key.
fn signer(root: &Root, until: i64) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let certificate = params("signer", until).signed_by(&key, root).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn data(texts: &[(&str, &str)]) -> Value {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let data: serde_json::Map<_, _> = texts
        .iter()
        .map(|(name, text)| ((*name).to_owned(), encode(text).into()))
        .collect();
    json!({"data": data})
}

fn cacerts((certificate, key): &(String, String), roots: &str) -> Value {
    data(&[
        ("ca-cert.pem", certificate),
        ("ca-key.pem", key),
        ("cert-chain.pem", ""),
        ("root-cert.pem", roots),
    ])
}

/// The mesh's settings with these further roots.
fn settings(roots: &[&str]) -> Value {
    let entries = roots.iter().map(|pem| json!({"pem": pem}));
    let mesh =
        json!({"trustDomain": "cluster.local", "caCertificates": entries.collect::<Vec<_>>()});
    json!({"data": {"mesh": mesh.to_string()}})
}

struct Mesh {
    fake: Fake,
    drain: Drain,
    metrics: Arc<Metrics>,
}

impl Mesh {
    fn new() -> Self {
        Self {
            fake: Fake::new(),
            drain: Drain::new(),
            metrics: Metrics::register(&mut ops::metrics::Registry::new("pilot", "test")),
        }
    }

    fn secret(&self, name: &str, secret: Value) {
        self.fake.put("secrets", NAMESPACE, name, secret);
    }

    fn open(&self, secret: Option<&str>) -> impl Future<Output = Arc<Authority>> + use<> {
        let (connection, drain, metrics) = (
            self.fake.connection(),
            self.drain.clone(),
            self.metrics.clone(),
        );
        let place = place(secret);
        let health = Health::default();
        async move {
            let opened = open(
                &connection,
                &health,
                place,
                "cluster.local".into(),
                Lifetimes::default(),
                metrics,
                &drain,
            );
            let day = Duration::from_secs(24 * 3600);
            let opened = tokio::time::timeout(day, opened).await;
            opened.expect("a signer within a day").expect("a signer")
        }
    }

    /// Lets everybody hear of everything.
    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(10)).await;
    }

    fn is_refusing(&self) -> bool {
        self.metrics.signer_refused.get() == 1
    }
}

fn count(authority: &Authority) -> usize {
    authority.roots().matches("BEGIN CERTIFICATE").count()
}

/// The name of whoever signs.
fn signs(authority: &Authority) -> String {
    let key = KeyPair::generate().unwrap();
    let chain = authority
        .sign_server(&key, &["istiod".into()], &[])
        .unwrap();
    let leaf = super::super::material::certificates("leaf", &chain[0]).unwrap();
    let leaf = super::super::material::parse("leaf", &leaf[0]).unwrap();
    leaf.issuer().to_string()
}

#[tokio::test(start_paused = true)]
async fn replicas_that_start_together_end_with_the_same_root() {
    let mesh = Mesh::new();
    let (a, b, c) = tokio::join!(mesh.open(None), mesh.open(None), mesh.open(None));
    assert_eq!(a.roots(), b.roots());
    assert_eq!(a.roots(), c.roots());
    let secret = mesh
        .fake
        .object("secrets", NAMESPACE, "istio-ca-secret")
        .unwrap();
    assert_eq!(secret["type"], "istio.io/ca-root");
    let keys: Vec<_> = secret["data"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    assert_eq!(
        keys,
        [
            "ca-cert.pem",
            "ca-key.pem",
            "cert-chain.pem",
            "key.pem",
            "root-cert.pem"
        ]
    );
    assert_eq!(
        (
            &secret["data"]["key.pem"],
            &secret["data"]["cert-chain.pem"]
        ),
        (&json!(""), &json!(""))
    );
}

#[tokio::test(start_paused = true)]
async fn our_own_root_is_put_back_when_somebody_deletes_it() {
    let mesh = Mesh::new();
    let authority = mesh.open(None).await;
    let before = mesh
        .fake
        .object("secrets", NAMESPACE, "istio-ca-secret")
        .unwrap();
    mesh.fake.remove("secrets", NAMESPACE, "istio-ca-secret");
    let there = |secret: &Value| !secret.is_null();
    let after = mesh
        .fake
        .until(("secrets", NAMESPACE, "istio-ca-secret"), there)
        .await;
    assert_eq!(after["data"], before["data"]);
    mesh.settle().await;
    assert_eq!((count(&authority), mesh.is_refusing()), (1, false));
}

#[tokio::test(start_paused = true)]
async fn no_new_root_is_made_while_the_mesh_trusts_one_whose_secret_is_gone() {
    let mesh = Mesh::new();
    let told = json!({"data": {"root-cert.pem": root("old").pem()}});
    mesh.fake.put("configmaps", NAMESPACE, ROOTS_NAME, told);
    let opening = tokio::spawn(mesh.open(None));
    mesh.settle().await;
    assert!(!opening.is_finished() && mesh.is_refusing());
    assert_eq!(mesh.fake.writes(), Vec::<String>::new());
    mesh.fake.remove("configmaps", NAMESPACE, ROOTS_NAME);
    assert_eq!(count(&opening.await.unwrap()), 1);
}

#[tokio::test(start_paused = true)]
async fn our_own_root_is_renewed_with_its_key_and_other_roots_beside_it_stay() {
    let mesh = Mesh::new();
    let (key, other) = (KeyPair::generate().unwrap(), root("other").pem());
    let old = params("cluster.local", 100 * DAY)
        .self_signed(&key)
        .unwrap()
        .pem();
    let own = cacerts(&(old.clone(), key.serialize_pem()), &(old.clone() + &other));
    mesh.secret("istio-ca-secret", own);
    let (a, b) = tokio::join!(mesh.open(None), mesh.open(None));
    mesh.settle().await;
    for authority in [&a, &b] {
        let (_, ends) = authority.expiries();
        assert!(ends - ASN1Time::now().timestamp() > 3000 * DAY);
        assert_eq!(count(authority), 2);
        assert!(
            authority.roots().contains(other.trim()) && !authority.roots().contains(old.trim())
        );
    }
    assert_eq!(a.roots(), b.roots());
    assert!(!mesh.is_refusing());
}

#[tokio::test(start_paused = true)]
async fn a_tls_secret_as_cert_manager_writes_it_is_waited_for_and_followed() {
    let mesh = Mesh::new();
    let opening = tokio::spawn(mesh.open(Some("mesh-ca")));
    // First there is nothing, then a Secret with nothing in it yet.
    mesh.settle().await;
    let empty = data(&[("tls.crt", ""), ("tls.key", ""), ("ca.crt", "")]);
    mesh.secret("mesh-ca", empty);
    mesh.settle().await;
    assert!(!opening.is_finished() && mesh.is_refusing());

    let root = root("company");
    let tls = |(certificate, key): &(String, String)| {
        data(&[
            ("tls.crt", certificate),
            ("tls.key", key),
            ("ca.crt", &root.pem()),
        ])
    };
    mesh.secret("mesh-ca", tls(&signer(&root, 90 * DAY)));
    let authority = opening.await.unwrap();
    assert_eq!(
        (signs(&authority), count(&authority)),
        ("O=signer".into(), 1)
    );
    let (_, before) = authority.expiries();
    // An intermediate is rotated without more ado.
    mesh.secret("mesh-ca", tls(&signer(&root, 180 * DAY)));
    mesh.settle().await;
    let (_, after) = authority.expiries();
    assert!(after - before > 80 * DAY && !mesh.is_refusing());
    assert_eq!(
        mesh.fake.object("secrets", NAMESPACE, "istio-ca-secret"),
        None
    );
}

#[tokio::test(start_paused = true)]
async fn what_istio_made_is_taken_over_keys_in_its_own_form_and_no_copy_of_the_root() {
    let mesh = Mesh::new();
    let own = data(&[
        (
            "ca-cert.pem",
            include_str!("../../../testdata/ca/istio-root.pem"),
        ),
        (
            "ca-key.pem",
            include_str!("../../../testdata/ca/istio-root-key.pem"),
        ),
    ]);
    mesh.secret("istio-ca-secret", own);
    let authority = mesh.open(None).await;
    assert_eq!(signs(&authority), "O=cluster.local");
    assert_eq!(count(&authority), 1);
}

fn named(name: &str) -> Secret {
    let mut secret = Secret::default();
    secret.metadata.name = Some(name.to_owned());
    secret
}

fn place(secret: Option<&str>) -> Place {
    Place {
        namespace: "istio-system".into(),
        secret: secret.map(str::to_owned),
    }
}

#[test]
fn a_plugged_in_signer_goes_before_our_own_and_nothing_is_made_before_both_were_looked_for() {
    let (plugged, own) = (named("cacerts"), named("istio-ca-secret"));
    let there = |secret: &Secret| Some(Some(secret.clone()));
    let gone = Some(None);
    let cases = [
        (None, None, Choice::Unknown),
        (gone.clone(), None, Choice::Unknown),
        (None, gone.clone(), Choice::Unknown),
        (None, there(&own), Choice::Unknown),
        (gone.clone(), gone.clone(), Choice::Make),
        (gone.clone(), there(&own), Choice::Use(&own)),
        (there(&plugged), None, Choice::Use(&plugged)),
        (there(&plugged), there(&own), Choice::Use(&plugged)),
    ];
    let settings = Some(None);
    for (plugged, own, expected) in cases {
        let seen = Seen {
            plugged,
            own,
            settings: settings.clone(),
        };
        assert_eq!(choose(&place(None), &seen), expected);
    }
    let seen = Seen {
        plugged: gone.clone(),
        own: gone,
        settings: None,
    };
    assert_eq!(choose(&place(None), &seen), Choice::Unknown);
}

#[test]
fn a_secret_that_was_named_is_waited_for_and_no_root_is_made_in_its_place() {
    let place = place(Some("mesh-ca"));
    let mut seen = Seen {
        plugged: Some(None),
        own: Some(None),
        settings: Some(None),
    };
    assert_eq!(choose(&place, &seen), Choice::Wait("mesh-ca"));
    seen.plugged = Some(Some(named("mesh-ca")));
    assert_eq!(choose(&place, &seen), Choice::Use(&named("mesh-ca")));
}
