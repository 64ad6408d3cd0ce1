//! Is that pod there, and does that node run that account? Asked when the roster says no.
//!
//! The roster follows the API server's watch, a moment behind it, and ten seconds or more where the
//! watch is being made anew. A pod's node asks for its certificate as soon as the pod exists. Refusing would
//! cost the pod its first seconds (proxies come back after a pause), and waiting helps only where the
//! watch works; so the API server is asked, once, for exactly what is missing. What it answers is newer
//! than the roster in every case, so it never entitles to more than the roster would in a moment.
//!
//! A node that was taken over may ask for what it has not, as often as it likes: a refusal is
//! remembered for a moment, and only so many questions are under way; the rest is refused as the
//! roster says.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use api::k8s::labels;
use api::k8s::server::Refusal;
use k8s_openapi::api::core::v1::Pod as Found;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;

use super::recent::Recent;
use super::trouble::request_line;
use crate::roster::Pod;

/// Asks the API server.
pub struct Pods {
    client: Client,
    turns: Semaphore,
    /// What was asked for in vain.
    absent: Mutex<Recent<String, ()>>,
}

impl Pods {
    /// Asks through `client`.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            turns: Semaphore::new(AT_ONCE),
            absent: Mutex::new(Recent::new(REMEMBERED, MOST)),
        }
    }

    /// The pod of that name.
    pub async fn pod(&self, namespace: &str, name: &str, uid: &str) -> Option<Pod> {
        let pods: Api<Found> = Api::namespaced(self.client.clone(), namespace);
        let found = self.once(format!("pod {namespace}/{name} {uid}"), "get", async || {
            let found = pods.get_opt(name).await?;
            let pod = found.map(|found| of(&found));
            Ok(pod.filter(|pod| pod.uid == uid))
        });
        found.await
    }

    /// Whether `node` has a pod of this account whose phase is not `Failed`.
    pub async fn runs(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        // The account is what the caller wrote: it must be a name, not a part of the question.
        if ![node, namespace, service_account].into_iter().all(is_name) {
            return false;
        }
        let pods: Api<Found> = Api::namespaced(self.client.clone(), namespace);
        let fields = format!(
            "spec.nodeName={node},spec.serviceAccountName={service_account},status.phase!=Failed"
        );
        let query = ListParams::default().fields(&fields).limit(1);
        let found = self.once(format!("post {namespace} {fields}"), "list", async || {
            let list = pods.list_metadata(&query).await?;
            Ok((!list.items.is_empty()).then_some(()))
        });
        found.await.is_some()
    }

    async fn once<T>(
        &self,
        what: String,
        verb: &str,
        ask: impl AsyncFnOnce() -> Result<Option<T>, kube::Error>,
    ) -> Option<T> {
        if self.absent().get(&what, Instant::now()).is_some() {
            return None;
        }
        let _turn = self.turns.try_acquire().ok()?;
        let answer = tokio::time::timeout(ANSWER, ask()).await;
        match answer {
            Ok(Ok(Some(found))) => {
                tracing::debug!(what, "found by the API server, not in our roster yet");
                return Some(found);
            }
            Ok(Ok(None)) => self.absent().put(what, (), Instant::now()),
            Ok(Err(error)) => {
                tracing::warn!("{}", request_line(&Refusal::of(&error), verb, "pods"));
            }
            Err(_) => tracing::warn!(what, "the API server did not answer in time"),
        }
        None
    }

    fn absent(&self) -> std::sync::MutexGuard<'_, Recent<String, ()>> {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_name(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    !text.is_empty() && text.bytes().all(letter)
}

fn of(pod: &Found) -> Pod {
    let text = |text: Option<&String>| text.cloned().unwrap_or_default();
    let (metadata, spec) = (&pod.metadata, pod.spec.as_ref());
    let account = text(spec.and_then(|spec| spec.service_account_name.as_ref()));
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    Pod {
        namespace: text(metadata.namespace.as_ref()),
        name: text(metadata.name.as_ref()),
        uid: text(metadata.uid.as_ref()),
        service_account: if account.is_empty() {
            "default".into()
        } else {
            account
        },
        node: text(spec.and_then(|spec| spec.node_name.as_ref())),
        gateway: metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(labels::GATEWAY_NAME).cloned()),
        failed: phase == Some("Failed"),
    }
}

