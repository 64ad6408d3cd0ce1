//! An API server, as its clients meet it: the ways to it, and what a failure means.
//!
//! 1. where a client learns how to reach it                       ([`Way`])
//! 2. what it meant by a failed request or watch                  ([`Refusal`])
//! 3. an error with its causes in one line                        ([`chain`])
//!
//! What an operator should do about it, every program says in its own words.

use std::error::Error;
use std::path::PathBuf;

use kube::Config;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;

/// Where a client learns how to reach its API server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// A kubeconfig, and a context of it (none: its current one).
    File(PathBuf, Option<String>),
    /// What `KUBECONFIG` names, else `~/.kube/config`; and a context of it.
    User(Option<String>),
    /// The service account of the pod that this is.
    Pod,
}

impl Way {
    /// Reads it; nothing is sent yet.
    ///
    /// # Errors
    /// What is wrong with it, in one line that does not name it.
    pub async fn config(&self) -> Result<Config, String> {
        let options = |context: &Option<String>| KubeConfigOptions {
            context: context.clone(),
            ..KubeConfigOptions::default()
        };
        let read = match self {
            Self::File(path, context) => match Kubeconfig::read_from(path) {
                Ok(file) => Config::from_custom_kubeconfig(file, &options(context)).await,
                Err(error) => Err(error),
            },
            Self::User(context) => Config::from_kubeconfig(&options(context)).await,
            Self::Pod => return Config::incluster().map_err(|error| chain(&error)),
        };
        read.map_err(|error| chain(&error))
    }
}

/// What a failure means. Texts are one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No connection, or no answer.
    Unreachable(String),
    /// Our credentials cannot be made out, so nothing was asked.
    Credentials(String),
    /// They are not accepted (401).
    Unknown(String),
    /// A right is missing (403).
    Forbidden(String),
    /// What was asked for is not there (404): the object, or its kind.
    Absent(String),
    /// Any other status.
    Other(u16, String),
    /// An answer that cannot be read.
    Unreadable(String),
}

impl Refusal {
    /// What an error of one request means.
    pub fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::answered(status.code, &status.message),
            kube::Error::Auth(error) => Self::Credentials(chain(error)),
            kube::Error::SerdeError(_) => Self::Unreadable(chain(error)),
            other => Self::Unreachable(chain(other)),
        }
    }

    /// What an error of a watch means, and the verb that failed, for it lists first. None for one that only fell
    /// behind and will list again: nothing is wrong.
    pub fn of_watch(error: &watcher::Error) -> Option<(&'static str, Self)> {
        use watcher::Error::*;
        match error {
            InitialListFailed(error) => Some(("list", Self::of(error))),
            WatchStartFailed(error) | WatchFailed(error) => Some(("watch", Self::of(error))),
            WatchError(status) if status.code == 410 => None,
            WatchError(status) => Some(("watch", Self::answered(status.code, &status.message))),
            NoResourceVersion => Some(("list", Self::Unreadable(error.to_string()))),
        }
    }

    fn answered(code: u16, message: &str) -> Self {
        let said = message.split_whitespace().collect::<Vec<_>>().join(" ");
        match code {
            401 => Self::Unknown(said),
            403 => Self::Forbidden(said),
            404 => Self::Absent(said),
            code => Self::Other(code, said),
        }
    }

    /// Why there was no answer at all, if there was none.
    pub fn unanswered(&self) -> Option<&str> {
        match self {
            Self::Unreachable(why) | Self::Credentials(why) => Some(why),
            _ => None,
        }
    }
}

/// An error with its causes, each said once, in one line: `client error (Connect): connection refused`.
pub fn chain(error: &dyn Error) -> String {
    // Some parsers draw a picture below.
    let first = |error: &dyn Error| {
        let text = error.to_string();
        text.lines().next().unwrap_or_default().trim().to_owned()
    };
    let mut text = first(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = first(error);
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use kube::core::Status;

    use super::*;

    fn status(code: u16, message: &str) -> Box<Status> {
        Box::new(Status {
            code,
            message: message.to_owned(),
            ..Status::default()
        })
    }

    #[test]
    fn a_status_says_who_is_wrong_in_one_line() {
        let said = || "pods is forbidden: User \"x\"".to_owned();
        for (code, expected) in [
            (401, Refusal::Unknown(said())),
            (403, Refusal::Forbidden(said())),
            (404, Refusal::Absent(said())),
            (500, Refusal::Other(500, said())),
        ] {
            let error = kube::Error::Api(status(code, "pods is forbidden:\n User \"x\"\n"));
            assert_eq!(Refusal::of(&error), expected);
            assert_eq!(expected.unanswered(), None);
        }
        let lost = kube::Error::ReadEvents(std::io::Error::other("connection refused"));
        assert!(Refusal::of(&lost).unanswered().is_some());
    }

    #[test]
    fn a_watch_says_which_verb_failed_and_nothing_when_it_only_fell_behind() {
        let verb = |error| Refusal::of_watch(&error).map(|(verb, _)| verb);
        let refused = || kube::Error::Api(status(403, "no"));
        for (error, expected) in [
            (watcher::Error::InitialListFailed(refused()), Some("list")),
            (watcher::Error::WatchStartFailed(refused()), Some("watch")),
            (watcher::Error::WatchFailed(refused()), Some("watch")),
            (watcher::Error::WatchError(status(500, "")), Some("watch")),
            (watcher::Error::WatchError(status(410, "too old")), None),
        ] {
            assert_eq!(verb(error), expected);
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Said(&'static str, #[source] Option<Box<Said>>);

    #[test]
    fn a_chain_says_each_cause_once_and_draws_no_pictures() {
        let innermost = Said("connection refused (os error 111)", None);
        let middle = Said(
            "tcp connect error: connection refused (os error 111)",
            Some(innermost.into()),
        );
        let outermost = Said("client error (Connect)\n  |\n  ^ here", Some(middle.into()));
        assert_eq!(
            chain(&outermost),
            "client error (Connect): tcp connect error: connection refused (os error 111)"
        );
    }

    #[tokio::test]
    async fn a_kubeconfig_is_read_with_its_context_and_what_is_wrong_with_it_is_one_line() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(
            b"apiVersion: v1\nkind: Config\ncurrent-context: a\nusers: [{name: u}]\n\
              clusters: [{name: a, cluster: {server: 'https://a:1'}}, {name: b, cluster: {server: 'https://b:2'}}]\n\
              contexts: [{name: a, context: {cluster: a, user: u}}, {name: b, context: {cluster: b, user: u}}]\n",
        )
        .unwrap();
        let way = |context: Option<&str>| Way::File(file.path().into(), context.map(Into::into));
        let server = async |context| {
            let config = way(context).config().await;
            config.map(|config| config.cluster_url.to_string())
        };
        assert_eq!(server(None).await.unwrap(), "https://a:1/");
        assert_eq!(server(Some("b")).await.unwrap(), "https://b:2/");
        assert!(server(Some("c")).await.unwrap_err().contains('c'));
        let missing = Way::File("/nowhere/kubeconfig".into(), None).config().await;
        assert!(!missing.unwrap_err().contains('\n'));
    }
}
