//! Secrets and ConfigMaps that policies name: each is asked for by itself, and nobody asks which there are.
//!
//! 1. the world says which are named                             ([`Credentials::want`])
//! 2. each is asked for again and again, by a task of its own    (`follow`): `get` is the only right it takes
//! 3. what is another than before goes into the source's queue
//!
//! What cannot be asked for because the API server does not answer stays what it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::k8s::dir::{Change, Fault};
use api::k8s::objects::{ConfigMap, Kind, Object, ObjectKey, Secret};
use api::k8s::server::Refusal;
use kube::{Api, Client};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::source::Heard;
use super::trouble::request_line;
use super::watch::Pause;

/// The tasks that ask.
pub(super) struct Credentials {
    client: Client,
    runtime: Handle,
    outbox: mpsc::Sender<Heard>,
    tasks: BTreeMap<ObjectKey, AbortOnDropHandle<()>>,
    unanswered: BTreeSet<ObjectKey>,
    /// Too many are named: these are not asked for.
    unread: BTreeSet<ObjectKey>,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    There(Object),
    Absent,
    Refused(String),
}

impl Credentials {
    pub(super) fn new(client: Client, outbox: mpsc::Sender<Heard>) -> Self {
        Self {
            client,
            runtime: Handle::current(),
            outbox,
            tasks: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            unread: BTreeSet::new(),
        }
    }

    /// Asks for those, and for no others any more; which of those that were known are gone with that.
    pub(super) fn want(&mut self, wanted: &BTreeSet<ObjectKey>) -> Vec<Change> {
        let is_left = |key: &ObjectKey| !wanted.contains(key);
        let left: Vec<ObjectKey> = self
            .tasks
            .keys()
            .filter(|it| is_left(it))
            .cloned()
            .collect();
        for key in &left {
            self.tasks.remove(key);
            self.unanswered.remove(key);
        }
        // Whoever may write policies of one namespace keeps no other's from being read.
        let mut of_namespaces = BTreeMap::new();
        for key in self.tasks.keys() {
            *of_namespaces
                .entry(key.namespace.clone())
                .or_insert(0_usize) += 1;
        }
        self.unread.retain(|key| wanted.contains(key));
        for key in wanted {
            if self.tasks.contains_key(key) {
                continue;
            }
            let of_its_own = of_namespaces.entry(key.namespace.clone()).or_insert(0);
            if self.tasks.len() >= MOST || *of_its_own >= MOST_OF_ONE {
                if self.unread.insert(key.clone()) {
                    tracing::warn!(%key, most = MOST, of_a_namespace = MOST_OF_ONE, "not read: policies name too many Secrets and ConfigMaps");
                }
                continue;
            }
            *of_its_own += 1;
            self.unread.remove(key);
            let following = follow(self.client.clone(), key.clone(), self.outbox.clone());
            let task = AbortOnDropHandle::new(self.runtime.spawn(following));
            self.tasks.insert(key.clone(), task);
            self.unanswered.insert(key.clone());
        }
        left.into_iter().map(Change::Gone).collect()
    }

    /// Whether each was answered once.
    pub(super) fn are_answered(&self) -> bool {
        self.unanswered.is_empty()
    }

    /// What an answer changes; nothing, of one that is not wanted any more.
    pub(super) fn take(&mut self, key: ObjectKey, found: Found) -> Option<Change> {
        if !self.tasks.contains_key(&key) {
            return None;
        }
        self.unanswered.remove(&key);
        Some(match found {
            Found::There(object) => Change::Set(object),
            Found::Absent => Change::Gone(key),
            Found::Refused(reason) => Change::Invalid(Fault {
                file: Default::default(),
                line: 0,
                object: Some(key),
                reason,
                aim: None,
            }),
        })
    }
}

async fn follow(client: Client, key: ObjectKey, outbox: mpsc::Sender<Heard>) {
    let mut pause = Pause::default();
    let mut last = None;
    loop {
        let (said, found) = ask(&client, &key).await;
        let is_there = matches!(found, Some(Found::There(_)));
        if let Some(found) = found
            && last.as_ref() != Some(&said)
        {
            last = Some(said);
            let key = key.clone();
            if outbox.send(Heard::Named { key, found }).await.is_err() {
                return;
            }
        }
        // What is not there, or not ours to read, mostly comes soon after it is named.
        let wait = match is_there {
            true => {
                pause = Pause::default();
                EVERY
            }
            false => pause.next(),
        };
        tokio::time::sleep(wait).await;
    }
}

