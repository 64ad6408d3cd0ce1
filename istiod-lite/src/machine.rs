//! Machines that are no pods: who may join the mesh, and who has.
//!
//! 1. an operator has a token made, which says all there is to say of a machine      ([`crate::token::Join`])
//! 2. the machine comes with it and with a key of its own. The first key that comes has the token for good; whoever
//!    comes with another is refused, and that is said loudly                         ([`Machines::join`])
//! 3. from then on it shows the certificate over that key, and no token. It is believed as long as the machine is in
//!    the book with this key, comes from its own address, and was not away for too long   ([`Machines::known`])
//! 4. an operator takes it out of the book: that ends 3, and the token of 2 with it  ([`Machines::remove`])
//!
//! Nothing that a machine says of itself decides anything: names, account and address are those of the token, or seen by us. What
//! it says is compared, and a difference is refused.
//!
//! The book outlives us ([`store`]): a token that was used stays used. While a machine is there it says so ([`presence`]), and has
//! the WorkloadEntry of its group ([`register`]; what it looks like and when it goes: [`entry`], pure), in a [`folder`] or as one of the
//! [`objects`] of a cluster, where several [`replicas`] do so. Who is refused is told of in [`events`].

pub mod entry;
pub mod events;
pub mod folder;
pub mod objects;
pub mod presence;
pub mod register;
pub mod replicas;
pub mod shown;
pub mod store;

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hbone::control_plane::MachineName;
use serde::{Deserialize, Serialize};

use crate::metrics::{Metrics, NotJoined};
use crate::serve::Peer;
use crate::token::{JOIN_AUDIENCE, Join, JoinClaims, Tokens, now, now_in_millis};
use events::Events;
use shown::Shown;
use store::{Admission, Store, Use};
use tokio::sync::OnceCell;

/// The book of machines, and the rules by which it is written.
pub struct Machines {
    /// Read when they are needed first: a cluster may not be reached yet.
    tokens: OnceCell<Tokens>,
    store: Store,
    trust_domain: Arc<str>,
    absence: Duration,
    metrics: Arc<Metrics>,
    /// One join at a time: they are rare, and each looks before it writes.
    turn: tokio::sync::Mutex<()>,
    /// Who is told of refusals, with Kubernetes.
    events: OnceLock<Events>,
}

/// A machine that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// What its token said; the address is filled in.
    pub join: Join,
    /// Where its workload is.
    pub address: IpAddr,
    /// SHA-256 of its public key, in hex.
    pub key: String,
    /// The token it joined by.
    pub token: String,
    /// When, in milliseconds since 1970.
    pub joined: u64,
    /// When it was taken out, in the same. What is left keeps older tokens from bringing it back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<u64>,
}

/// What is known of a connection beside its requests.
#[derive(Debug, Clone, Default)]
pub struct Connection {
    /// Who is at the other end.
    pub peer: Option<IpAddr>,
    /// The certificate it showed, which leads to our roots.
    pub shown: Option<Arc<Shown>>,
}

impl Connection {
    /// That of a request, by what the port has put beside it.
    pub fn of(extensions: &http::Extensions) -> Self {
        Self::with(extensions.get(), extensions.get())
    }

    /// Of its parts.
    pub fn with(peer: Option<&Peer>, shown: Option<&Arc<Shown>>) -> Self {
        Self {
            peer: peer.map(|peer| peer.0.ip().to_canonical()),
            shown: shown.cloned(),
        }
    }
}

