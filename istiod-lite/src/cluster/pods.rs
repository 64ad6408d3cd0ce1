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

use k8s_openapi::api::core::v1::Pod as Found;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::Semaphore;

use super::recent::Recent;
use super::trouble::Trouble;
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
                let trouble = Trouble::of_request(&error);
                tracing::warn!("{}", trouble.request_line(verb, "pods"));
            }
            Err(_) => tracing::warn!(what, "the API server did not answer in time"),
        }
        None
    }

    fn absent(&self) -> std::sync::MutexGuard<'_, Recent<String, ()>> {
        self.absent.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
        failed: phase == Some("Failed"),
    }
}

const AT_ONCE: usize = 8;
const ANSWER: Duration = Duration::from_secs(3);
const REMEMBERED: Duration = Duration::from_secs(2);
const MOST: usize = 10_000;
