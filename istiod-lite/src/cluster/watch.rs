//! One kind is followed: first everything there is, page by page, then what changes.
//!
//! 1. kube's watcher lists and watches, and begins anew where the API server forgot our place
//! 2. what it says becomes ours at the door, here, beside the other kinds    ([`super::door`])
//! 3. and goes into the source's queue, which is bounded: who cannot keep up makes the API server's
//!    connection wait, not our memory grow
//!
//! A failure is reported, and tried again after a pause that doubles, with jitter.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use api::k8s::objects::{EndpointSlice, Kind, Namespace, Node, Pod, Service};
use api::k8s::server::Refusal;
use futures_util::{Stream, StreamExt as _};
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::runtime::watcher::{self, Config};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::book::{Event, Run};
use super::definitions::Definition;
use super::door::Enter;
use super::source::Heard;
use super::trouble::Health;

/// A watch of one kind.
pub(super) struct Watch {
    pub(super) kind: Kind,
    pub(super) run: Run,
    pub(super) outbox: mpsc::Sender<Heard>,
    pub(super) health: Health,
}

impl Watch {
    /// Follows one of Kubernetes' own kinds; ends when nobody listens any more.
    pub(super) async fn native(self, client: Client) {
        match self.kind {
            Kind::Pod => self.follow(all::<Pod>(client), "pods").await,
            Kind::Service => self.follow(all::<Service>(client), "services").await,
            Kind::EndpointSlice => {
                let resource = "endpointslices.discovery.k8s.io";
                self.follow(all::<EndpointSlice>(client), resource).await;
            }
            // Of these only labels and annotations are read; a node's status alone is tens of KiB.
            Kind::Namespace => {
                self.follow(all::<PartialObjectMeta<Namespace>>(client), "namespaces")
                    .await
            }
            Kind::Node => {
                self.follow(all::<PartialObjectMeta<Node>>(client), "nodes")
                    .await
            }
            _ => {}
        }
    }

    /// Follows a kind that a definition describes.
    pub(super) async fn defined(self, client: Client, resource: ApiResource) {
        let name = format!("{}.{}", resource.plural, resource.group);
        let objects: Api<DynamicObject> = Api::all_with(client, &resource);
        let events = watcher::watcher(objects, config());
        self.follow(events, &name).await;
    }

    async fn follow<K: Enter>(
        self,
        events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
        resource: &str,
    ) {
        let mut events = pin!(steady(events, &self.health, resource));
        while let Some(event) = events.next().await {
            let event = match event {
                watcher::Event::Init => Event::Began,
                watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
                    Event::Seen(object.enter(self.kind))
                }
                watcher::Event::InitDone => Event::Ended,
                watcher::Event::Delete(object) => Event::Deleted(object.key(self.kind)),
            };
            let (kind, run) = (self.kind, self.run);
            if self
                .outbox
                .send(Heard::Event { kind, run, event })
                .await
                .is_err()
            {
                return;
            }
        }
    }
}

/// Follows the definitions of kinds.
pub(super) fn definitions(
    client: Client,
    health: &Health,
) -> impl Stream<Item = watcher::Event<Definition>> + use<> {
    let resource = "customresourcedefinitions.apiextensions.k8s.io";
    steady(all::<Definition>(client), health, resource)
}

fn all<K>(client: Client) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + use<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher::watcher(Api::<K>::all(client), config())
}

/// Pages of 500, bookmarks: kube's defaults. Ended by the API server after [`WATCH`], which costs
/// one small request; so a connection whose other end vanished is noticed soon after.
pub(crate) fn config() -> Config {
    Config::default().timeout(WATCH)
}

/// The events alone: failures are reported, and waited after.
pub(crate) fn steady<K, S>(
    events: S,
    health: &Health,
    resource: &str,
) -> impl Stream<Item = watcher::Event<K>> + use<K, S>
where
    S: Stream<Item = watcher::Result<watcher::Event<K>>>,
{
    let mut pause = Pause::default();
    let (health, resource) = (health.clone(), resource.to_owned());
    let tried = events.then(move |event| {
        let mut wait = None;
        match &event {
            // Said before anything was asked.
            Ok(watcher::Event::Init) => {}
            Ok(_) if pause.ends() => health.answered(&resource),
            Ok(_) => {}
            Err(error) => {
                wait = Refusal::of_watch(error).map(|(_, refusal)| {
                    health.failed(&resource, refusal);
                    pause.next()
                });
            }
        }
        let health = health.clone();
        async move {
            if let Some(wait) = wait {
                health.back_or(wait).await;
            }
            event.ok()
        }
    });
    tried.filter_map(std::future::ready)
}

/// How long to wait after a failure.
#[derive(Debug, Default)]
pub(crate) struct Pause(u32);

impl Pause {
    /// Half a second, doubled with every failure up to ten seconds; half of it at random, so that
    /// watches that failed together do not come back together.
    pub(crate) fn next(&mut self) -> Duration {
        let whole = SHORTEST.saturating_mul(1 << self.0.min(8)).min(LONGEST);
        self.0 = self.0.saturating_add(1);
        let mut random = [0_u8; 1];
        // Without randomness there is still a pause.
        let _ = aws_lc_rs::rand::fill(&mut random);
        whole / 2 + (whole / 2).mul_f64(f64::from(random[0]) / 255.0)
    }

    /// Something worked; `true` if something had failed before.
    fn ends(&mut self) -> bool {
        std::mem::take(&mut self.0) > 0
    }
}

/// Seconds.
const WATCH: u32 = 60;
const SHORTEST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    #[test]
    fn pauses_double_up_to_ten_seconds_with_half_of_each_at_random() {
        let mut pause = Pause::default();
        for whole in [500, 1000, 2000, 4000, 8000, 10_000, 10_000] {
            let (whole, pause) = (Duration::from_millis(whole), pause.next());
            assert!(
                whole / 2 <= pause && pause <= whole,
                "{pause:?} of {whole:?}"
            );
        }
        assert!(pause.ends() && !pause.ends());
        assert!(pause.next() <= SHORTEST);
        for _ in 0..1000 {
            assert!(pause.next() <= LONGEST);
        }
    }

    fn unreachable() -> watcher::Result<watcher::Event<Pod>> {
        let error = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = kube::Error::Service(Box::new(error));
        Err(watcher::Error::InitialListFailed(error))
    }

    #[tokio::test(start_paused = true)]
    async fn failures_are_reported_waited_after_and_over_when_something_comes() {
        let health = Health::default();
        let events = vec![
            Ok(watcher::Event::Init),
            unreachable(),
            Ok(watcher::Event::Init),
            unreachable(),
            Ok(watcher::Event::Init),
            Ok(watcher::Event::InitDone),
        ];
        let begun = tokio::time::Instant::now();
        let mut events = pin!(steady(stream::iter(events), &health, "pods"));
        let mut came = Vec::new();
        while let Some(event) = events.next().await {
            came.push((
                matches!(event, watcher::Event::InitDone),
                health.is_unreachable(),
            ));
        }
        // That a list begins is said before anything was asked.
        let expected = [(false, false), (false, true), (false, true), (true, false)];
        assert_eq!(came, expected);
        assert!(begun.elapsed() >= Duration::from_millis(250 + 500));
    }
}