/// A machine is not believed.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Wrong signature, another audience, or expired.
    #[error("join token refused: {0}")]
    Token(#[from] jsonwebtoken::errors::Error),
    /// Whoever has the key it was used with has the identity.
    #[error(
        "the join token for {machine} was used before: {by} at {at} (seconds since 1970) with another key. Whoever came first has joined; if \
         that was not your machine, take it out (istiod-lite vm remove {machine}) and make another token"
    )]
    Used {
        /// `namespace/name`
        machine: String,
        /// From where.
        by: IpAddr,
        /// Seconds since 1970.
        at: u64,
    },
    /// It was taken out, or another has joined under its name since the token was made.
    #[error(
        "the join token for {0} is from before the machine of that name joined or was taken out; make another one"
    )]
    Outdated(String),
    /// The token, or the book, says where it must be.
    #[error("{machine} is at {address}, and this came from {from}")]
    Elsewhere {
        /// `namespace/name`
        machine: String,
        /// Its own.
        address: IpAddr,
        /// The peer's.
        from: IpAddr,
    },
    /// The connection's other end is not known, and something hangs on it.
    #[error("it is not known where the connection comes from")]
    NoPeer,
    /// Of another mesh under the same root.
    #[error("{0} is of another trust domain than ours")]
    TrustDomain(MachineName),
    /// Never was, or was taken out.
    #[error("{0} is in no book: it never joined, or was taken out")]
    Unknown(String),
    /// A certificate of the mesh, but none over the machine's own key.
    #[error("the certificate is not over the key that {0} joined with last")]
    OtherKey(String),
    /// Its certificate ended long ago.
    #[error("the certificate of {machine} ended {} s ago, which is too long; it needs another token", .ago.as_secs())]
    Away {
        /// `namespace/name`
        machine: String,
        /// Since then.
        ago: Duration,
    },
    /// It says something else of itself than is so.
    #[error("{machine} says that its {what} is {said:?}, and it is {is:?}")]
    Lies {
        /// `namespace/name`
        machine: String,
        /// Of what.
        what: &'static str,
        /// By it.
        said: String,
        /// By the book.
        is: String,
    },
    /// The book cannot be read or written.
    #[error("the book of machines: {0}")]
    Store(#[from] io::Error),
}

impl Refused {
    /// What the machine is told: what its operator must know, and nothing of others.
    pub fn advice(&self) -> &'static str {
        match self.reason() {
            "token_used" => "the join token was used before with another key",
            "token_expired" => "the join token has expired",
            "token_outdated" => "the join token is outdated",
            "address" => "this is not the machine's address",
            "unknown" => "no such machine has joined, or it was taken out; it needs a join token",
            "key" => "this is not the key that the machine joined with; it needs a join token",
            "away" => "the machine was away for too long; it needs a join token",
            "lies" => "the machine says of itself what is not so",
            _ => "the machine is refused",
        }
    }

    /// For the counter.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Token(error) => match error.kind() {
                jsonwebtoken::errors::ErrorKind::ExpiredSignature => "token_expired",
                _ => "token_invalid",
            },
            Self::Used { .. } => "token_used",
            Self::Outdated(_) => "token_outdated",
            Self::Elsewhere { .. } | Self::NoPeer => "address",
            Self::Unknown(_) => "unknown",
            Self::OtherKey(_) => "key",
            Self::TrustDomain(_) => "trust_domain",
            Self::Away { .. } => "away",
            Self::Lies { .. } => "lies",
            Self::Store(_) => "store",
        }
    }
}

impl Machine {
    /// `namespace/name`
    pub fn reference(&self) -> String {
        reference(&self.join)
    }

    /// What its own certificate says.
    pub fn certified(&self, trust_domain: &str) -> MachineName {
        MachineName {
            trust_domain: trust_domain.into(),
            namespace: self.join.namespace.clone(),
            name: self.join.name.clone(),
        }
    }

    /// Whether an address is one of its own.
    pub fn is_at(&self, address: IpAddr) -> bool {
        address == self.address || self.join.addresses.contains(&address)
    }

    /// Compares what the machine says of itself.
    ///
    /// # Errors
    /// What is not so.
    pub fn says(&self, what: &'static str, said: &str, is: &str) -> Result<(), Refused> {
        if said.is_empty() || said == is {
            return Ok(());
        }
        Err(Refused::Lies {
            machine: self.reference(),
            what,
            said: said.into(),
            is: is.into(),
        })
    }
}