const AT_ONCE: usize = 8;
const ANSWER: Duration = Duration::from_secs(3);
const REMEMBERED: Duration = Duration::from_secs(2);
const MOST: usize = 10_000;

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::super::fake;
    use super::*;

    /// One pod, `alpha/a` of account `client` on node `n1`.
    fn pods() -> (Pods, Arc<AtomicUsize>) {
        let (client, asked) = fake::client(|method, path| {
            assert_eq!(method, "GET");
            let pod = json!({"metadata": {"namespace": "alpha", "name": "a", "uid": "u1"},
                "spec": {"nodeName": "n1", "serviceAccountName": "client", "containers": []},
                "status": {"phase": "Pending"}});
            match path {
                "/api/v1/namespaces/alpha/pods/a" => (200, pod),
                path if path.starts_with("/api/v1/namespaces/alpha/pods?") => {
                    let here = path.contains("spec.nodeName%3Dn1%2C")
                        && path.contains("spec.serviceAccountName%3Dclient%2C");
                    let items = if here {
                        vec![json!({"metadata": pod["metadata"]})]
                    } else {
                        vec![]
                    };
                    (200, json!({"metadata": {}, "items": items}))
                }
                _ => fake::refusal(404, "not found"),
            }
        });
        (Pods::new(client), asked)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_there_is_found_and_a_successor_of_its_name_is_not() {
        let (pods, _) = pods();
        let found = pods.pod("alpha", "a", "u1").await.unwrap();
        assert_eq!(
            (&*found.node, &*found.service_account, found.failed),
            ("n1", "client", false)
        );
        assert_eq!(pods.pod("alpha", "a", "u2").await, None);
        assert_eq!(pods.pod("beta", "a", "u1").await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_runs_an_account_if_the_api_server_says_so() {
        let (pods, _) = pods();
        assert!(pods.runs("n1", "alpha", "client").await);
        assert!(!pods.runs("n2", "alpha", "client").await);
        assert!(!pods.runs("n1", "alpha", "other").await);
        assert!(
            !pods.runs("n1", "beta", "client").await,
            "a refusal entitles nobody"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_asked_for_in_vain_is_not_asked_for_again_at_once() {
        let (pods, asked) = pods();
        let begun = Instant::now();
        for _ in 0..100 {
            assert!(!pods.runs("n1", "alpha", "other").await);
        }
        // Once, and once more whenever it was forgotten.
        let forgotten = begun.elapsed().as_secs() / REMEMBERED.as_secs();
        let questions = u64::try_from(asked.load(Ordering::SeqCst)).unwrap();
        assert!((1..=1 + forgotten).contains(&questions), "{questions}");
        // What was found is in the roster soon; until then it is asked for.
        assert!(pods.runs("n1", "alpha", "client").await);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_ask_at_the_same_time_and_the_rest_is_refused() {
        let (pods, asked) = pods();
        let accounts: Vec<_> = (0..50).map(|number| format!("account-{number}")).collect();
        let questions = accounts
            .iter()
            .map(|account| pods.runs("n1", "alpha", account));
        let answers = futures_util::future::join_all(questions).await;
        assert!(answers.iter().all(|runs| !runs));
        assert_eq!(asked.load(Ordering::SeqCst), AT_ONCE);
    }

    #[tokio::test(start_paused = true)]
    async fn names_that_would_widen_the_question_ask_nothing() {
        let (pods, asked) = pods();
        for (node, account) in [
            ("n1,status.phase=Running", "client"),
            ("n1", "client,metadata.name=a"),
            ("n1", ""),
        ] {
            assert!(!pods.runs(node, "alpha", account).await);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 0);
    }
}
