use std::time::Duration;

use rustls::pki_types::CertificateDer;

use super::*;
use crate::tls::{
    fixture::{CLIENT, Ca, Clock, HOUR, SERVER},
    proof::Roots,
};

fn judged(
    revocations: &Arc<Revocations>,
    ca: &Ca,
    purpose: Purpose,
    leaf: &CertificateDer<'static>,
    clock: &Clock,
) -> Result<String, TlsError> {
    judged_by(revocations, &ca.roots(), purpose, (leaf, &[]), clock)
}

fn judged_by(
    revocations: &Arc<Revocations>,
    roots: &Roots,
    purpose: Purpose,
    (leaf, intermediates): (&CertificateDer<'static>, &[CertificateDer<'static>]),
    clock: &Clock,
) -> Result<String, TlsError> {
    let roots = roots.clone().judging_by(revocations.clone());
    let claim = Claim {
        purpose,
        roots: &roots,
        leaf,
        intermediates,
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(clock.seconds()));
    let proven = claim.prove(now, || Ok(()));
    proven
        .map(|identity| identity.to_string())
        .map_err(|why| TlsError::from_rustls(&why))
}

#[test]
fn who_is_on_the_list_is_refused_and_whoever_is_not_goes_on() {
    let (ca, clock) = (Ca::new(), Clock::new());
    let soon = clock.system() + Duration::from_secs(HOUR);
    let [good, bad] = [CLIENT, SERVER].map(|name| ca.badge(&[name], soon).cert[0].clone());
    let revocations = Arc::<Revocations>::default();
    for purpose in [Purpose::Client, Purpose::Server] {
        let both = || [&good, &bad].map(|leaf| judged(&revocations, &ca, purpose, leaf, &clock));
        assert!(both().iter().all(Result::is_ok), "nobody was revoked");
        assert_eq!(revocations.replace(ca.revoking(&[&bad]).as_bytes()), Ok(1));
        let [well, ill] = both();
        assert_eq!(well.unwrap(), CLIENT);
        assert!(matches!(ill, Err(TlsError::Revoked)), "{ill:?}");
        // Lists of others say nothing of it.
        let other = Ca::new().revoking(&[&good]);
        assert_eq!(revocations.replace(other.as_bytes()), Ok(1));
        assert!(both().iter().all(Result::is_ok));
        assert_eq!(revocations.replace(b" \n"), Ok(0));
        assert!(both().iter().all(Result::is_ok));
    }
}

#[test]
fn a_list_speaks_for_who_signed_it_and_for_nobody_else_of_that_name() {
    // The two authorities have the same name.
    let (ca, other, clock) = (Ca::new(), Ca::new(), Clock::new());
    let soon = clock.system() + Duration::from_secs(HOUR);
    let leaf = ca.badge(&[CLIENT], soon).cert[0].clone();
    let revocations = Arc::<Revocations>::default();
    let judge = || judged(&revocations, &ca, Purpose::Client, &leaf, &clock);
    let (theirs, ours) = (other.revoking(&[&leaf]), ca.revoking(&[&leaf]));
    assert_eq!(revocations.replace(theirs.as_bytes()), Ok(1));
    assert_eq!(judge().unwrap(), CLIENT);
    let both = theirs + &ours;
    assert_eq!(revocations.replace(both.as_bytes()), Ok(2));
    assert!(matches!(judge(), Err(TlsError::Revoked)));
}

#[test]
fn of_two_roots_of_one_name_the_list_of_the_one_says_nothing_of_whom_the_other_signed_for() {
    let (one, other, clock) = (Ca::new(), Ca::new(), Clock::new());
    let soon = clock.system() + Duration::from_secs(HOUR);
    let [good, bad] = [CLIENT, SERVER].map(|name| one.badge(&[name], soon).cert[0].clone());
    let another = other.badge(&[CLIENT], soon).cert[0].clone();
    let (ours, theirs) = (one.revoking(&[&bad]), other.revoking(&[&bad]));
    // While one root follows another both are trusted, in whatever order they stand.
    for roots in [[&one, &other], [&other, &one]] {
        let roots = Ca::all_roots(&roots);
        for text in [ours.clone(), theirs.clone() + &ours] {
            let revocations = Arc::<Revocations>::default();
            revocations.replace(text.as_bytes()).unwrap();
            let judge = |leaf: &CertificateDer<'static>| {
                let shown = (leaf, &[][..]);
                judged_by(&revocations, &roots, Purpose::Client, shown, &clock)
            };
            assert_eq!(judge(&good).unwrap(), CLIENT);
            assert_eq!(judge(&another).unwrap(), CLIENT);
            assert!(matches!(judge(&bad), Err(TlsError::Revoked)));
        }
    }
}

