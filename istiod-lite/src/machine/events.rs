//! Refused machines as Events of Kubernetes, where those look who can do something: on the machine's WorkloadGroup, or, without one, its
//! ServiceAccount.
//!
//! 1. a refusal becomes a note: whose, why, what to do                ([`note`], pure)
//! 2. notes that are alike become one Event: the first is said at once, those that follow once a minute, by their number ([`Desk`], pure)
//! 3. what is due is written; what cannot be is tried once more with the next of its kind
//!
//! Only of who is proven there are Events: by a token that we signed, or a certificate in the book. A stranger with neither is counted, and
//! writes nothing into anybody's namespace. Notes that come faster than they can be taken are dropped; they are in the log.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use api::k8s::objects::{Kind, ObjectKey};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Refused, reference};
use crate::feed::Groups;
use crate::metrics::Metrics;
use crate::token::Join;
use crate::write::said;

/// Where refusals are told.
#[derive(Clone)]
pub struct Events {
    outbox: mpsc::Sender<Note>,
}

/// One refusal. Pure.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct About {
    namespace: String,
    /// WorkloadGroup or ServiceAccount, by name.
    object: Object,
    reason: &'static str,
    /// `namespace/name`
    machine: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Object {
    Group(String),
    Account(String),
}

#[derive(Debug, Clone)]
struct Note {
    about: About,
    message: String,
}

impl Events {
    /// Tells them until `stop`.
    pub fn start(
        client: Client,
        groups: watch::Receiver<Groups>,
        metrics: std::sync::Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        let (outbox, inbox) = mpsc::channel(WAITING);
        let writer = Writer {
            client,
            groups,
            metrics,
        };
        tokio::spawn(async move { stop.run_until_cancelled(writer.run(inbox)).await });
        Self { outbox }
    }

    /// A machine was refused.
    pub fn say(&self, join: &Join, refused: &Refused, from: Option<IpAddr>) {
        if let Some(note) = note(join, refused, from) {
            // Full: it is in the log all the same.
            let _ = self.outbox.try_send(note);
        }
    }
}

/// What is told of a refusal, and where; nothing of what is no machine's doing. Pure.
fn note(join: &Join, refused: &Refused, from: Option<IpAddr>) -> Option<Note> {
    let machine = reference(join);
    let (reason, remedy) = match refused.reason() {
        "token_used" => ("JoinTokenReused", String::new()),
        "token_expired" => (
            "JoinTokenExpired",
            format!("; {machine} needs another one (ambit vm token)"),
        ),
        "token_outdated" => ("JoinTokenOutdated", " (ambit vm token)".to_owned()),
        "address" => (
            "MachineElsewhere",
            format!(
                ": what it joins by was stolen, or the machine has moved; if it has, take it out (ambit vm remove {machine}) and make a token \
                 for where it is"
            ),
        ),
        "unknown" => (
            "MachineUnknown",
            "; if it shall come back, make a token (ambit vm token)".to_owned(),
        ),
        "key" => (
            "MachineKeyDiffers",
            format!(
                ": another has joined under its name since; if that was not you, take it out (ambit vm remove {machine})"
            ),
        ),
        "away" => ("MachineAwayTooLong", " (ambit vm token)".to_owned()),
        "lies" => (
            "MachineLies",
            "; correct its settings (PROXY_WORKLOAD_INFO, INSTANCE_IP), or find out who uses what it joined by".to_owned(),
        ),
        _ => return None,
    };
    let from = from.map(|from| format!(" [from {from}]"));
    let mut message = format!("{refused}{remedy}{}", from.unwrap_or_default());
    message.truncate(message.floor_char_boundary(LONGEST));
    let object = match &join.group {
        Some(group) => Object::Group(group.clone()),
        None => Object::Account(join.service_account.clone()),
    };
    Some(Note {
        about: About {
            namespace: join.namespace.clone(),
            object,
            reason,
            machine,
        },
        message,
    })
}

/// What was noted of late. Pure.
#[derive(Debug, Default)]
struct Desk(BTreeMap<About, Series>);

/// Notes that are alike: one Event.
#[derive(Debug, Clone)]
struct Series {
    /// What its Event is called.
    name: String,
    message: String,
    count: u32,
    first: Timestamp,
    last: Timestamp,
    /// Its Event was written last.
    said: Option<Instant>,
    is_due: bool,
    /// Something came last.
    heard: Instant,
}

impl Desk {
    fn take(&mut self, note: Note, name: impl FnOnce() -> String, now: Instant, time: Timestamp) {
        if self.0.len() >= MOST && !self.0.contains_key(&note.about) {
            return;
        }
        let series = self.0.entry(note.about).or_insert_with(|| Series {
            name: name(),
            message: String::new(),
            count: 0,
            first: time,
            last: time,
            said: None,
            is_due: false,
            heard: now,
        });
        series.count = series.count.saturating_add(1);
        series.message = note.message;
        (series.last, series.heard, series.is_due) = (time, now, true);
    }

