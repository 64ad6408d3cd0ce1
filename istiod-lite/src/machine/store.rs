//! Where the book of machines is kept: as files beside the token key, or in a Secret of a cluster.
//!
//! * Files: one a machine and one a token that was used. Each is read when it is asked for, so whoever changes them
//!   (`istiod-lite vm remove`, another process on the same state) is heeded at once. A token is claimed by making its
//!   file: of two that come at once, one makes it. Should the machine's own file then not be written, the claim stands for
//!   whoever made it: the same key comes again, and goes on from there.
//! * Secret `istio-machines`: a key of its own for each. Every change names the version that it is a change of, so of two
//!   replicas that write at once one begins anew, with what the other wrote before its eyes; the use of a token and the machine that
//!   joined by it are one change. What is only looked up may be some
//!   seconds old ([`OLDEST`]); whether a token was used never is. It is a Secret because who could write it could make anybody
//!   a machine, and it holds the key that signs tokens.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Machine;
use crate::disk;
use crate::disk::aside;
use crate::token::{KeyError, LONGEST_JOIN, Tokens, now};

/// The book.
#[derive(Clone)]
pub enum Store {
    /// Files below a state directory.
    Directory {
        /// That directory.
        state: PathBuf,
    },
    /// A Secret of a cluster.
    Cluster(Arc<InSecret>),
}

/// The first use of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Use {
    /// The key that has it now.
    pub key: String,
    /// `namespace/name`
    pub machine: String,
    /// Who came.
    pub from: IpAddr,
    /// When, in seconds since 1970.
    pub at: u64,
    /// The token's own end, in seconds since 1970.
    pub until: u64,
}

/// Whether a machine was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It was.
    Fresh(Machine),
    /// It had been, by the same token and with the same key: the answer was lost.
    Before(Machine),
    /// The token was used with another key.
    Used(Use),
    /// A machine of its name has joined, or was taken out, since the token was made.
    Outdated,
}

/// The book in a cluster.
pub struct InSecret {
    secrets: Api<Secret>,
    /// As it was last read, and when.
    last: Mutex<Option<(Instant, Arc<Data>)>>,
}

type Data = BTreeMap<String, ByteString>;

impl Store {
    /// Below this state directory.
    pub fn directory(state: &Path) -> Self {
        Self::Directory {
            state: state.to_owned(),
        }
    }

    /// In the Secret of this namespace.
    pub fn cluster(client: Client, namespace: &str) -> Self {
        Self::Cluster(Arc::new(InSecret {
            secrets: Api::namespaced(client, namespace),
            last: Mutex::default(),
        }))
    }

    /// Who signs the tokens of this book; the key is made when there is none.
    ///
    /// # Errors
    /// When it cannot be read or made.
    pub async fn tokens(&self) -> io::Result<Tokens> {
        match self {
            Self::Directory { state } => {
                let state = state.clone();
                aside(move || Tokens::open(&state).map_err(io::Error::other)).await
            }
            Self::Cluster(secret) => secret.tokens().await,
        }
    }

    /// Lets a machine in by a token that was made at `made` (milliseconds since 1970): the token is used then, and the machine in the
    /// book, both or neither.
    ///
    /// # Errors
    /// When that cannot be read or written: then it has not joined, and may try again.
    pub async fn admit(&self, first: &Use, fresh: &Machine, made: u64) -> io::Result<Admission> {
        let (first, fresh) = (first.clone(), fresh.clone());
        let name = of_machine(&fresh.join.namespace, &fresh.join.name)?;
        match self {
            Self::Directory { state } => {
                let tokens = state.join(TOKENS);
                let claim = file(&tokens, &fresh.token)?;
                let place = file(&state.join(MACHINES), &name)?;
                aside(move || {
                    sweep(&tokens);
                    let mut earlier = None;
                    if !disk::create(&claim, &json(&first)?, disk::SECRET)? {
                        let forgotten = || io::Error::other("a used token was forgotten meanwhile");
                        earlier = Some(read::<Use>(&claim)?.ok_or_else(forgotten)?);
                    }
                    let admission = judge(earlier, read(&place)?, &fresh, made);
                    if let Admission::Fresh(machine) = &admission {
                        disk::replace(&place, &json(machine)?, disk::SECRET)?;
                    }
                    Ok(admission)
                })
                .await
            }
            Self::Cluster(secret) => {
                let claim = key(TOKENS, &fresh.token)?;
                let place = key(MACHINES, &name)?;
                secret.admit(&claim, &place, &first, &fresh, made).await
            }
        }
    }