impl Machines {
    /// Over a book; a machine may be away for `absence` after its certificate has ended.
    pub fn new(
        store: Store,
        trust_domain: Arc<str>,
        absence: Duration,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            tokens: OnceCell::new(),
            store,
            trust_domain,
            absence,
            metrics,
            turn: tokio::sync::Mutex::default(),
            events: OnceLock::new(),
        })
    }

    /// Whether a bearer token is meant for [`Machines::join`]. What it says is believed only there.
    pub fn is_for_joining(token: &str) -> bool {
        #[derive(Deserialize)]
        struct Audience {
            #[serde(default)]
            aud: serde_json::Value,
        }
        let claims = token.split('.').nth(1);
        let claims = claims.and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let claims = claims.and_then(|json| serde_json::from_slice::<Audience>(&json).ok());
        claims.is_some_and(|claims| match claims.aud {
            serde_json::Value::Array(all) => all.iter().any(|one| one == JOIN_AUDIENCE),
            one => one == JOIN_AUDIENCE,
        })
    }

    /// The machine that a token makes of whoever holds `key` (the fingerprint of a key whose holder has proved that
    /// it is) and says that it is `workload`, if it says so.
    ///
    /// # Errors
    /// Why not. It has been said in the log and counted.
    pub async fn join(
        &self,
        token: &str,
        key: &str,
        workload: &str,
        connection: &Connection,
    ) -> Result<Arc<Machine>, Refused> {
        let tokens = self.tokens.get_or_try_init(|| self.store.tokens()).await;
        let outcome = match tokens {
            Err(error) => Err((error.into(), None)),
            Ok(tokens) => match tokens.verify_join(token) {
                Err(error) => Err((error.into(), tokens.whose_join(token))),
                Ok(claims) => {
                    let entered = self.enter(&claims, key, workload, connection).await;
                    entered.map_err(|error| (error, Some(claims.join)))
                }
            },
        };
        outcome.map_err(|(error, whose)| {
            self.say(&error, connection, whose.as_ref());
            error
        })
    }

    async fn enter(
        &self,
        claims: &JoinClaims,
        key: &str,
        workload: &str,
        connection: &Connection,
    ) -> Result<Arc<Machine>, Refused> {
        let from = connection.peer.ok_or(Refused::NoPeer)?;
        let join = &claims.join;
        let name = reference(join);
        if !workload.is_empty() && workload != name {
            return Err(Refused::Lies {
                machine: name.clone(),
                what: "name",
                said: workload.into(),
                is: name,
            });
        }
        let address = join.addresses.first().copied().unwrap_or(from);
        if address != from && !join.addresses.contains(&from) && !join.translated {
            return Err(Refused::Elsewhere {
                machine: name,
                address,
                from,
            });
        }
        let _turn = self.turn.lock().await;
        let first = Use {
            key: key.into(),
            machine: name.clone(),
            from,
            at: now(),
            until: claims.exp,
        };
        let fresh = Machine {
            join: join.clone(),
            address,
            key: key.into(),
            token: claims.jti.clone(),
            joined: now_in_millis(),
            ended: None,
        };
        let admission = self.store.admit(&first, &fresh, claims.made).await?;
        self.store.look_anew();
        match admission {
            Admission::Before(machine) => Ok(Arc::new(machine)),
            Admission::Outdated => Err(Refused::Outdated(name)),
            Admission::Used(earlier) => Err(Refused::Used {
                machine: name,
                by: earlier.from,
                at: earlier.at,
            }),
            Admission::Fresh(machine) => {
                self.metrics.machines_joined.increment();
                let account = &machine.join.service_account;
                tracing::info!(machine = name, %address, %from, service_account = account, "a machine has joined");
                Ok(Arc::new(machine))
            }
        }
    }

    /// The machine that shows a certificate and says that it is `workload`, if it says so.
    ///
    /// # Errors
    /// Why it is not believed. It has been said in the log and counted.
    pub async fn known(
        &self,
        workload: &str,
        shown: &Shown,
        connection: &Connection,
    ) -> Result<Arc<Machine>, Refused> {
        let known = self.recognise(workload, shown, connection).await;
        if let Err(error) = &known {
            self.say_of(error, connection, &shown.machine).await;
        }
        known
    }

    /// The same as [`Self::say`], of whom the book knows more than the machine's name.
    async fn say_of(&self, error: &Refused, connection: &Connection, name: &MachineName) {
        let MachineName {
            namespace, name, ..
        } = name;
        let machine = self.store.machine(namespace, name).await.ok().flatten();
        self.say(error, connection, machine.as_ref().map(|it| &it.join));
    }

    async fn recognise(
        &self,
        workload: &str,
        shown: &Shown,
        connection: &Connection,
    ) -> Result<Arc<Machine>, Refused> {
        let MachineName {
            trust_domain,
            namespace,
            name,
        } = &shown.machine;
        if **trust_domain != *self.trust_domain {
            return Err(Refused::TrustDomain(shown.machine.clone()));
        }
        let reference = format!("{namespace}/{name}");
        let stands = |it: &Machine| it.ended.is_none();
        let mut machine = self.store.machine(namespace, name).await?;
        if !machine
            .as_ref()
            .is_some_and(|it| stands(it) && it.key == shown.key)
        {
            // It may have joined a moment ago, by another replica.
            self.store.look_anew();
            machine = self.store.machine(namespace, name).await?;
        }
        let machine = machine.filter(stands);
        let machine = machine.ok_or_else(|| Refused::Unknown(reference.clone()))?;
        if machine.key != shown.key {
            return Err(Refused::OtherKey(reference));
        }
        machine.says("name", workload, &reference)?;
        let ago = SystemTime::now().duration_since(shown.not_after);
        if let Ok(ago) = ago
            && ago > self.absence
        {
            return Err(Refused::Away {
                machine: reference,
                ago,
            });
        }
        let from = connection.peer.ok_or(Refused::NoPeer)?;
        if !machine.is_at(from) && !machine.join.translated {
            return Err(Refused::Elsewhere {
                machine: reference,
                address: machine.address,
                from,
            });
        }
        Ok(Arc::new(machine))
    }

    /// Returns when a machine is known no more: it was taken out, or has joined anew with another key. That the book cannot be read
    /// for a while is no reason.
    pub async fn until_gone(&self, workload: &str, shown: &Shown, connection: &Connection) {
        loop {
            tokio::time::sleep(LOOK).await;
            match self.recognise(workload, shown, connection).await {
                Ok(_) | Err(Refused::Store(_)) => {}
                Err(error) => return self.say_of(&error, connection, &shown.machine).await,
            }
        }
    }

    /// A machine that is known says something of itself that is not so: told as loudly as all else.
    pub fn lied(&self, lie: &Refused, machine: &Machine, connection: &Connection) {
        self.say(lie, connection, Some(&machine.join));
    }

    /// From now on whoever looks after a machine's group, or its account, hears of refusals there.
    pub fn tell(&self, events: Events) {
        // Told twice it would be told by the first.
        let _ = self.events.set(events);
    }

    /// In the log, in the counter, and in an event; `whose`: what is proven of who came.
    fn say(&self, error: &Refused, connection: &Connection, whose: Option<&Join>) {
        let reason = error.reason();
        if let (Some(events), Some(join)) = (self.events.get(), whose) {
            events.say(join, error, connection.peer);
        }
        self.metrics
            .machines_refused
            .get_or_create(&NotJoined { reason })
            .increment();
        let from = connection.peer.map(tracing::field::display);
        tracing::warn!(%error, reason, from, "a machine is refused");
    }
}

/// Takes a machine out of a book: it gets no more certificates, and by no token that was made before does anybody join under
/// its name. Whoever serves reads the book each time. `false` when there was none.
///
/// # Errors
/// When the book cannot be read or written.
pub async fn remove(store: &Store, namespace: &str, name: &str) -> io::Result<bool> {
    let standing = store.machine(namespace, name).await?;
    let Some(machine) = standing.filter(|machine| machine.ended.is_none()) else {
        return Ok(false);
    };
    let ended = Some(now_in_millis());
    store.put(&Machine { ended, ..machine }).await?;
    Ok(true)
}

fn reference(join: &Join) -> String {
    format!("{}/{}", join.namespace, join.name)
}

/// Whether it can be the name of an object; that of a file, then, too.
pub fn is_name(text: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 253
        && text.chars().all(good)
        && text.starts_with(ends)
        && text.ends_with(ends)
        && !text.contains("..")
}

/// How often it is looked whether a machine that is connected was taken out.
const LOOK: Duration = Duration::from_secs(10);

/// Seconds since 1970 as a time.
pub fn time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests;