    /// What is to be written now; it is taken for written.
    fn due(&mut self, now: Instant) -> Vec<(About, Series)> {
        self.0
            .retain(|_, series| series.is_due || now - series.heard < FORGET);
        let mut due = Vec::new();
        for (about, series) in &mut self.0 {
            let rests = series.said.is_some_and(|said| now - said < PAUSE);
            if series.is_due && !rests {
                (series.said, series.is_due) = (Some(now), false);
                due.push((about.clone(), series.clone()));
            }
        }
        due
    }
}

struct Writer {
    client: Client,
    groups: watch::Receiver<Groups>,
    metrics: std::sync::Arc<Metrics>,
}

impl Writer {
    async fn run(self, mut inbox: mpsc::Receiver<Note>) {
        let mut desk = Desk::default();
        let mut look = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                note = inbox.recv() => {
                    let Some(note) = note else { return };
                    let name = name(&note.about);
                    desk.take(note, || name, Instant::now(), Timestamp::now());
                }
                _ = look.tick() => {}
            }
            for (about, series) in desk.due(Instant::now()) {
                let written = tokio::time::timeout(PATIENCE, self.write(&about, &series)).await;
                let error = match written {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(said(&error)),
                    Err(_) => Some("no answer in time".to_owned()),
                };
                self.metrics.wrote("events", error.is_none());
                if let Some(error) = error {
                    let (machine, reason) = (&about.machine, about.reason);
                    tracing::warn!(
                        machine,
                        reason,
                        error,
                        "the Event of a refusal cannot be written"
                    );
                }
            }
        }
    }

    async fn write(&self, about: &About, series: &Series) -> Result<(), kube::Error> {
        let object = self.object(about).await;
        let event = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": series.name, "namespace": about.namespace},
            "involvedObject": object,
            "type": "Warning", "reason": about.reason, "message": series.message,
            "count": series.count,
            "firstTimestamp": seconds(series.first), "lastTimestamp": seconds(series.last),
            "source": {"component": COMPONENT}, "reportingComponent": COMPONENT,
        });
        let events = Api::<k8s_openapi::api::core::v1::Event>::namespaced(
            self.client.clone(),
            &about.namespace,
        );
        let how = PatchParams::apply(MANAGER).force();
        events
            .patch(&series.name, &how, &Patch::Apply(&event))
            .await
            .map(drop)
    }

    /// What it is about; by its uid too, or it is not shown with the object.
    async fn object(&self, about: &About) -> Value {
        let (version, kind, name, uid) = match &about.object {
            Object::Group(name) => {
                let key = ObjectKey::new(Kind::WorkloadGroup, &about.namespace, name);
                let group = self.groups.borrow().get(&key).cloned();
                let uid = group.and_then(|group| group.metadata.uid.clone());
                ("networking.istio.io/v1", "WorkloadGroup", name, uid)
            }
            Object::Account(name) => {
                let accounts =
                    Api::<ServiceAccount>::namespaced(self.client.clone(), &about.namespace);
                let account = accounts.get_opt(name).await.ok().flatten();
                let uid = account.and_then(|account| account.metadata.uid);
                ("v1", "ServiceAccount", name, uid)
            }
        };
        let mut object = json!({
            "apiVersion": version, "kind": kind, "name": name, "namespace": about.namespace,
        });
        if let Some(uid) = uid {
            object["uid"] = uid.into();
        }
        object
    }
}

/// A name that no other Event has.
fn name(about: &About) -> String {
    let mut random = [0_u8; 8];
    // Without randomness the time must do.
    let _ = aws_lc_rs::rand::fill(&mut random);
    let number = u64::from_be_bytes(random) ^ Timestamp::now().as_microsecond().unsigned_abs();
    let (Object::Group(name) | Object::Account(name)) = &about.object;
    let end = name.floor_char_boundary(200);
    format!("{}.{number:016x}", &name[..end])
}

/// As Kubernetes writes times.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

