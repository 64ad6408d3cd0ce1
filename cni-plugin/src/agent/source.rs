//! Where the agent learns of pods and namespaces: a directory of YAML, or the Kubernetes API. Both
//! tell the same [`News`], and the owner does not know which it has.
//!
//! Objects enter, what the agent needs of them leaves; the rest is dropped here.

mod kubernetes;
mod seen;

use std::sync::Arc;

use api::k8s::dir::{Change, Directory};
use api::k8s::objects::{Kind, Object, ObjectKey};
use tokio::sync::mpsc;

use super::pod::{Pod, PodName, Uid, Words};

pub(crate) use kubernetes::Kubernetes;

/// Something that happened, or that is so.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum News {
    /// A pod of this node is new or differs from before.
    Pod(Pod),
    /// A pod is gone. Without a uid: whichever has the name.
    PodGone(PodName, Option<Uid>),
    /// A namespace with its labels.
    Namespace(Arc<str>, Words),
    NamespaceGone(Arc<str>),
    /// Someone was asked about a pod ([`Asker`]); what was found has been told before.
    Looked(PodName, Result<(), String>),
}

/// One of the two.
#[derive(Debug)]
pub(crate) enum Source {
    Directory {
        directory: Box<Directory>,
        node: String,
    },
    Kubernetes(Box<Kubernetes>),
}

/// Asks a source about a pod that it has not told of yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asker(Option<mpsc::Sender<PodName>>);

impl Source {
    /// Everything there is, namespaces first. Waits until it is complete.
    pub(crate) async fn first(&mut self) -> Vec<News> {
        let mut news = match self {
            Self::Directory { .. } => self.next().await,
            Self::Kubernetes(kubernetes) => kubernetes.first().await,
        };
        // A pod is judged by its namespace's labels.
        news.sort_by_key(|news| !matches!(news, News::Namespace(..)));
        news
    }

    /// What happened since. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Vec<News> {
        match self {
            Self::Directory { directory, node } => {
                let changes = directory.next().await;
                changes
                    .into_iter()
                    .filter_map(|change| of_directory(change, node))
                    .collect()
            }
            Self::Kubernetes(kubernetes) => kubernetes.next().await,
        }
    }

    pub(crate) fn asker(&self) -> Asker {
        Asker(match self {
            Self::Directory { .. } => None,
            Self::Kubernetes(kubernetes) => Some(kubernetes.questions()),
        })
    }
}

impl Asker {
    /// Whether a namespace that was not told of may exist all the same.
    pub(crate) fn may_lag(&self) -> bool {
        self.0.is_some()
    }

    /// Asks about a pod and its namespace; a [`News::Looked`] will follow. `false`: there is nobody to
    /// ask, or too much has been asked.
    pub(crate) fn ask(&self, name: &PodName) -> bool {
        self.0
            .as_ref()
            .is_some_and(|questions| questions.try_send(name.clone()).is_ok())
    }
}

fn of_directory(change: Change, node: &str) -> Option<News> {
    match change {
        Change::Set(Object::Namespace(namespace)) => {
            let metadata = &namespace.metadata;
            Some(News::Namespace(
                metadata.name.as_deref().unwrap_or_default().into(),
                metadata.labels.clone().unwrap_or_default(),
            ))
        }
        Change::Set(Object::Pod(object)) => Some(match Pod::on_node(&object, node) {
            Some(pod) => News::Pod(pod),
            None => {
                let metadata = &object.metadata;
                let namespace = metadata.namespace.as_deref().unwrap_or_default();
                let name = metadata.name.as_deref().unwrap_or_default();
                News::PodGone(PodName::new(namespace, name), None)
            }
        }),
        Change::Gone(ObjectKey {
            kind: Kind::Namespace,
            name,
            ..
        }) => Some(News::NamespaceGone(name)),
        Change::Gone(ObjectKey {
            kind: Kind::Pod,
            namespace,
            name,
        }) => Some(News::PodGone(PodName { namespace, name }, None)),
        Change::Invalid(fault) => {
            let (file, line) = (fault.file.display(), fault.line);
            tracing::warn!(%file, line, reason = fault.reason, "a document is refused");
            None
        }
        Change::Set(_) | Change::Gone(_) => None,
    }
}
