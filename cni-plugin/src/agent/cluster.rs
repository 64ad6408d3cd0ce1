//! The Kubernetes API: how it is reached, and what its refusals mean to an operator.
//!
//! 1. a client, from the pod's service account or a kubeconfig   ([`connect`])
//! 2. one line for each way it can fail                          ([`explain`])
//! 3. whether the agent's DaemonSet is being deleted             ([`Daemonset`])

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::k8s::server::{Refusal, Way, chain};
use futures_util::StreamExt;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};

use super::depart::{Answer, Fate, Known};

/// A client of the API server that `KUBECONFIG` names, otherwise of the one whose pod this is, otherwise of the
/// user's. Does not speak to it yet.
///
/// # Errors
/// What is wrong with the configuration.
pub(crate) async fn connect() -> Result<Client, String> {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let mut config = if is_set("KUBERNETES_SERVICE_HOST") && !is_set("KUBECONFIG") {
        Way::Pod.config().await.map_err(|why| {
            format!("the pod's service account cannot be used: {why}; is automountServiceAccountToken off?")
        })?
    } else {
        Way::User(None).config().await.map_err(|why| {
            // A parser's complaint does not name the file.
            let named = std::env::var("KUBECONFIG").unwrap_or_default();
            format!(
                "no usable kubeconfig (KUBECONFIG={named}): {why}; set KUBECONFIG, run in a pod, or give --config-dir"
            )
        })?
    };
    config.connect_timeout = Some(Duration::from_secs(5));
    let client = Client::try_from(config);
    client.map_err(|error| format!("the kubeconfig cannot be used: {}", chain(&error)))
}

/// What the agent wanted of the API server: a verb and a resource as RBAC names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wish(pub(crate) &'static str, pub(crate) &'static str);

/// Why a wish was not granted, and what mends it, in one line.
pub(crate) fn explain(error: &kube::Error, wish: Wish) -> String {
    say(&Refusal::of(error), wish)
}

/// The same for a watch, which lists first. None if it only fell behind and will list again: nothing is wrong.
pub(crate) fn explain_watch(error: &watcher::Error, resource: &'static str) -> Option<String> {
    Refusal::of_watch(error).map(|(verb, refusal)| say(&refusal, Wish(verb, resource)))
}

fn say(refusal: &Refusal, Wish(verb, resource): Wish) -> String {
    match refusal {
        Refusal::Credentials(why) => {
            format!("this agent's credentials cannot be used: {why}")
        }
        Refusal::Unreachable(why) => {
            format!("{UNREACHABLE} to {verb} {resource}: {why}")
        }
        Refusal::Unknown(said) => format!(
            "the API server does not accept this agent's token: was its service account deleted or made again? ({said})"
        ),
        Refusal::Forbidden(said) => {
            let role = if resource == DAEMONSETS {
                "Role"
            } else {
                "ClusterRole"
            };
            format!(
                "this agent may not {verb} {resource}: its {role} must allow verb {verb} on {resource} ({said})"
            )
        }
        Refusal::Absent(said) => {
            format!("the API server answered 404 to {verb} {resource}: {said}")
        }
        Refusal::Other(code, said) => {
            format!("the API server answered {code} to {verb} {resource}: {said}")
        }
        Refusal::Unreadable(why) => {
            format!("the API server's answer to {verb} {resource} cannot be read: {why}")
        }
    }
}

/// By what a complaint is known, so that it is not repeated: that the API server cannot be reached is one trouble,
/// whatever was wanted of it and however the attempt ended.
pub(crate) fn trouble(why: &str) -> &str {
    if why.starts_with(UNREACHABLE) {
        UNREACHABLE
    } else {
        why
    }
}

/// How it begins when there was no answer at all.
pub(crate) const UNREACHABLE: &str = "the API server cannot be reached";

/// Pauses between attempts: 0.4 s, doubling to 5 s, each a little different on every node, so that an API
/// server that comes back is not met by all nodes at once.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    failures: u32,
    last: Option<Instant>,
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let over = self.last.is_some_and(|last| last.elapsed() > CALM);
        self.failures = if over { 0 } else { self.failures };
        self.last = Some(Instant::now());
        let pause = pause(self.failures, RandomState::new().hash_one(self.failures));
        self.failures = self.failures.saturating_add(1);
        Some(pause)
    }
}

impl kube::runtime::utils::Backoff for Patience {
    /// A watch calls this at every sign of life, and already the beginning of an attempt counts as one. So
    /// only a time without failures makes the pauses short again.
    fn reset(&mut self) {}
}

/// Pure: the pause after so many failures, with a quarter of it at `random`.
fn pause(failures: u32, random: u64) -> Duration {
    let base: u64 = (400 << failures.min(4)).min(5_000);
    Duration::from_millis(base + random % (base / 4))
}

/// The DaemonSet that runs this agent, watched from the start: when the mesh is uninstalled, the right to
/// ask about it may be gone before the agent is told to stop.
#[derive(Clone, Debug)]
pub(crate) struct Daemonset {
    api: Api<PartialObjectMeta<DaemonSet>>,
    name: String,
    seen: Arc<Mutex<Known>>,
}

