//! A certificate's life, against a fake authority and a clock that the test moves.

#![allow(clippy::unwrap_used, clippy::panic)] // a test may stop at the first surprise

mod common;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use common::{Ca, HOUR, Signing, identity};
use hbone::{
    Certificate, CertificateError, Certificates, CertificatesConfig, Identity, SignError, Signer,
    tls::ChainError,
};
use rcgen::KeyPair;
use tokio::time::{Instant, sleep};

fn down() -> SignError {
    SignError::Unavailable("down".into())
}

fn store(signer: &Signing) -> Arc<Certificates> {
    Certificates::new(signer.clone(), CertificatesConfig::default())
}

/// Makes the authority fail from now on, or work again.
fn break_down(signer: &Signing, broken: bool) {
    *signer.failures.lock().unwrap() = if broken {
        vec![down(); 100_000]
    } else {
        Vec::new()
    };
}

#[tokio::test(start_paused = true)]
async fn however_many_ask_one_request_is_made() {
    let signer = Signing::new(&Arc::new(Ca::new()));
    let certificates = store(&signer);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let certificates = certificates.clone();
        asking.spawn(async move { certificates.of(&identity("a")).await.unwrap() });
    }
    let all = asking.join_all().await;
    assert_eq!(signer.calls(), 1);
    assert!(all.iter().all(|c| Arc::ptr_eq(c, &all[0])));
    assert_eq!(*all[0].identity(), identity("a"));
    certificates.of(&identity("b")).await.unwrap();
    assert_eq!(signer.calls(), 2, "one per identity");
}

#[tokio::test(start_paused = true)]
async fn it_is_renewed_at_half_life_with_jitter_and_a_new_key() {
    let signer = Signing::new(&Arc::new(Ca::new()));
    let certificates = store(&signer);
    let _held = certificates.hold(&identity("a"));
    let start = Instant::now();
    let first = certificates.of(&identity("a")).await.unwrap();
    let mut renewals = Vec::new();
    while renewals.len() < 8 {
        let calls = signer.calls();
        while signer.calls() == calls {
            sleep(Duration::from_secs(1)).await;
        }
        renewals.push(start.elapsed());
    }
    let mut last = Duration::ZERO;
    let gaps: Vec<u64> = renewals
        .iter()
        .map(|r| (*r - std::mem::replace(&mut last, *r)).as_secs())
        .collect();
    assert!(
        gaps.iter().all(|gap| (1600..=2000).contains(gap)),
        "half an hour, give or take a tenth: {gaps:?}"
    );
    assert!(
        gaps.windows(2).any(|w| w[0].abs_diff(w[1]) > 2),
        "not in step: {gaps:?}"
    );
    let now = certificates.of(&identity("a")).await.unwrap();
    assert_ne!(now.chain()[0].serial_number, first.chain()[0].serial_number);
}

#[test]
fn a_certificate_ends_with_the_first_of_its_chain() {
    let (root, end) = (Ca::new(), SystemTime::now() + HOUR);
    let (below, key) = (root.below(end), KeyPair::generate().unwrap());
    let name = identity("a").to_string();
    let leaf = below.leaf(&[name.as_str()], &key, end + HOUR);
    let elements = [leaf, below.root(), root.root()];
    let certificate =
        Certificate::new(&identity("a"), &key.serialize_der(), &elements, &[]).unwrap();
    assert!(certificate.chain()[0].not_after > end);
    assert_eq!(certificate.not_after(), certificate.chain()[1].not_after);
}

