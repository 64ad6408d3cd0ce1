//! The life of one identity's certificate: fetch, publish, wait, renew.
//!
//! One task per identity. What it publishes is a [`State`]; it ends when its entry or the store is
//! dropped.

use std::{
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use tokio::sync::{Notify, watch};

use super::{Certificate, Certificates, CertificatesConfig, End, SignError};
use crate::identity::Identity;

#[derive(Clone, Default)]
pub(super) struct State {
    pub(super) current: Option<Current>,
    pub(super) last_error: Option<SignError>,
}

#[derive(Clone)]
pub(super) struct Current {
    pub(super) certificate: Arc<Certificate>,
    end: End,
}

/// What an identity can be proven by at this moment.
pub(super) enum Standing<'a> {
    Available(&'a Current),
    /// The first request has not been answered yet.
    Initializing,
    Unavailable,
}

impl State {
    pub(super) fn standing(&self) -> Standing<'_> {
        match (&self.current, &self.last_error) {
            (Some(current), _) if !current.expired() => Standing::Available(current),
            (None, None) => Standing::Initializing,
            _ => Standing::Unavailable,
        }
    }

    /// For how long what is in force still counts.
    fn left(&self) -> Option<Duration> {
        let Standing::Available(current) = self.standing() else {
            return None;
        };
        let left = current
            .certificate
            .not_after()
            .duration_since(SystemTime::now());
        left.ok()
    }
}

impl Current {
    pub(super) fn expired(&self) -> bool {
        self.end.is_over()
    }
}

/// What wakes the task before its time.
#[derive(Default)]
pub(super) struct Wakes {
    /// A caller finds the certificate expired, or waits for the first.
    pub(super) hurry: Notify,
    /// What came with the certificate counts no longer. A call during a fetch is kept: its answer may be of before.
    pub(super) renew: Notify,
}

/// The life of one identity's certificate; ends when the entry or the store is dropped.
pub(super) async fn keep(
    store: Weak<Certificates>,
    identity: Identity,
    state: watch::Sender<State>,
    wakes: Arc<Wakes>,
) {
    let hurry = &wakes.hurry;
    let (mut failures, mut asked_for) = (0, false);
    loop {
        let Some(certificates) = store.upgrade() else {
            return;
        };
        let fetched = certificates.fetch(&identity).await;
        let config = certificates.config.clone();
        drop(certificates);
        match fetched {
            Ok(certificate) => {
                (failures, asked_for) = (0, false);
                let left = certificate
                    .not_after()
                    .duration_since(SystemTime::now())
                    .unwrap_or_default();
                tracing::debug!(%identity, ?left, "certificate obtained");
                let current = Current {
                    end: End::at(certificate.not_after()),
                    certificate: Arc::new(certificate),
                };
                state.send_replace(State {
                    current: Some(current),
                    last_error: None,
                });
                let due = (left / 2).mul_f64(0.9 + 0.2 * random()).max(SOONEST);
                tokio::select! {
                    () = tokio::time::sleep(due) => {}
                    () = hurried(hurry, &state) => {}
                    () = told(&wakes.renew, config.renewals_within) => {}
                }
            }
            Err(error) => {
                // Hurried attempts would fill the log with what it says already.
                if !asked_for || state.borrow().last_error.as_ref() != Some(&error) {
                    let left = state.borrow().left().map(tracing::field::debug);
                    tracing::warn!(%identity, %error, left, "certificate not obtained");
                }
                state.send_modify(|s| s.last_error = Some(error));
                let jitter = 0.75 + 0.5 * random();
                let due = pause(&config, failures).mul_f64(jitter);
                asked_for = tokio::select! {
                    () = tokio::time::sleep(due) => false,
                    () = waited_for(hurry, &state, FLOOR.mul_f64(jitter)) => true,
                };
                failures += 1;
            }
        }
    }
}

/// Ends when a caller is in a hurry and right about it. A permit left from before the last fetch is not.
async fn hurried(hurry: &Notify, state: &watch::Sender<State>) {
    loop {
        hurry.notified().await;
        if state.borrow().current.as_ref().is_none_or(Current::expired) {
            return;
        }
    }
}

/// Ends a random part of `within` after everybody was told to renew, so that a mesh that is told as one does not ask as one.
async fn told(renew: &Notify, within: Duration) {
    renew.notified().await;
    tokio::time::sleep(within.mul_f64(random())).await;
}

/// Ends when a caller waits for a certificate, at the earliest after `floor`: callers give up before
/// the longest pause is over, and must not find the authority back and themselves refused.
async fn waited_for(hurry: &Notify, state: &watch::Sender<State>, floor: Duration) {
    tokio::time::sleep(floor).await;
    // Receivers are callers that wait, nobody else.
    while state.receiver_count() == 0 {
        hurry.notified().await;
    }
}

/// Shortest time between a failure and an attempt that a caller asks for: connections that come by the
/// thousand while the authority is down cost it one request a second for each identity.
const FLOOR: Duration = Duration::from_secs(1);

/// Shortest time between a success and the next attempt: what is signed by who is about to end has nearly ended already.
const SOONEST: Duration = Duration::from_millis(100);

fn pause(config: &CertificatesConfig, failures: u32) -> Duration {
    config
        .first_pause
        .saturating_mul(1 << failures.min(16))
        .min(config.longest_pause)
}

/// A number in 0..1, so that a node's certificates do not all renew in the same second.
fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness everything else here has failed too; the middle will do.
    aws_lc_rs::rand::fill(&mut bytes).map_or(0.5, |()| {
        f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)
    })
}

/// A new P-256 key (PKCS #8) and a request (PEM) whose only name is the identity.
pub(super) fn request(identity: &Identity) -> Result<(Vec<u8>, String), SignError> {
    let local = |e: rcgen::Error| SignError::Local(e.to_string());
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(local)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(
        identity.to_string().try_into().map_err(local)?,
    )];
    let csr = params
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .map_err(local)?;
    Ok((key.serialize_der(), csr))
}
