//! Which replicas of the control plane are alive, as far as that is of concern to machines: who has died cannot say that its
//! machines left.
//!
//! 1. while anybody's machine is connected, each replica writes a word of its own into one Lease, every ten seconds
//! 2. all of them follow it; a replica whose word stays the same while ours has changed several times is silent  ([`Signs`], pure)
//!
//! Time is counted by our own words coming back: while the API server is away nothing comes back, and nobody falls silent. No clock is
//! compared with another's. A replica that has just started has not seen enough of its own to say anything of others.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::entry::now;
use crate::cluster::{Connection, Health};
use crate::write::{follow, said};

/// The replicas there are.
pub struct Replicas {
    /// Our own name: no other process has it, nor this pod after a restart.
    me: String,
    signs: Mutex<Signs>,
    begun: Instant,
    /// Nowhere where there can be no others.
    place: Option<Place>,
}

struct Place {
    connection: Connection,
    health: Health,
    namespace: String,
}

/// What was heard of them. Pure.
#[derive(Debug, Default)]
pub struct Signs {
    /// Our own word, and how often it came back changed.
    own: (String, u64),
    /// Of each other: its last word, and at which of ours it was heard first.
    others: BTreeMap<String, (String, u64)>,
}

impl Signs {
    /// All words there are now, by replica.
    pub fn hear(&mut self, me: &str, words: &BTreeMap<String, String>) {
        if let Some(word) = words.get(me)
            && *word != self.own.0
        {
            self.own = (word.clone(), self.own.1.saturating_add(1));
        }
        let at = self.own.1;
        for (who, word) in words.iter().filter(|(who, _)| *who != me) {
            let heard = self.others.entry(who.clone()).or_insert((word.clone(), at));
            if heard.0 != *word {
                *heard = (word.clone(), at);
            }
        }
        // Whoever has no word there any more is as silent as one whose word stays the same.
        self.others
            .retain(|who, (_, heard)| words.contains_key(who) || at - *heard <= FORGET);
    }

    /// Whether nothing new was heard of it for a while. Of whom nothing was heard at all, the while begins with the question.
    pub fn is_silent(&mut self, who: &str) -> bool {
        let at = self.own.1;
        let unheard = || (String::new(), at);
        let (_, heard) = self.others.entry(who.to_owned()).or_insert_with(unheard);
        at - *heard >= SILENT
    }

    /// Who has been silent for so long that its word may go.
    fn forgettable(&self) -> impl Iterator<Item = &String> {
        let at = self.own.1;
        let old = self
            .others
            .iter()
            .filter(move |(_, (_, heard))| at - *heard >= FORGET);
        old.map(|(who, _)| who)
    }
}

impl Replicas {
    /// We are alone, as over a directory.
    pub fn alone() -> Self {
        Self::of("istiod-lite", None)
    }

    /// We are one of several, in this namespace; `pod` is our pod's name.
    pub fn several(connection: Connection, health: Health, namespace: &str, pod: &str) -> Self {
        let namespace = namespace.to_owned();
        let place = Place {
            connection,
            health,
            namespace,
        };
        Self::of(pod, Some(place))
    }

    fn of(pod: &str, place: Option<Place>) -> Self {
        let mut random = [0_u8; 8];
        // Without randomness the process's number must do.
        let _ = aws_lc_rs::rand::fill(&mut random);
        let number = u64::from_be_bytes(random) ^ u64::from(std::process::id());
        Self {
            me: format!("{pod}_{number:016x}"),
            signs: Mutex::default(),
            begun: Instant::now(),
            place,
        }
    }

    /// Our own name.
    pub fn me(&self) -> &str {
        &self.me
    }

    /// Whether a replica gives no sign of life. Of who was here before us it is said after a while.
    pub fn is_silent(&self, who: &str) -> bool {
        match self.place {
            None => who != self.me && self.begun.elapsed() >= BEAT * 4,
            Some(_) => who != self.me && self.signs().is_silent(word_of(who)),
        }
    }

    /// Follows the others, and says that we are alive while that is `needed`, until `stop`.
    pub async fn run(&self, needed: impl Fn() -> bool, stop: CancellationToken) {
        let Some(place) = &self.place else { return };
        let api = |client| Api::<Lease>::namespaced(client, &place.namespace);
        let leases = api(place.connection.client.clone());
        let watched = api(place.connection.watching.clone());
        let mut versions = pin!(follow::object(watched, NAME, &place.health, LEASES));
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        let work = async {
            loop {
                tokio::select! {
                    Some(lease) = versions.next() => {
                        let words = lease.as_ref().map(words).unwrap_or_default();
                        self.signs().hear(word_of(&self.me), &words);
                    }
                    _ = beat.tick() => if needed() {
                        let asked = tokio::time::timeout(REQUEST, self.beat(&leases)).await;
                        let error = match asked {
                            Ok(Ok(())) => None,
                            Ok(Err(error)) => Some(said(&error)),
                            Err(_) => Some("no answer in time".to_owned()),
                        };
                        if let Some(error) = error.as_ref().filter(|_| !failing) {
                            tracing::warn!(lease = NAME, error, "the sign of life for machines cannot be written");
                        }
                        failing = error.is_some();
                    }
                }
            }
        };
        let _ = stop.run_until_cancelled(work).await;
    }