const COMPONENT: &str = "istiod-lite";
const MANAGER: &str = "ambit-events";
/// Of a message; the API server takes no longer ones.
const LONGEST: usize = 1000;
/// Notes that were not taken yet.
const WAITING: usize = 64;
/// Events that are kept in mind.
const MOST: usize = 256;
const LOOK: Duration = Duration::from_secs(5);
/// Between two that say the same.
const PAUSE: Duration = Duration::from_secs(60);
/// What was not heard of for so long begins anew.
const FORGET: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write::fake::Fake;

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 66));

    fn join(group: Option<&str>) -> Join {
        Join {
            namespace: "shop".into(),
            name: "db-1".into(),
            service_account: "db".into(),
            group: group.map(str::to_owned),
            addresses: Vec::new(),
            translated: false,
        }
    }

    fn elsewhere() -> Refused {
        Refused::Elsewhere {
            machine: "shop/db-1".into(),
            address: [10, 0, 0, 9].into(),
            from: FROM,
        }
    }

    #[test]
    fn a_refusal_is_told_with_what_to_do_and_what_is_nobodys_doing_is_not() {
        let used = Refused::Used {
            machine: "shop/db-1".into(),
            by: [10, 0, 0, 9].into(),
            at: 1,
        };
        let lies = Refused::Lies {
            machine: "shop/db-1".into(),
            what: "name",
            said: "web-0".into(),
            is: "db-1".into(),
        };
        let away = Refused::Away {
            machine: "shop/db-1".into(),
            ago: Duration::from_secs(1),
        };
        let cases = [
            (used, "JoinTokenReused", "take it out"),
            (elsewhere(), "MachineElsewhere", "ambit vm remove shop/db-1"),
            (Refused::NoPeer, "MachineElsewhere", "moved"),
            (
                Refused::Outdated("shop/db-1".into()),
                "JoinTokenOutdated",
                "ambit vm token",
            ),
            (
                Refused::Unknown("shop/db-1".into()),
                "MachineUnknown",
                "ambit vm token",
            ),
            (
                Refused::OtherKey("shop/db-1".into()),
                "MachineKeyDiffers",
                "ambit vm remove",
            ),
            (away, "MachineAwayTooLong", "ambit vm token"),
            (lies, "MachineLies", "PROXY_WORKLOAD_INFO"),
        ];
        for (refused, reason, remedy) in cases {
            let note = note(&join(None), &refused, Some(FROM)).unwrap();
            assert_eq!(note.about.reason, reason);
            let message = &note.message;
            assert!(
                message.contains(remedy) && message.contains("10.0.0.66"),
                "{message}"
            );
        }
        let ours = Refused::Store(std::io::Error::other("no"));
        assert!(note(&join(None), &ours, None).is_none());
        let long = Refused::Lies {
            machine: "shop/db-1".into(),
            what: "name",
            said: "é".repeat(2000),
            is: String::new(),
        };
        let long = note(&join(None), &long, None).unwrap();
        assert!(long.message.len() <= LONGEST);
    }

    #[test]
    fn the_first_is_said_at_once_and_those_that_follow_once_a_minute_by_their_number() {
        let (mut desk, start) = (Desk::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let take = |desk: &mut Desk, second| {
            let note = note(&join(Some("db")), &elsewhere(), None).unwrap();
            desk.take(note, || "e".into(), at(second), Timestamp::now());
        };
        take(&mut desk, 0);
        assert_eq!(desk.due(at(0)).len(), 1);
        for second in 1..50 {
            take(&mut desk, second);
            assert!(desk.due(at(second)).is_empty());
        }
        let due = desk.due(at(60));
        assert_eq!((due.len(), due[0].1.count), (1, 50));
        assert!(desk.due(at(600)).is_empty(), "nothing is new");
        assert!(desk.due(at(3700)).is_empty() && desk.0.is_empty());
        // However many there are, what is kept is bounded.
        for number in 0..MOST + 10 {
            let other = Join {
                name: format!("db-{number}"),
                ..join(None)
            };
            let note = note(&other, &Refused::Outdated(String::new()), None).unwrap();
            desk.take(note, || "e".into(), at(4000), Timestamp::now());
        }
        assert_eq!(desk.0.len(), MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_is_on_the_group_or_the_account_with_its_uid_and_counts() {
        let fake = Fake::new();
        fake.put(
            "serviceaccounts",
            "shop",
            "db",
            json!({"metadata": {"uid": "u-db"}}),
        );
        let metrics = Metrics::register(&mut ops::metrics::Registry::new("pilot", "test"));
        let group = json!({
            "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
            "metadata": {"name": "db", "namespace": "shop", "uid": "u-group"},
            "spec": {"template": {"serviceAccount": "db"}},
        });
        let key = ObjectKey::new(Kind::WorkloadGroup, "shop", "db");
        let group = std::sync::Arc::new(serde_json::from_value(group).unwrap());
        let groups = watch::Sender::new(Groups::unit(key, group));
        let stop = CancellationToken::new();
        let events = Events::start(fake.client(), groups.subscribe(), metrics, stop.clone());
        events.say(&join(Some("db")), &elsewhere(), Some(FROM));
        events.say(&join(None), &elsewhere(), Some(FROM));
        tokio::time::sleep(LOOK * 2).await;
        for _ in 0..5 {
            events.say(&join(None), &elsewhere(), Some(FROM));
        }
        tokio::time::sleep(PAUSE * 2).await;
        let all = fake.all("events");
        let said = |kind: &str| {
            let mut these = all.iter().filter(|it| it["involvedObject"]["kind"] == kind);
            let it = these.next().unwrap();
            assert!(these.next().is_none(), "one for all that are alike");
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            assert_eq!(
                (text(&it["type"]), text(&it["reason"])),
                ("Warning".into(), "MachineElsewhere".into())
            );
            (text(&it["involvedObject"]["uid"]), it["count"].as_u64())
        };
        assert_eq!(said("WorkloadGroup"), ("u-group".into(), Some(1)));
        assert_eq!(said("ServiceAccount"), ("u-db".into(), Some(6)));
        stop.cancel();
    }
}