#[test]
fn an_authority_with_the_name_of_its_root_is_heard_as_well() {
    let (root, clock) = (Ca::new(), Clock::new());
    let below = root.below();
    let soon = clock.system() + Duration::from_secs(HOUR);
    let [good, bad] = [CLIENT, SERVER].map(|name| below.badge(&[name], soon).cert[0].clone());
    let roots = root.roots();
    let chain = [below.der()];
    for (text, well, ill) in [
        (below.revoking(&[&bad]), true, false),
        (root.revoking(&[&bad]), true, true), // it has not signed for it
        (root.revoking(&chain.each_ref()), false, false),
    ] {
        let revocations = Arc::<Revocations>::default();
        revocations.replace(text.as_bytes()).unwrap();
        for (leaf, passes) in [(&good, well), (&bad, ill)] {
            let shown = (leaf, &chain[..]);
            let judged = judged_by(&revocations, &roots, Purpose::Client, shown, &clock);
            match judged {
                Ok(_) => assert!(passes),
                Err(TlsError::Revoked) => assert!(!passes),
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn what_cannot_be_read_changes_nothing_and_before_there_was_anything_lets_nobody_in() {
    let (ca, clock) = (Ca::new(), Clock::new());
    let soon = clock.system() + Duration::from_secs(HOUR);
    let [good, bad] = [CLIENT, SERVER].map(|name| ca.badge(&[name], soon).cert[0].clone());
    let revocations = Arc::<Revocations>::default();
    let judge = |leaf| judged(&revocations, &ca, Purpose::Client, leaf, &clock);
    let broken = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    for text in [broken, "who is revoked is a secret"] {
        assert!(revocations.replace(text.as_bytes()).is_err());
        let why = judge(&good);
        assert!(
            matches!(why, Err(TlsError::RevocationUnknown(_))),
            "{why:?}"
        );
    }
    revocations
        .replace(ca.revoking(&[&bad]).as_bytes())
        .unwrap();
    for text in [broken, "who is revoked is a secret"] {
        assert!(revocations.replace(text.as_bytes()).is_err());
        assert!(judge(&good).is_ok());
        assert!(matches!(judge(&bad), Err(TlsError::Revoked)));
    }
}

#[test]
fn figures_count_lists_and_whom_they_name_and_what_could_not_be_read() {
    let (ca, other, clock) = (Ca::new(), Ca::new(), Clock::new());
    let soon = clock.system() + Duration::from_secs(HOUR);
    let [one, two] = [CLIENT, SERVER].map(|name| ca.badge(&[name], soon).cert[0].clone());
    let revocations = Revocations::default();
    assert_eq!(revocations.figures(), RevocationFigures::default());
    let text = ca.revoking(&[&one, &two]) + &other.revoking(&[&one]);
    revocations.replace(text.as_bytes()).unwrap();
    let figures = revocations.figures();
    assert_eq!(
        (figures.lists, figures.revoked, figures.unreadable),
        (2, 3, 0)
    );
    // Both of February 2020.
    let [next, same] = figures.next_updates[..] else {
        panic!("{figures:?}")
    };
    assert_eq!(next, same);
    let second = Duration::from_secs(1);
    assert_eq!(figures.overdue(next - second), 0);
    assert_eq!(figures.overdue(next + second), 2);

    revocations.replace(b"nonsense").unwrap_err();
    let after = revocations.figures();
    assert_eq!(
        (after.lists, after.unreadable),
        (2, 1),
        "the old ones count"
    );
}