/// What is there, and a text that is another when that is; nothing if nobody answers.
async fn ask(client: &Client, key: &ObjectKey) -> (String, Option<Found>) {
    let asked = match key.kind {
        Kind::Secret => {
            let all: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
            let found = tokio::time::timeout(ANSWER, all.get_opt(&key.name)).await;
            found.map(|it| it.map(|it| it.map(|it| Object::Secret(Arc::new(it)))))
        }
        _ => {
            let all: Api<ConfigMap> = Api::namespaced(client.clone(), &key.namespace);
            let found = tokio::time::timeout(ANSWER, all.get_opt(&key.name)).await;
            found.map(|it| it.map(|it| it.map(|it| Object::ConfigMap(Arc::new(it)))))
        }
    };
    match asked {
        Err(_) => (String::new(), None),
        Ok(Ok(Some(object))) => {
            let version = object.metadata().resource_version.clone();
            let uid = object.metadata().uid.clone();
            let said = format!("{version:?} {uid:?}");
            (said, Some(Found::There(object)))
        }
        Ok(Ok(None)) => ("absent".to_owned(), Some(Found::Absent)),
        Ok(Err(error)) => {
            let refusal = Refusal::of(&error);
            if refusal.unanswered().is_some() {
                return (String::new(), None);
            }
            if matches!(refusal, Refusal::Absent(_)) {
                return ("absent".to_owned(), Some(Found::Absent));
            }
            let why = refused(&refusal, key);
            (why.clone(), Some(Found::Refused(why)))
        }
    }
}

fn refused(refusal: &Refusal, key: &ObjectKey) -> String {
    let resource = match key.kind {
        Kind::Secret => "secrets",
        _ => "configmaps",
    };
    match refusal {
        Refusal::Forbidden(_) => format!(
            "may not be read: bind the ClusterRole istiod-credentials to the control plane's service account in namespace {}",
            key.namespace
        ),
        other => request_line(other, "get", resource),
    }
}

/// A certificate that is renewed is another within this.
const EVERY: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_secs(10);
/// Each costs a request in [`EVERY`].
const MOST: usize = 1_000;
/// Of one namespace.
const MOST_OF_ONE: usize = 250;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fake;
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new(Kind::Secret, "a", name)
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_that_names_too_many_keeps_no_others_from_being_read() {
        let (client, _) = fake::client(|_, _| fake::refusal(404, "not found"));
        let (outbox, _inbox) = mpsc::channel(8);
        let mut credentials = Credentials::new(client, outbox);
        let many =
            (0..2 * MOST).map(|number| ObjectKey::new(Kind::Secret, "aaa", &number.to_string()));
        let other = ObjectKey::new(Kind::Secret, "shop", "bank");
        let mut wanted: BTreeSet<ObjectKey> = many.chain([other.clone()]).collect();
        for _ in 0..2 {
            credentials.want(&wanted);
            assert_eq!(credentials.tasks.len(), MOST_OF_ONE + 1);
            assert!(credentials.tasks.contains_key(&other));
            assert_eq!(credentials.unread.len(), 2 * MOST - MOST_OF_ONE);
        }
        // Who is left makes room for others of the same namespace.
        let first = credentials.tasks.keys().next().cloned().unwrap();
        wanted.remove(&first);
        credentials.want(&wanted);
        assert_eq!(credentials.tasks.len(), MOST_OF_ONE + 1);
        assert_eq!(credentials.unread.len(), 2 * MOST - MOST_OF_ONE - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_named_is_asked_for_by_its_name_and_what_is_not_is_left() {
        let (client, _) = fake::client(|method, path| {
            assert_eq!(method, "GET");
            match path {
                "/api/v1/namespaces/a/secrets/there" => (
                    200,
                    json!({"metadata": {"name": "there", "namespace": "a", "resourceVersion": "7"}}),
                ),
                "/api/v1/namespaces/a/secrets/absent" => fake::refusal(404, "not found"),
                "/api/v1/namespaces/a/secrets/forbidden" => fake::refusal(403, "no"),
                other => panic!("{other}"),
            }
        });
        let (outbox, mut inbox) = mpsc::channel(8);
        let mut credentials = Credentials::new(client, outbox);
        let wanted = ["there", "absent", "forbidden"].map(key).into();
        assert_eq!(credentials.want(&wanted), []);
        let mut changes = Vec::new();
        while !credentials.are_answered() {
            let heard = tokio::time::timeout(EVERY * 10, inbox.recv()).await;
            let Ok(Some(Heard::Named { key, found })) = heard else {
                panic!("nothing else comes");
            };
            changes.extend(credentials.take(key, found));
        }
        let count = |is: fn(&Change) -> bool| changes.iter().filter(|it| is(it)).count();
        assert_eq!(count(|it| matches!(it, Change::Set(_))), 1);
        assert_eq!(count(|it| *it == Change::Gone(key("absent"))), 1);
        let refused = |it: &Change| matches!(it, Change::Invalid(it) if it.reason.contains("istiod-credentials"));
        assert_eq!(changes.iter().filter(|it| refused(it)).count(), 1);
        // Asked again and again, and nothing new is heard.
        tokio::time::sleep(EVERY * 10).await;
        assert!(inbox.try_recv().is_err());
        let gone = credentials.want(&[key("there")].into());
        assert_eq!(gone.len(), 2);
        assert_eq!(credentials.take(key("absent"), Found::Absent), None);
    }
}
