//! Sessions that clients may go on with here: the server's side of resumption.
//!
//! A session leaves sealed ([`OfConnection::encrypt`]): the client keeps it, and this process keeps a key for
//! each certificate of its own. It comes back ([`OfConnection::decrypt`]) and is taken only if a full handshake
//! would be as good at this moment:
//!
//! 1. sealed by this certificate's key: the same process, identity, certificate and roots
//! 2. the client showed its certificate, in whatever number of handshakes before, within [`super::lifetime::LIFETIME`]
//! 3. its chain passes the verifier that a full handshake asks, now: times, roots, identity, trust domain
//!
//! Otherwise the handshake is a full one. No early data is offered or taken.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    crypto::aws_lc_rs::Ticketer,
    pki_types::CertificateDer,
    server::{ProducesTickets, danger::ClientCertVerifier},
    time_provider::TimeProvider,
};

use super::lifetime::Moment;
use crate::records::wipe;

/// Tickets that a client may offer in one handshake and have looked at. Ours offers one.
const LOOKED_AT: u8 = 4;
/// Length of what is put before a session: when its certificates were shown.
const FRONT: usize = 16;

/// The tickets of one certificate of ours.
pub(super) struct Tickets {
    sealing: Arc<dyn ProducesTickets>,
    verifier: Arc<dyn ClientCertVerifier>,
    /// The end of our own chain, in seconds since 1970.
    ends: u64,
    clock: Arc<dyn TimeProvider>,
}

impl Tickets {
    /// Clients are judged by `verifier`; `ends` is when our own chain ends, in seconds since 1970.
    pub(super) fn new(
        verifier: Arc<dyn ClientCertVerifier>,
        ends: u64,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Arc<Self>, rustls::Error> {
        Ok(Arc::new(Self {
            sealing: Ticketer::new()?,
            verifier,
            ends,
            clock,
        }))
    }

    /// For one handshake.
    pub(super) fn of_connection(self: &Arc<Self>) -> Arc<dyn ProducesTickets> {
        Arc::new(OfConnection {
            tickets: self.clone(),
            offered: Mutex::default(),
        })
    }

    /// What a full handshake would say of a client's chain, now.
    pub(super) fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let now = self.now().ok_or(rustls::Error::FailedToGetCurrentTime)?;
        let (leaf, intermediates) = chain
            .split_first()
            .ok_or(rustls::Error::NoCertificatesPresented)?;
        self.verifier
            .verify_client_cert(leaf, intermediates, now.unix())
            .map(|_| ())
    }

    fn now(&self) -> Option<Moment> {
        Moment::now(&*self.clock)
    }
}

/// The tickets of one connection: what is sealed on it is as old as what it came from.
struct OfConnection {
    tickets: Arc<Tickets>,
    offered: Mutex<Offered>,
}

#[derive(Default)]
struct Offered {
    looked_at: u8,
    /// When the certificates of the session were shown that this connection goes on with.
    proven: Option<Moment>,
}

impl OfConnection {
    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let mut offered = self.offered.lock().unwrap_or_else(PoisonError::into_inner);
        if offered.looked_at >= LOOKED_AT {
            return None;
        }
        offered.looked_at += 1;
        let mut plain = self.tickets.sealing.decrypt(ticket)?;
        let proven = Moment::from_bytes(*plain.first_chunk::<FRONT>()?);
        let now = self.tickets.now()?;
        now.left(proven)?;
        if now.wall > self.tickets.ends {
            return None;
        }
        let chain = client_chain(&plain[FRONT..])?;
        self.tickets.judge(&chain).ok()?;
        // Should rustls not take it after all, what is sealed on this connection ends too soon.
        let oldest = offered.proven.map_or(proven, |other| {
            if proven.since(other).is_some() {
                other
            } else {
                proven
            }
        });
        offered.proven = Some(oldest);
        plain.drain(..FRONT);
        Some(plain)
    }

    fn seal(&self, session: &[u8]) -> Option<Vec<u8>> {
        client_chain(session)?;
        let now = self.tickets.now()?;
        let proven = self.proven().unwrap_or(now);
        now.left(proven)?;
        let mut plain = Vec::with_capacity(FRONT + session.len());
        plain.extend_from_slice(&proven.to_bytes());
        plain.extend_from_slice(session);
        let sealed = self.tickets.sealing.encrypt(&plain);
        wipe(&mut plain);
        sealed
    }

    fn proven(&self) -> Option<Moment> {
        self.offered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .proven
    }
}

impl ProducesTickets for OfConnection {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        let left = self.tickets.now().and_then(|now| {
            let left = now.left(self.proven().unwrap_or(now))?;
            Some(
                left.as_secs()
                    .min(self.tickets.ends.saturating_sub(now.wall)),
            )
        });
        u32::try_from(left.unwrap_or(0)).unwrap_or(0)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher)
    }
}

impl fmt::Debug for OfConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OfConnection")
    }
}

/// The client's chain in a session as rustls writes it down. It has no name for this in public, so it is read
/// here, strictly: what is not a session of TLS 1.3 with a client's chain and without a server name makes
/// no ticket. What rustls itself read is judged once more when the handshake is done.
fn client_chain(session: &[u8]) -> Option<Vec<CertificateDer<'_>>> {
    let mut rest = Bytes(session);
    let [no_name, version @ ..] = *rest.array::<3>()?;
    if no_name != 0 || version != [3, 4] {
        return None;
    }
    rest.array::<2>()?; // cipher suite
    rest.counted::<1>()?; // secret
    let [extended, has_chain] = *rest.array()?;
    if extended != 0 || has_chain != 1 {
        return None;
    }
    let mut certificates = Bytes(rest.counted::<3>()?);
    let mut chain = Vec::new();
    while !certificates.0.is_empty() {
        chain.push(CertificateDer::from(certificates.counted::<3>()?));
    }
    match rest.array()? {
        [0] => {}
        [1] => drop(rest.counted::<1>()?), // ALPN
        _ => return None,
    }
    rest.counted::<2>()?; // application data
    rest.array::<12>()?; // time of creation, offset of the age
    (rest.0.is_empty() && !chain.is_empty()).then_some(chain)
}

/// What is still to be read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn array<const N: usize>(&mut self) -> Option<&'a [u8; N]> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(front)
    }

    /// Bytes behind their length, which has `N` bytes.
    fn counted<const N: usize>(&mut self) -> Option<&'a [u8]> {
        let length = self
            .array::<N>()?
            .iter()
            .fold(0, |length, byte| length << 8 | usize::from(*byte));
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }
}

#[cfg(test)]
mod tests;