    /// The machine of that name, also one that was taken out.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub async fn machine(&self, namespace: &str, name: &str) -> io::Result<Option<Machine>> {
        let name = of_machine(namespace, name)?;
        match self {
            Self::Directory { state } => {
                let path = file(&state.join(MACHINES), &name)?;
                aside(move || read(&path)).await
            }
            Self::Cluster(secret) => {
                let data = secret.look().await?;
                data.get(&key(MACHINES, &name)?).map(parse).transpose()
            }
        }
    }

    /// What is looked up next is as it is then.
    pub fn look_anew(&self) {
        if let Self::Cluster(secret) = self {
            secret.forget();
        }
    }

    /// Writes a machine into the book, over an earlier one of that name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn put(&self, machine: &Machine) -> io::Result<()> {
        let name = of_machine(&machine.join.namespace, &machine.join.name)?;
        let text = json(machine)?;
        match self {
            Self::Directory { state } => {
                let path = file(&state.join(MACHINES), &name)?;
                aside(move || disk::replace(&path, &text, disk::SECRET)).await
            }
            Self::Cluster(secret) => {
                let (key, text) = (key(MACHINES, &name)?, ByteString(text));
                let put = |data: &mut Data| {
                    data.insert(key.clone(), text.clone());
                    Ok(((), true))
                };
                secret.change(put).await
            }
        }
    }

    /// All machines that were not taken out, by name.
    ///
    /// # Errors
    /// When one cannot be read.
    pub async fn list(&self) -> io::Result<Vec<Machine>> {
        let mut machines: Vec<Machine> = match self {
            Self::Directory { state } => {
                let folder = state.join(MACHINES);
                aside(move || {
                    let mut machines = Vec::new();
                    for path in files(&folder) {
                        machines.extend(read::<Machine>(&path)?);
                    }
                    Ok(machines)
                })
                .await?
            }
            Self::Cluster(secret) => {
                let data = secret.look().await?;
                let ours = data.iter().filter(|(key, _)| is_of(key, MACHINES));
                ours.map(|(_, text)| parse(text))
                    .collect::<Result<_, _>>()?
            }
        };
        machines.retain(|machine| machine.ended.is_none());
        machines.sort_by_key(Machine::reference);
        Ok(machines)
    }
}

impl InSecret {
    async fn tokens(&self) -> io::Result<Tokens> {
        let made = |data: &mut Data| {
            if data.contains_key(KEY) {
                return Ok(((), false));
            }
            let fresh = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
                .map_err(io::Error::other)?;
            let pem = fresh.serialize_pem().into_bytes();
            data.insert(KEY.to_owned(), ByteString(pem));
            Ok(((), true))
        };
        self.change(made).await?;
        let data = self.fresh().await?.data.unwrap_or_default();
        let pem = data.get(KEY).map(|pem| String::from_utf8_lossy(&pem.0));
        let pem = pem.ok_or_else(|| io::Error::other(format!("Secret {NAME} has no {KEY}")))?;
        Tokens::of_key(&pem).map_err(|error: KeyError| io::Error::other(error))
    }

    async fn admit(
        &self,
        claim: &str,
        place: &str,
        first: &Use,
        fresh: &Machine,
        made: u64,
    ) -> io::Result<Admission> {
        let (claimed, placed) = (ByteString(json(first)?), ByteString(json(fresh)?));
        self.change(|data| {
            let earlier = data.get(claim).map(parse::<Use>).transpose()?;
            let standing = data.get(place).map(parse::<Machine>).transpose()?;
            let admission = judge(earlier, standing, fresh, made);
            let is_new = matches!(admission, Admission::Fresh(_));
            if is_new {
                let end = now().saturating_sub(MARGIN);
                data.retain(|key, text| matters(key, text, end));
                data.insert(claim.to_owned(), claimed.clone());
                data.insert(place.to_owned(), placed.clone());
                // Only who comes is refused: whoever is to be taken out always can be.
                if size(data) > LARGEST {
                    return Err(io::Error::other(format!(
                        "Secret {NAME} is full; take machines out"
                    )));
                }
            }
            Ok((admission, is_new))
        })
        .await
    }