#[tokio::test(start_paused = true)]
async fn told_to_renew_all_are_fetched_within_half_a_minute_and_stay_in_force_meanwhile() {
    let signer = Signing::new(&Arc::new(Ca::new()));
    let certificates = store(&signer);
    let names: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
    let mut held = Vec::new();
    for name in &names {
        held.push(certificates.hold(&identity(name)));
        certificates.of(&identity(name)).await.unwrap();
    }
    let before = certificates.states();
    break_down(&signer, true);
    certificates.renew_all();
    sleep(Duration::from_secs(40)).await;
    for (was, is) in before.iter().zip(certificates.states()) {
        let [was, is] = [&was.certificate, &is.certificate].map(|it| it.as_ref().unwrap());
        assert!(Arc::ptr_eq(was, is), "the old one, while there is no new");
    }
    break_down(&signer, false);
    sleep(Duration::from_secs(60)).await;
    let calls = signer.calls();
    certificates.renew_all();
    sleep(Duration::from_secs(15)).await;
    let early = signer.calls() - calls;
    assert!((1..20).contains(&early), "not all at once: {early}");
    sleep(Duration::from_secs(16)).await;
    assert_eq!(signer.calls() - calls, 20, "each of them, once");
    for (was, is) in before.iter().zip(certificates.states()) {
        assert_eq!(is.state, "Available");
        let [was, is] = [&was.certificate, &is.certificate].map(|it| it.as_ref().unwrap());
        assert_ne!(was.chain()[0].serial_number, is.chain()[0].serial_number);
    }
}

#[tokio::test(start_paused = true)]
async fn a_valid_certificate_outlives_failed_renewals_and_an_expired_one_is_refused_with_the_reason()
 {
    let signer = Signing::new(&Arc::new(Ca::new()));
    let certificates = store(&signer);
    let _held = certificates.hold(&identity("a"));
    let first = certificates.of(&identity("a")).await.unwrap();
    break_down(&signer, true);
    sleep(HOUR - Duration::from_secs(60)).await;
    assert!(
        signer.calls() > 10,
        "it tried again and again: {}",
        signer.calls()
    );
    assert!(signer.calls() < 200, "but with pauses: {}", signer.calls());
    assert!(Arc::ptr_eq(
        &certificates.of(&identity("a")).await.unwrap(),
        &first
    ));
    let state = &certificates.states()[0];
    assert_eq!(
        (state.state.as_str(), &state.last_error),
        ("Available", &Some(down()))
    );

    sleep(Duration::from_secs(61)).await;
    let error = certificates.of(&identity("a")).await.unwrap_err();
    assert_eq!(
        error,
        CertificateError::Expired {
            identity: identity("a"),
            last: Some(down())
        }
    );
    assert!(
        error.to_string().contains("expired") && error.to_string().contains("down"),
        "{error}"
    );
    assert!(
        certificates.states()[0].state.starts_with("Unavailable"),
        "{:?}",
        certificates.states()
    );

    break_down(&signer, false);
    sleep(Duration::from_secs(45)).await;
    certificates.of(&identity("a")).await.unwrap();
    assert_eq!(certificates.states()[0].state, "Available");
}

