//! What is wrong between the API server and us: said once, and part of whether we are ready.
//!
//! Every watch reports its failures, each time. An API server that cannot be reached fails all of
//! them and is one trouble; a missing right is a trouble of its kind, and says which verb and which
//! resource. A watch that works again is silent until something changes, so a trouble also ends
//! when it is not reported any more, and the first when the API server answers a probe.
//!
//! Ready means: new proxies may come here. A replica that has not heard of the API server for
//! [`PATIENCE`] serves on, but what it tells may be old and it cannot tell who calls: new proxies are
//! better served by another replica, and those that are connected stay.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::k8s::server::Refusal;
use kube::Client;
use tokio::sync::Notify;

/// What a failed request means, in one line.
pub(super) fn request_line(refusal: &Refusal, verb: &str, resource: &str) -> String {
    match refusal {
        Refusal::Forbidden(why) => format!(
            "no right to {verb} {resource}: {why}; grant verb {verb} on {resource} to our service account"
        ),
        other => line(other, resource),
    }
}

/// What a failed watch of `resource` means, in one line.
fn line(refusal: &Refusal, resource: &str) -> String {
    match refusal {
        Refusal::Unreachable(why) | Refusal::Credentials(why) => unreachable(why),
        Refusal::Unknown(why) => format!(
            "API server does not accept our credentials: {why}; look at the token or certificate of the kubeconfig or the pod"
        ),
        Refusal::Forbidden(why) => format!(
            "no right to list and watch {resource}: {why}; grant verbs list and watch on {resource} to our service account"
        ),
        Refusal::Absent(_) => format!("{resource} cannot be listed: there are none (404)"),
        Refusal::Other(code, why) => format!("{resource} cannot be followed: {code} {why}"),
        Refusal::Unreadable(why) => format!("{resource} cannot be followed: {why}"),
    }
}

fn unreachable(why: &str) -> String {
    format!(
        "API server unreachable: {why}; look at its address in the kubeconfig or the pod, and at what lies between"
    )
}

/// All that is wrong now. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    troubles: Mutex<Troubles>,
    /// It cannot be reached (any more).
    lost: Notify,
    /// It can again.
    back: Notify,
}

/// Pure: the troubles that stand.
#[derive(Debug, Default)]
struct Troubles {
    /// The first and the last report that it cannot be reached.
    unreachable: Option<(Instant, String)>,
    /// By resource: in one line, and when it was reported last.
    others: BTreeMap<String, (String, Instant)>,
}

impl Health {
    /// A watch of `resource` failed.
    pub(crate) fn failed(&self, resource: &str, refusal: Refusal) {
        let line = line(&refusal, resource);
        self.note(resource, &refusal, line);
    }

    /// A request failed.
    pub(crate) fn failed_to(&self, verb: &str, resource: &str, refusal: Refusal) {
        let line = request_line(&refusal, verb, resource);
        self.note(resource, &refusal, line);
    }

    fn note(&self, resource: &str, refusal: &Refusal, line: String) {
        let new = self.lock().failed(resource, refusal, &line, Instant::now());
        if refusal.unanswered().is_some() {
            self.0.lost.notify_one();
        }
        match refusal {
            Refusal::Absent(_) => tracing::debug!("{line}"),
            _ if new => tracing::warn!("{line}"),
            _ => tracing::trace!("{line}"),
        }
    }

    /// Something about `resource` was answered.
    pub(crate) fn answered(&self, resource: &str) {
        let over = self.lock().answered(resource, Instant::now());
        if let Some(lasted) = over.reachable_after {
            self.0.back.notify_waiters();
            tracing::info!(seconds = lasted.as_secs(), "API server reachable again");
        }
        if over.resource {
            tracing::info!(resource, "followed again");
        }
    }

    /// While it cannot be reached, asks again and again whether it can: watches that work again do
    /// not say so before something changes.
    pub(super) async fn probe(self, client: Client) {
        loop {
            self.0.lost.notified().await;
            while self.is_unreachable() {
                tokio::time::sleep(PROBE).await;
                let asked = tokio::time::timeout(PROBE * 2, client.apiserver_version());
                // Any answer is one, also that we may not know the version.
                if matches!(asked.await, Ok(Ok(_) | Err(kube::Error::Api(_)))) {
                    self.answered("");
                }
            }
        }
    }