    /// Changes what is there, and not what was there: `change` says what came of it, and whether anything is to be written.
    async fn change<T>(
        &self,
        mut change: impl FnMut(&mut Data) -> io::Result<(T, bool)>,
    ) -> io::Result<T> {
        for _ in 0..TRIES {
            let mut secret = self.fresh().await?;
            let data = secret.data.get_or_insert_default();
            let (outcome, is_new) = change(data)?;
            if !is_new {
                return Ok(outcome);
            }
            let how = PostParams::default();
            let written = self.secrets.replace(NAME, &how, &secret).await;
            match written {
                Ok(_) => {
                    self.forget();
                    return Ok(outcome);
                }
                Err(kube::Error::Api(refusal)) if refusal.code == CONFLICT => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Err(io::Error::other(format!(
            "Secret {NAME}: others write at the same time, again and again"
        )))
    }

    /// As it is at this moment; an empty one is made where there is none.
    async fn fresh(&self) -> io::Result<Secret> {
        for _ in 0..TRIES {
            let found = self.secrets.get_opt(NAME).await;
            if let Some(secret) = found.map_err(|error| failed(&error))? {
                return Ok(secret);
            }
            let empty = Secret {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                ..Secret::default()
            };
            let made = self.secrets.create(&PostParams::default(), &empty).await;
            match made {
                Ok(secret) => return Ok(secret),
                Err(kube::Error::Api(refusal)) if refusal.code == CONFLICT => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Err(io::Error::other(format!("Secret {NAME} comes and goes")))
    }

    /// As it was some seconds ago at most.
    async fn look(&self) -> io::Result<Arc<Data>> {
        let last = self
            .last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some((at, data)) = last
            && at.elapsed() < OLDEST
        {
            return Ok(data);
        }
        let at = Instant::now();
        let data = Arc::new(self.fresh().await?.data.unwrap_or_default());
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, data.clone()));
        Ok(data)
    }

    fn forget(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Whether `fresh` may join, by what the book says of its token and of its name. Pure.
fn judge(earlier: Option<Use>, standing: Option<Machine>, fresh: &Machine, made: u64) -> Admission {
    if let Some(earlier) = earlier
        && earlier.key != fresh.key
    {
        return Admission::Used(earlier);
    }
    match standing {
        Some(it) if it.token == fresh.token && it.key == fresh.key && it.ended.is_none() => {
            Admission::Before(it)
        }
        // A token that lay about somewhere does not put another in the place of a machine that has joined, or was taken
        // out, since.
        Some(it) if it.ended.unwrap_or(it.joined) >= made => Admission::Outdated,
        // The token was used by this key before, and the book could not be written: so it is now.
        _ => Admission::Fresh(fresh.clone()),
    }
}

/// Whether what was written down under a key is still of use at `end`, in seconds since 1970: a token as long as it lasts, a machine that
/// was taken out as long as a token lasts that was made before. Pure.
fn matters(key: &str, text: &ByteString, end: u64) -> bool {
    if is_of(key, TOKENS) {
        return parse::<Use>(text).is_ok_and(|it| it.until >= end);
    }
    let ended = is_of(key, MACHINES).then(|| parse::<Machine>(text).ok()?.ended);
    let outlasts = |ended: u64| ended / 1000 + LONGEST_JOIN.as_secs() >= end;
    ended.flatten().is_none_or(outlasts)
}

fn size(data: &Data) -> usize {
    data.iter()
        .map(|(key, text)| key.len() + text.0.len())
        .sum()
}

/// The file of that name; only of a name that leads nowhere else.
fn file(folder: &Path, name: &str) -> io::Result<PathBuf> {
    Ok(folder.join(format!("{}.json", named(name)?)))
}

fn key(of: &str, name: &str) -> io::Result<String> {
    Ok(format!("{of}.{}", named(name)?))
}

fn is_of(key: &str, of: &str) -> bool {
    key.strip_prefix(of)
        .is_some_and(|rest| rest.starts_with('.'))
}

fn named(name: &str) -> io::Result<&str> {
    let odd = || io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no name"));
    super::is_name(name).then_some(name).ok_or_else(odd)
}

/// A namespace has no dot: the first one ends it.
fn of_machine(namespace: &str, name: &str) -> io::Result<String> {
    let good = super::is_name(namespace) && !namespace.contains('.') && super::is_name(name);
    let odd = || {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{namespace}/{name}: no name"),
        )
    };
    good.then(|| format!("{namespace}.{name}")).ok_or_else(odd)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths
        .filter(|path| path.extension().is_some_and(|it| it == "json"))
        .collect()
}

/// Tokens that have expired need no more be known as used.
fn sweep(folder: &Path) {
    for path in files(folder) {
        if let Ok(Some(old)) = read::<Use>(&path)
            && old.until.saturating_add(MARGIN) < now()
        {
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let Some(text) = disk::read_if_any(path)? else {
        return Ok(None);
    };
    let at = |error| io::Error::other(format!("{}: {error}", path.display()));
    serde_json::from_str(&text).map(Some).map_err(at)
}

fn parse<T: DeserializeOwned>(text: &ByteString) -> io::Result<T> {
    serde_json::from_slice(&text.0).map_err(io::Error::other)
}

fn json(value: &impl Serialize) -> io::Result<Vec<u8>> {
    serde_json::to_vec_pretty(value).map_err(io::Error::other)
}

fn failed(error: &kube::Error) -> io::Error {
    io::Error::other(format!("Secret {NAME}: {error}"))
}

/// Of the Secret.
const NAME: &str = "istio-machines";
/// In it: what signs tokens.
const KEY: &str = "token-key.pem";
const MACHINES: &str = "machines";
const TOKENS: &str = "join-tokens";
/// Longer than any clock is set back by mistake, in seconds.
const MARGIN: u64 = 7 * 24 * 3600;
/// How long a machine that was taken out by another replica is believed here.
const OLDEST: Duration = Duration::from_secs(5);
/// An object may have a MiB; this is some two thousand machines. What is left is for taking them out, which adds a few bytes to each.
const LARGEST: usize = 900 << 10;
const TRIES: usize = 8;
const CONFLICT: u16 = 409;