#[tokio::test(start_paused = true)]
async fn figures_say_who_can_be_proven_whose_renewal_fails_and_when_the_first_ends() {
    let signer = Signing::new(&Arc::new(Ca::new()));
    let certificates = store(&signer);
    let _held = [
        certificates.hold(&identity("a")),
        certificates.hold(&identity("b")),
    ];
    assert_eq!(certificates.figures().initializing, 2);
    for name in ["a", "b"] {
        certificates.of(&identity(name)).await.unwrap();
    }
    let figures = certificates.figures();
    let ends = certificates.states().into_iter();
    let ends = ends.map(|state| state.certificate.unwrap().not_after());
    assert_eq!(
        (figures.available, figures.first_end, figures.failing),
        (2, ends.min(), 0)
    );
    assert_eq!((figures.obtained, figures.failed), (2, 0));

    break_down(&signer, true);
    sleep(HOUR - Duration::from_secs(60)).await;
    let figures = certificates.figures();
    assert_eq!(
        (figures.available, figures.failing),
        (2, 2),
        "in force, and none will follow: {figures:?}"
    );
    assert!(figures.failed > 10, "{figures:?}");
    sleep(Duration::from_secs(61)).await;
    let figures = certificates.figures();
    assert_eq!(
        (figures.available, figures.unavailable, figures.first_end),
        (0, 2, None)
    );

    break_down(&signer, false);
    for name in ["a", "b"] {
        certificates.of(&identity(name)).await.unwrap();
    }
    let figures = certificates.figures();
    assert_eq!((figures.available, figures.failing), (2, 0), "{figures:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_identity_waits_for_an_authority_that_is_down_and_then_gets_a_clear_error() {
    let signer = Signing::new(&Arc::new(Ca::new()));
    break_down(&signer, true);
    let certificates = store(&signer);
    let start = Instant::now();
    let error = certificates.of(&identity("a")).await.unwrap_err();
    assert_eq!(
        start.elapsed().as_secs(),
        CertificatesConfig::default().wait.as_secs()
    );
    assert_eq!(
        error,
        CertificateError::NotYet {
            identity: identity("a"),
            last: Some(down())
        }
    );

    // Back within the wait of a caller: the caller gets it.
    let waiting = tokio::spawn({
        let certificates = certificates.clone();
        async move { certificates.of(&identity("b")).await }
    });
    sleep(Duration::from_millis(500)).await;
    break_down(&signer, false);
    waiting.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn pauses_double_up_to_the_longest() {
    let signer = Signing::new(&Arc::new(Ca::new()));
    break_down(&signer, true);
    let certificates = store(&signer);
    let _held = certificates.hold(&identity("a"));
    sleep(Duration::from_secs(2)).await;
    assert!(
        (3..=6).contains(&signer.calls()),
        "0.2, 0.4, 0.8 s: {}",
        signer.calls()
    );
    sleep(Duration::from_secs(600)).await;
    let before = signer.calls();
    sleep(Duration::from_secs(600)).await;
    assert!(
        (16..=27).contains(&(signer.calls() - before)),
        "every 22 to 38 s: {}",
        signer.calls() - before
    );
}

#[tokio::test(start_paused = true)]
async fn what_nobody_holds_is_forgotten_and_what_somebody_holds_is_not() {
    let signer = Signing::new(&Arc::new(Ca::new()));
    let certificates = store(&signer);
    let (first, second) = (
        certificates.hold(&identity("a")),
        certificates.hold(&identity("a")),
    );
    certificates.of(&identity("a")).await.unwrap();
    drop(first);
    certificates.of(&identity("a")).await.unwrap();
    assert_eq!(certificates.states().len(), 1, "held");
    drop(second);
    assert!(certificates.states().is_empty());
    let calls = signer.calls();
    sleep(HOUR * 10).await;
    assert_eq!(signer.calls(), calls, "and no longer renewed");

    let _held = certificates.hold(&identity("b"));
    certificates.of(&identity("b")).await.unwrap();
    drop(certificates);
    let calls = signer.calls();
    sleep(HOUR * 10).await;
    assert_eq!(signer.calls(), calls);
}

/// Connections of a pod that has gone may still ask, and may go before they are answered.
#[tokio::test(start_paused = true)]
async fn who_asks_without_holding_leaves_nothing_behind() {
    let signer = Signing::new(&Arc::new(Ca::new()));
    let certificates = store(&signer);
    certificates.of(&identity("a")).await.unwrap();
    assert!(certificates.states().is_empty(), "answered");

    break_down(&signer, true);
    certificates.of(&identity("a")).await.unwrap_err();
    assert!(certificates.states().is_empty(), "refused");

    let a = identity("a");
    let gone = tokio::time::timeout(Duration::from_secs(1), certificates.of(&a));
    gone.await.unwrap_err();
    assert!(certificates.states().is_empty(), "gone before the answer");
    let calls = signer.calls();
    sleep(HOUR * 10).await;
    assert_eq!(signer.calls(), calls, "and nobody asks on");

    // A hold that comes while somebody asks stays when the asker goes.
    let asking = tokio::spawn({
        let certificates = certificates.clone();
        async move { certificates.of(&identity("a")).await }
    });
    sleep(Duration::from_millis(100)).await;
    let held = certificates.hold(&identity("a"));
    asking.await.unwrap().unwrap_err();
    assert_eq!(certificates.states().len(), 1);
    drop(held);
    assert!(certificates.states().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_served_soon_after_the_authority_is_back() {
    let signer = Signing::new(&Arc::new(Ca::new()));
    break_down(&signer, true);
    let certificates = store(&signer);
    let _held = certificates.hold(&identity("a"));
    for _ in 0..20 {
        // By now the pause is half a minute, far longer than a caller waits.
        break_down(&signer, true);
        sleep(Duration::from_secs(600)).await;
        let (calls, start) = (signer.calls(), Instant::now());
        let asking: Vec<_> = (0..100)
            .map(|_| {
                let certificates = certificates.clone();
                tokio::spawn(async move { certificates.of(&identity("a")).await })
            })
            .collect();
        sleep(Duration::from_secs(3)).await;
        let tried = signer.calls() - calls;
        assert!((2..=5).contains(&tried), "about once a second: {tried}");
        break_down(&signer, false);
        for asked in asking {
            asked.await.unwrap().unwrap();
        }
        assert!(start.elapsed() < Duration::from_millis(4500));
        // Let it expire, so that the next round begins without one.
        break_down(&signer, true);
        sleep(HOUR * 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_never_answers_is_given_up_and_asked_again() {
    struct Silent(Signing);
    impl Signer for Silent {
        async fn sign(&self, identity: &Identity, csr: String) -> Result<Vec<String>, SignError> {
            if self.0.calls() == 0 {
                self.0
                    .calls
                    .fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
            self.0.sign(identity, csr).await
        }
    }
    let certificates = Certificates::new(
        Silent(Signing::new(&Arc::new(Ca::new()))),
        CertificatesConfig::default(),
    );
    let _held = certificates.hold(&identity("a"));
    assert!(matches!(
        certificates.of(&identity("a")).await,
        Err(CertificateError::NotYet { last: None, .. })
    ));
    sleep(Duration::from_secs(6)).await;
    certificates.of(&identity("a")).await.unwrap();
}

/// Answers every request with the same elements.
type Answer = dyn Fn(&str) -> Vec<String> + Send + Sync;

struct Answering(Box<Answer>);

impl Signer for Answering {
    async fn sign(&self, _: &Identity, csr: String) -> Result<Vec<String>, SignError> {
        Ok((self.0)(&csr))
    }
}

async fn answer_is_refused(
    answer: impl Fn(&str) -> Vec<String> + Send + Sync + 'static,
) -> ChainError {
    let certificates =
        Certificates::new(Answering(Box::new(answer)), CertificatesConfig::default());
    match certificates.of(&identity("a")).await {
        Err(CertificateError::NotYet {
            last: Some(SignError::Answer(error)),
            ..
        }) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_wrong_in_any_way_is_not_used() {
    let ca = Arc::new(Ca::new());
    let me = identity("a").to_string();
    let later = SystemTime::now() + HOUR;

    let authority = ca.clone();
    let error = answer_is_refused(move |csr| {
        authority.sign("spiffe://cluster.local/ns/x/sa/y", csr, later)
    })
    .await;
    assert!(matches!(error, ChainError::WrongIdentity { .. }), "{error}");

    let (authority, name) = (ca.clone(), me.clone());
    let error = answer_is_refused(move |_| {
        vec![
            authority.leaf(&[&name], &KeyPair::generate().unwrap(), later),
            authority.root(),
        ]
    })
    .await;
    assert_eq!(error, ChainError::WrongKey);

    let (authority, name) = (ca.clone(), me.clone());
    let error = answer_is_refused(move |csr| {
        vec![
            authority.sign(&name, csr, later)[0].clone(),
            Ca::new().root(),
        ]
    })
    .await;
    assert!(matches!(error, ChainError::Unverified(_)), "{error}");

    let (authority, name) = (ca.clone(), me.clone());
    let error =
        answer_is_refused(move |csr| authority.sign(&name, csr, SystemTime::now() - HOUR)).await;
    assert!(
        matches!(&error, ChainError::Untimely(how) if how.starts_with("ended on ")),
        "already expired: {error}"
    );
    let says = error.to_string();
    assert!(says.contains("compare this node's clock"), "{says}");

    let (authority, name) = (ca.clone(), me.clone());
    let error = answer_is_refused(move |csr| authority.sign(&name, csr, later)[..1].to_vec()).await;
    assert!(
        matches!(error, ChainError::Unreadable(_)),
        "no roots: {error}"
    );
    let error = answer_is_refused(|_| vec!["nonsense".into(), "nonsense".into()]).await;
    assert!(matches!(error, ChainError::Unreadable(_)), "{error}");
    let error = answer_is_refused(|_| vec![]).await;
    assert!(matches!(error, ChainError::Unreadable(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_bundle_of_several_roots_is_taken_whole() {
    let (old, new) = (Arc::new(Ca::new()), Arc::new(Ca::new()));
    let (signing, other) = (new.clone(), old.clone());
    let later = SystemTime::now() + HOUR;
    let answer = move |csr: &str| {
        let me = identity("a").to_string();
        vec![
            signing.sign(&me, csr, later)[0].clone(),
            format!("{}{}", other.root(), signing.root()),
        ]
    };
    let certificates =
        Certificates::new(Answering(Box::new(answer)), CertificatesConfig::default());
    let certificate = certificates.of(&identity("a")).await.unwrap();
    assert_eq!(
        (certificate.chain().len(), certificate.roots().len()),
        (1, 2)
    );
    let text = &certificate.roots()[1];
    assert_eq!(
        text.pem.trim(),
        new.root().replace("\r\n", "\n").trim(),
        "PEM is printed as everybody prints it"
    );
}

#[tokio::test]
async fn the_request_is_what_a_mesh_authority_expects() {
    // wire contract: EC P-256, ECDSA with SHA-256, one URI name, no subject.
    use x509_parser::prelude::{
        FromDer, GeneralName, ParsedExtension, X509CertificationRequest, parse_x509_pem,
    };
    let (sender, receiver) = std::sync::mpsc::channel();
    let answer = move |csr: &str| {
        let _ = sender.send(csr.to_owned());
        vec![]
    };
    let certificates =
        Certificates::new(Answering(Box::new(answer)), CertificatesConfig::default());
    let _held = certificates.hold(&identity("a"));
    let asked = move || receiver.recv_timeout(Duration::from_secs(60)).unwrap();
    let csr = tokio::task::spawn_blocking(asked).await.unwrap();
    let (_, pem) = parse_x509_pem(csr.as_bytes()).unwrap();
    assert_eq!(pem.label, "CERTIFICATE REQUEST");
    let (_, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
    let info = &request.certification_request_info;
    assert_eq!(info.subject.iter().count(), 0);
    assert_eq!(
        info.subject_pki.algorithm.algorithm.to_id_string(),
        "1.2.840.10045.2.1"
    );
    assert_eq!(
        info.subject_pki
            .algorithm
            .parameters
            .as_ref()
            .unwrap()
            .as_oid()
            .unwrap()
            .to_id_string(),
        "1.2.840.10045.3.1.7"
    );
    assert_eq!(
        request.signature_algorithm.algorithm.to_id_string(),
        "1.2.840.10045.4.3.2"
    );
    let extensions: Vec<_> = request.requested_extensions().unwrap().collect();
    let [ParsedExtension::SubjectAlternativeName(names)] = extensions.as_slice() else {
        panic!("{extensions:?}")
    };
    assert_eq!(
        names.general_names,
        [GeneralName::URI("spiffe://cluster.local/ns/default/sa/a")]
    );
}