impl Daemonset {
    /// Starts to watch it. The task ends with the process.
    pub(crate) fn watch(client: Client, namespace: &str, name: &str) -> Self {
        let daemonset = Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            seen: Arc::default(),
        };
        tokio::spawn(daemonset.clone().keep());
        daemonset
    }

    async fn keep(self) {
        // Where it may be read but not watched, this is all that will be known.
        if let Ok(Some(set)) = self.api.get_opt(&self.name).await {
            self.note(Fate::of(set.metadata.deletion_timestamp.is_some()));
        }
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = watcher(self.api.clone(), only)
            .backoff(Patience::default())
            .boxed();
        let mut said = String::new();
        let mut listed = None;
        while let Some(event) = events.next().await {
            let fate = |set: &PartialObjectMeta<DaemonSet>| {
                Fate::of(set.metadata.deletion_timestamp.is_some())
            };
            match event {
                Ok(watcher::Event::Init) => listed = None,
                Ok(watcher::Event::InitApply(set)) => listed = Some(fate(&set)),
                Ok(watcher::Event::InitDone) => self.note(listed.unwrap_or(Fate::Gone)),
                Ok(watcher::Event::Apply(set)) => self.note(fate(&set)),
                Ok(watcher::Event::Delete(_)) => self.note(Fate::Gone),
                Err(error) => {
                    // None: it only fell behind. That nothing answers the watch of pods says for both.
                    let why = explain_watch(&error, DAEMONSETS)
                        .filter(|why| *why != said && trouble(why) != UNREACHABLE);
                    if let Some(why) = why {
                        tracing::warn!("an uninstallation may go unnoticed: {why}");
                        said = why;
                    }
                }
            }
        }
    }

    fn note(&self, fate: Fate) {
        let mut seen = self.seen();
        seen.existed |= fate != Fate::Gone;
        if seen.last.replace(fate) != Some(fate) {
            tracing::info!(daemonset = self.name, ?fate, "the DaemonSet of this agent");
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Known> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the watch saw last, and what the API server says now.
    pub(crate) async fn ask(&self) -> (Known, Answer) {
        let asked = tokio::time::timeout(ASK, self.api.get_opt(&self.name)).await;
        let answer = match asked {
            Err(_) => Answer::None("the API server did not answer".to_owned()),
            Ok(Err(error)) => Answer::None(explain(&error, Wish("get", DAEMONSETS))),
            Ok(Ok(None)) => Answer::Is(Fate::Gone),
            Ok(Ok(Some(set))) => Answer::Is(Fate::of(set.metadata.deletion_timestamp.is_some())),
        };
        (*self.seen(), answer)
    }
}

pub(super) const DAEMONSETS: &str = "daemonsets";
const CALM: Duration = Duration::from_secs(60);
const ASK: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn refusal(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(Status {
            code,
            message: message.to_owned(),
            ..Status::default()
        }))
    }

    #[test]
    fn a_missing_right_is_named_with_its_verb_and_its_role() {
        let error = refusal(403, "pods is forbidden:\n User \"x\"");
        let line = explain(&error, Wish("patch", "pods/status"));
        assert_eq!(
            line,
            "this agent may not patch pods/status: its ClusterRole must allow verb patch on pods/status (pods is forbidden: User \"x\")"
        );
        let start = watcher::Error::WatchStartFailed(refusal(403, "no"));
        assert!(
            explain_watch(&start, "pods")
                .unwrap()
                .contains("allow verb watch on pods")
        );
        let list = watcher::Error::InitialListFailed(refusal(403, "no"));
        assert!(
            explain_watch(&list, "namespaces")
                .unwrap()
                .contains("allow verb list on namespaces")
        );
    }

    #[test]
    fn each_failure_is_one_line_that_says_where_to_look() {
        let lost =
            kube::Error::ReadEvents(std::io::Error::other("connection refused\n(os error 111)"));
        for (error, part) in [
            (refusal(401, "Unauthorized"), "service account deleted"),
            (
                refusal(500, "etcd is\naway"),
                "answered 500 to list pods: etcd is away",
            ),
            (lost, "cannot be reached to list pods: "),
        ] {
            let line = explain(&error, Wish("list", "pods"));
            assert!(line.contains(part) && !line.contains('\n'), "{line}");
        }
        let old = watcher::Error::WatchError(Box::new(Status {
            code: 410,
            ..Status::default()
        }));
        assert_eq!(explain_watch(&old, "pods"), None);
    }

    #[test]
    fn an_api_server_that_is_away_is_one_trouble_and_each_missing_right_another() {
        let lost = |why: &'static str| kube::Error::ReadEvents(std::io::Error::other(why));
        let pods = explain(&lost("connection refused"), Wish("list", "pods"));
        let names = explain(&lost("closed"), Wish("watch", "namespaces"));
        assert_ne!(pods, names);
        assert_eq!(trouble(&pods), trouble(&names));
        let list = explain(&refusal(403, "no"), Wish("list", "pods"));
        let watch = explain(&refusal(403, "no"), Wish("watch", "pods"));
        assert_ne!(trouble(&list), trouble(&watch));
    }

    #[test]
    fn pauses_grow_to_five_seconds_whatever_the_watch_makes_of_them() {
        use kube::runtime::utils::Backoff;
        let mut patience = Patience::default();
        let pauses: Vec<Duration> = (0..6)
            .filter_map(|_| {
                patience.reset();
                patience.next()
            })
            .collect();
        assert!(pauses[0] < Duration::from_millis(500), "{pauses:?}");
        assert!(pauses[5] >= Duration::from_secs(5), "{pauses:?}");
        for (failures, least, most) in [(0, 400, 499), (3, 3200, 3999), (9, 5000, 6249)] {
            assert_eq!(pause(failures, 0), Duration::from_millis(least));
            let spread = most - least;
            assert_eq!(pause(failures, spread), Duration::from_millis(most));
            assert_eq!(pause(failures, spread + 1), Duration::from_millis(least));
        }
    }
}