    /// Waits for so long, or until the API server is back and a moment longer: those who were cut off
    /// together shall not all come in the same instant.
    pub(super) async fn back_or(&self, wait: Duration) {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = self.0.back.notified() => tokio::time::sleep(wait.min(PROBE) / 4).await,
        }
    }

    /// Whether the API server cannot be reached now.
    pub(crate) fn is_unreachable(&self) -> bool {
        self.lock().unreachable.is_some()
    }

    /// For tests: it cannot be reached.
    #[cfg(test)]
    pub(crate) fn lose(&self, why: &str) {
        self.failed("", Refusal::Unreachable(why.into()));
    }

    /// Why new proxies should go to another replica, if they should.
    pub fn not_ready(&self) -> Option<String> {
        self.lock().not_ready(Instant::now())
    }

    /// Everything that is wrong, a line each.
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Troubles> {
        let troubles = self.0.troubles.lock();
        troubles.unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an answer ended.
#[derive(Debug, Default, PartialEq, Eq)]
struct Over {
    reachable_after: Option<Duration>,
    resource: bool,
}

impl Troubles {
    /// Whether that is worth saying: it was not known.
    fn failed(&mut self, resource: &str, refusal: &Refusal, line: &str, now: Instant) -> bool {
        if let Some(why) = refusal.unanswered() {
            let since = self.unreachable.as_ref().map_or(now, |(since, _)| *since);
            return self.unreachable.replace((since, why.to_owned())).is_none();
        }
        let entry = (line.to_owned(), now);
        let before = self.others.insert(resource.to_owned(), entry);
        before.is_none_or(|(before, at)| before != line || is_over(at, now))
    }

    fn answered(&mut self, resource: &str, now: Instant) -> Over {
        let since = self.unreachable.take().map(|(since, _)| since);
        Over {
            reachable_after: since.map(|since| now.saturating_duration_since(since)),
            resource: self.others.remove(resource).is_some(),
        }
    }

    fn not_ready(&self, now: Instant) -> Option<String> {
        let (since, why) = self.unreachable.as_ref()?;
        let lasts = now.saturating_duration_since(*since);
        (lasts >= PATIENCE).then(|| {
            let seconds = lasts.as_secs();
            format!("{} (for {seconds} s)", unreachable(why))
        })
    }

    fn lines(&self, now: Instant) -> Vec<String> {
        let unreachable = self.unreachable.iter();
        let unreachable = unreachable.map(|(_, why)| self::unreachable(why));
        let others = self.others.iter().filter(|(_, (_, at))| !is_over(*at, now));
        let others = others.map(|(_, (line, _))| line.clone());
        unreachable.chain(others).collect()
    }
}

/// Failures are tried again within seconds, so one that is not reported any more is over.
fn is_over(reported: Instant, now: Instant) -> bool {
    now.saturating_duration_since(reported) > FORGOTTEN
}

/// A restart of the API server is no reason to send anybody away.
const PATIENCE: Duration = Duration::from_secs(30);
const PROBE: Duration = Duration::from_secs(2);
/// Longer than the longest wait for an answer and the pause before the next try.
const FORGOTTEN: Duration = Duration::from_secs(90);

#[cfg(test)]
mod tests {
    use kube::runtime::watcher;

    use super::*;

    fn away() -> Refusal {
        Refusal::Unreachable("connection refused".into())
    }

    fn fail(troubles: &mut Troubles, resource: &str, refusal: &Refusal, now: Instant) -> bool {
        troubles.failed(resource, refusal, &line(refusal, resource), now)
    }

    fn forbidden() -> Refusal {
        Refusal::Forbidden("pods is forbidden".into())
    }

    #[test]
    fn an_api_server_that_is_away_is_one_trouble_however_many_watches_fail() {
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        assert!(fail(&mut troubles, "pods", &away(), start));
        assert!(!fail(&mut troubles, "services", &away(), start));
        assert!(!fail(&mut troubles, "pods", &away(), start + PATIENCE));
        assert_eq!(troubles.lines(start).len(), 1);
        let over = troubles.answered("", start + PATIENCE);
        assert_eq!(over.reachable_after, Some(PATIENCE));
        assert!(troubles.lines(start).is_empty());
        assert!(
            fail(&mut troubles, "pods", &away(), start + PATIENCE),
            "the next time is said again"
        );
    }

    #[test]
    fn only_an_api_server_that_stays_away_makes_us_not_ready() {
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        fail(&mut troubles, "pods", &forbidden(), start);
        assert_eq!(troubles.not_ready(start + 10 * PATIENCE), None);
        fail(&mut troubles, "pods", &away(), start);
        assert_eq!(troubles.not_ready(start + PATIENCE / 2), None);
        // Reports in between do not begin anew.
        fail(&mut troubles, "nodes", &away(), start + PATIENCE / 2);
        let why = troubles.not_ready(start + PATIENCE).unwrap();
        assert!(
            why.starts_with("API server unreachable: connection refused; look at "),
            "{why}"
        );
        assert!(why.ends_with(" (for 30 s)"), "{why}");
        troubles.answered("", start + PATIENCE);
        assert_eq!(troubles.not_ready(start + 2 * PATIENCE), None);
    }

    #[test]
    fn a_missing_right_is_said_once_a_resource_until_it_is_there_or_not_asked_for_any_more() {
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        assert!(fail(&mut troubles, "pods", &forbidden(), start));
        assert!(!fail(&mut troubles, "pods", &forbidden(), start));
        assert!(fail(&mut troubles, "nodes", &forbidden(), start));
        assert_eq!(troubles.lines(start).len(), 2);
        assert!(troubles.answered("pods", start).resource);
        assert_eq!(troubles.lines(start).len(), 1);
        assert!(troubles.lines(start + 2 * FORGOTTEN).is_empty());
        assert!(fail(
            &mut troubles,
            "nodes",
            &forbidden(),
            start + 2 * FORGOTTEN
        ));
    }

    #[test]
    fn a_line_names_verb_resource_and_mend() {
        let status = |code: u16, message: &str| {
            Box::new(kube::core::Status {
                code,
                message: message.into(),
                ..kube::core::Status::default()
            })
        };
        let line = |code, message| {
            let error = watcher::Error::InitialListFailed(kube::Error::Api(status(code, message)));
            Refusal::of_watch(&error).map(|(_, refusal)| line(&refusal, "pods"))
        };
        let cases = [
            (
                403,
                "pods is forbidden: User \"x\"\n",
                "no right to list and watch pods: pods is forbidden: User \"x\"; grant verbs list and watch on pods to our service account",
            ),
            (
                401,
                "Unauthorized",
                "API server does not accept our credentials: Unauthorized; look at the token or certificate of the kubeconfig or the pod",
            ),
            (
                500,
                "etcd is away",
                "pods cannot be followed: 500 etcd is away",
            ),
        ];
        for (code, message, expected) in cases {
            assert_eq!(line(code, message).as_deref(), Some(expected));
        }
        let request = request_line(&Refusal::Forbidden("no".into()), "create", "tokenreviews");
        assert_eq!(
            request,
            "no right to create tokenreviews: no; grant verb create on tokenreviews to our service account"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_on_soon_after_the_api_server_is_back() {
        let health = Health::default();
        health.lose("connection refused");
        let begun = tokio::time::Instant::now();
        let wait = Duration::from_secs(10);
        let back = async {
            tokio::time::sleep(wait / 10).await;
            health.answered("");
        };
        tokio::join!(health.back_or(wait), back);
        assert!(begun.elapsed() < wait / 4, "{:?}", begun.elapsed());
        let begun = tokio::time::Instant::now();
        health.back_or(wait).await;
        assert!(begun.elapsed() >= wait);
    }
}