    async fn beat(&self, leases: &Api<Lease>) -> Result<(), kube::Error> {
        let gone: Vec<String> = self.signs().forgettable().cloned().collect();
        let how = PostParams::default();
        let mut tries = 0;
        loop {
            let found = leases.get_opt(NAME).await?;
            let is_new = found.is_none();
            let mut lease = found.unwrap_or_else(|| Lease {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                ..Lease::default()
            });
            let annotations = lease.metadata.annotations.get_or_insert_default();
            annotations.retain(|key, _| !gone.iter().any(|who| *key == key_of(who)));
            annotations.insert(key_of(word_of(&self.me)), format!("{} {}", self.me, now()));
            let written = match is_new {
                true => leases.create(&how, &lease).await,
                false => leases.replace(NAME, &how, &lease).await,
            };
            match written {
                Ok(_) => return Ok(()),
                // Another said its word at the same time.
                Err(kube::Error::Api(status)) if status.code == CONFLICT && tries < TRIES => {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn signs(&self) -> MutexGuard<'_, Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A replica's part of its name that no other has; names of annotations are short.
fn word_of(name: &str) -> &str {
    name.rsplit('_').next().unwrap_or(name)
}

fn key_of(who: &str) -> String {
    format!("{PREFIX}{who}")
}

fn words(lease: &Lease) -> BTreeMap<String, String> {
    let all = lease.metadata.annotations.iter().flatten();
    let ours = all.filter_map(|(key, word)| Some((key.strip_prefix(PREFIX)?, word)));
    ours.map(|(who, word)| (who.to_owned(), word.clone()))
        .collect()
}

/// The Lease. Nobody holds it.
const NAME: &str = "istio-machines";
const LEASES: &str = "leases.coordination.k8s.io";
const PREFIX: &str = "replica.ambit.io/";
const BEAT: Duration = Duration::from_secs(10);
/// A beat that takes longer is as good as lost.
const REQUEST: Duration = Duration::from_secs(5);
/// So many of our own words later a word that stayed the same is no sign of life: longer than a machine takes to come back.
const SILENT: u64 = 5;
/// And so many later it is taken away.
const FORGET: u64 = 60;
const TRIES: u32 = 5;
const CONFLICT: u16 = 409;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::fake::Fake;

    fn heard(signs: &mut Signs, words: &[(&str, &str)]) {
        let owned = |(who, word): &(&str, &str)| ((*who).to_owned(), (*word).to_owned());
        signs.hear("me", &words.iter().map(owned).collect());
    }

    #[test]
    fn who_says_nothing_new_while_we_do_is_silent_and_nobody_is_while_nothing_comes_back() {
        let mut signs = Signs::default();
        heard(&mut signs, &[("b", "1"), ("c", "1")]);
        assert!(!signs.is_silent("b") && !signs.is_silent("never"));
        // The watch says the same again and again: that is no time.
        for _ in 0..10 {
            heard(&mut signs, &[("b", "1"), ("c", "1")]);
        }
        assert!(!signs.is_silent("b"));
        for own in 1..SILENT {
            let own = own.to_string();
            heard(&mut signs, &[("me", &own), ("b", "1"), ("c", &own)]);
        }
        assert!(!signs.is_silent("b"));
        heard(&mut signs, &[("me", "more"), ("b", "1"), ("c", "more")]);
        assert!(signs.is_silent("b") && !signs.is_silent("c"));
        assert!(signs.is_silent("never"));
        // It was only slow.
        heard(&mut signs, &[("me", "more"), ("b", "2"), ("c", "more")]);
        assert!(!signs.is_silent("b"));
        // Who was taken out of the list is silent too, a while later.
        for own in 0..SILENT {
            let own = format!("later {own}");
            heard(&mut signs, &[("me", &own), ("c", &own)]);
        }
        assert!(signs.is_silent("b") && !signs.is_silent("c"));
    }

    #[test]
    fn what_is_remembered_of_the_dead_is_bounded() {
        let mut signs = Signs::default();
        heard(&mut signs, &[("b", "1")]);
        for own in 0..=FORGET {
            heard(&mut signs, &[("me", &own.to_string()), ("b", "1")]);
        }
        assert_eq!(signs.forgettable().collect::<Vec<_>>(), ["b"]);
        for own in 0..2 {
            heard(&mut signs, &[("me", &format!("later {own}"))]);
        }
        assert!(signs.others.is_empty(), "{signs:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_dies_falls_silent_and_one_that_is_cut_off_judges_nobody() {
        let fake = Fake::new();
        let replica = |pod: &str| {
            let (connection, health) = (fake.connection(), Health::default());
            std::sync::Arc::new(Replicas::several(connection, health, "istio-system", pod))
        };
        let run = |replica: &std::sync::Arc<Replicas>| {
            let (replica, stop) = (replica.clone(), CancellationToken::new());
            let ended = stop.clone();
            tokio::spawn(async move { replica.run(|| true, ended).await });
            stop
        };
        let (one, other) = (replica("a"), replica("b"));
        let (_one, dies) = (run(&one), run(&other));
        tokio::time::sleep(BEAT * 6).await;
        assert!(!one.is_silent(other.me()) && !other.is_silent(one.me()));
        let lease = fake.object("leases", "istio-system", NAME).unwrap();
        assert_eq!(
            lease["metadata"]["annotations"].as_object().unwrap().len(),
            2
        );
        // Cut off: time passes, and nobody is said to be dead.
        fake.refuse(|_, _| Some(500));
        tokio::time::sleep(BEAT * 20).await;
        assert!(!one.is_silent(other.me()) && !other.is_silent(one.me()));
        fake.refuse_nothing();
        tokio::time::sleep(BEAT * 6).await;
        assert!(!one.is_silent(other.me()) && !other.is_silent(one.me()));
        dies.cancel();
        tokio::time::sleep(BEAT * 8).await;
        assert!(one.is_silent(other.me()));
        assert!(!one.is_silent(one.me()), "never oneself");
    }
}
