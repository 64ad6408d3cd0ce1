//! Pure: the WorkloadEntry of a machine, what it says of who is there, and what becomes of it.
//!
//! ```text
//!  nothing ── it says how it does ──▶ connected, at a replica ── its stream ended, a moment passed ──▶ gone, since when
//!                                       ▲  │ the replica gives no sign of life ──────────────────────▶  │    │
//!                                       └──┴───────────── comes back, to whichever replica ◀────────────┘    │ the grace is over
//!                                          └── taken out of the book ──▶ removed ◀───────────────────────────┘
//! ```
//! Labels and annotations are those of Istio's auto-registration, so that who reads them knows what they mean. Nothing of an entry
//! is the machine's to say: labels, account and network are the group's, name and address those of the book.

use std::collections::BTreeMap;
use std::time::Duration;

use api::k8s::istio::WorkloadEntry;
use api::k8s::labels::{
    AUTO_REGISTRATION_GROUP, CONNECTED_AT, DISCONNECTED_AT, HEALTH_CHECKS, HEALTHY, MACHINE,
    REDIRECTION, REDIRECTION_ENABLED, UNHEALTHY, WORKLOAD_CONTROLLER,
};
use api::k8s::objects::{ObjectMeta, WorkloadGroup};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::Machine;

/// Where the machine of an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Connected.
    Connected {
        /// To this replica of the control plane.
        by: String,
        /// Since then.
        at: String,
    },
    /// Nowhere.
    Gone {
        /// Since then.
        at: String,
    },
}

/// Whether a machine is connected to this replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Here {
    /// It is.
    Present,
    /// It was, so long ago.
    Left(Duration),
    /// It was taken out of the book while it was.
    TakenOut,
    /// Not as far as is known.
    Never,
}

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Leave,
    /// Its machine is gone, it is written on it.
    Mark,
    /// It is removed.
    Remove,
}

impl Standing {
    /// Connected to `by`, from now on.
    pub fn connected(by: &str) -> Self {
        Self::Connected {
            by: by.into(),
            at: now(),
        }
    }

    /// Gone, from now on.
    pub fn gone() -> Self {
        Self::Gone { at: now() }
    }

    /// What an entry's annotations say.
    pub fn of(annotations: &BTreeMap<String, String>) -> Self {
        let text = |key| annotations.get(key).cloned().unwrap_or_default();
        match annotations.get(WORKLOAD_CONTROLLER) {
            Some(by) if !annotations.contains_key(DISCONNECTED_AT) => Self::Connected {
                by: by.clone(),
                at: text(CONNECTED_AT),
            },
            _ => Self::Gone {
                at: text(DISCONNECTED_AT),
            },
        }
    }

    /// The annotations that say so.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let pairs = match self {
            Self::Connected { by, at } => vec![(WORKLOAD_CONTROLLER, by), (CONNECTED_AT, at)],
            Self::Gone { at } => vec![(DISCONNECTED_AT, at)],
        };
        let owned = |(key, value): (&str, &String)| (key.to_owned(), value.clone());
        pairs.into_iter().map(owned).collect()
    }

    /// Connected, and to that replica.
    pub fn is_at(&self, replica: &str) -> bool {
        matches!(self, Self::Connected { by, .. } if by == replica)
    }
}

/// Whether an entry was made here, and not by somebody's hand.
pub fn is_ours(annotations: &BTreeMap<String, String>) -> bool {
    // Those of earlier versions named no machine.
    let earlier = annotations.get(WORKLOAD_CONTROLLER);
    annotations.contains_key(MACHINE) || earlier.is_some_and(|by| by == EARLIER)
}

/// What an entry is, whoever is there. `checked`: its machine must say that it is well.
pub fn shape(machine: &Machine, group: &WorkloadGroup, checked: bool) -> WorkloadEntry {
    let spec = &group.spec;
    let mut labels = spec.metadata.labels.clone();
    labels.extend(spec.template.labels.clone());
    let mut annotations = spec.metadata.annotations.clone();
    annotations.retain(|key, _| !OURS.contains(&&**key));
    let name = machine.join.group.clone().unwrap_or_default();
    let mut say = |key: &str, value: String| drop(annotations.insert(key.to_owned(), value));
    // Its own proxy captures its connections and unwraps tunnels, as a node's does for a pod.
    say(REDIRECTION, REDIRECTION_ENABLED.into());
    say(AUTO_REGISTRATION_GROUP, name.clone());
    say(MACHINE, machine.reference());
    if checked {
        say(HEALTH_CHECKS, "true".into());
    }
    let mut template = spec.template.clone();
    template.address = machine.address.to_string();
    template
        .service_account
        .clone_from(&machine.join.service_account);
    template.labels.clone_from(&labels);
    // With the group its entries go. One that lies in a directory has no uid.
    let owner = group.metadata.uid.clone().map(|uid| OwnerReference {
        // As the cluster served it; it says so of each, but not everybody who lists does.
        api_version: match &*group.api_version {
            "" => VERSION.into(),
            version => version.into(),
        },
        kind: "WorkloadGroup".into(),
        name,
        uid,
        controller: Some(true),
        ..OwnerReference::default()
    });
    WorkloadEntry {
        api_version: VERSION.into(),
        kind: "WorkloadEntry".into(),
        metadata: ObjectMeta {
            name: Some(machine.join.name.clone()),
            namespace: Some(machine.join.namespace.clone()),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template,
        ..WorkloadEntry::default()
    }
}

/// The conditions of an entry once it says how its machine does; none if it says so already. `now`: RFC 3339.
pub fn conditions(before: &Value, unhealthy: Option<&str>, now: &str) -> Option<Vec<Value>> {
    let mut all = before.as_array().cloned().unwrap_or_default();
    let status = if unhealthy.is_some() { "False" } else { "True" };
    let message = unhealthy.unwrap_or_default();
    let at = all.iter().position(|it| it["type"] == HEALTHY);
    let old = at.map(|at| &all[at]);
    let same = old.is_some_and(|old| old["status"] == status);
    if same && old.is_some_and(|old| old["message"].as_str().unwrap_or_default() == message) {
        return None;
    }
    let since = old.filter(|_| same).map(|old| &old["lastTransitionTime"]);
    let since = since.and_then(Value::as_str).unwrap_or(now);
    let fresh = json!({
        "type": HEALTHY, "status": status, "message": message,
        "lastProbeTime": now, "lastTransitionTime": since,
    });
    match at {
        Some(at) => all[at] = fresh,
        None => all.push(fresh),
    }
    Some(all)
}

/// What becomes of an entry that has said the same of its machine for `lasts`; `ours`: at this replica, `silent`: at one that
/// gives no sign of life.
pub fn judge(
    standing: &Standing,
    lasts: Duration,
    here: Here,
    (ours, silent): (bool, bool),
    grace: Duration,
) -> Step {
    match (standing, here) {
        (_, Here::Present) => Step::Leave,
        (Standing::Gone { .. }, Here::TakenOut) => Step::Remove,
        (Standing::Gone { .. }, _) if lasts >= grace => Step::Remove,
        (Standing::Gone { .. }, _) => Step::Leave,
        (Standing::Connected { .. }, Here::TakenOut) if ours => Step::Remove,
        // It may only come back on another connection: theirs end by themselves from time to time.
        (Standing::Connected { .. }, Here::Left(ago)) if ours && ago < LINGER => Step::Leave,
        (Standing::Connected { .. }, Here::Left(_)) if ours => Step::Mark,
        (Standing::Connected { .. }, Here::Never) if ours && lasts >= LINGER => Step::Mark,
        (Standing::Connected { .. }, _) if !ours && silent => Step::Mark,
        (Standing::Connected { .. }, _) => Step::Leave,
    }
}

/// RFC 3339, as Istio writes these.
pub fn now() -> String {
    Timestamp::now().to_string()
}

const VERSION: &str = "networking.istio.io/v1";
/// The controller that entries of earlier versions name.
const EARLIER: &str = "istiod-lite";
/// How long a machine whose stream ended may take to come back before anybody is told.
pub const LINGER: Duration = Duration::from_secs(3);
/// What a group cannot say of the entries that are made from it.
const OURS: [&str; 8] = [
    REDIRECTION,
    AUTO_REGISTRATION_GROUP,
    MACHINE,
    HEALTH_CHECKS,
    UNHEALTHY,
    WORKLOAD_CONTROLLER,
    CONNECTED_AT,
    DISCONNECTED_AT,
];

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(60);

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_an_entry_says_of_its_machine_is_read_as_it_was_written() {
        for standing in [Standing::connected("istiod-1_a"), Standing::gone()] {
            assert_eq!(Standing::of(&standing.annotations()), standing);
        }
        let nothing = Standing::of(&BTreeMap::new());
        assert_eq!(nothing, Standing::Gone { at: String::new() });
        // Istio leaves the controller away when it says that a machine is gone; who left both is not believed.
        let mut both = Standing::connected("istiod-1_a").annotations();
        both.extend(Standing::gone().annotations());
        assert!(matches!(Standing::of(&both), Standing::Gone { .. }));
    }

    #[test]
    fn an_entry_goes_only_when_its_machine_went_and_whoever_looked_after_it_is_gone_or_here() {
        let connected = Standing::connected("a");
        let gone = Standing::gone();
        let (ours, theirs, silent) = ((true, false), (false, false), (false, true));
        let left = |ago| Here::Left(seconds(ago));
        type Case<'a> = (&'static str, &'a Standing, u64, Here, (bool, bool), Step);
        let cases: [Case<'_>; 17] = [
            (
                "it is here",
                &connected,
                999,
                Here::Present,
                ours,
                Step::Leave,
            ),
            ("it came back", &gone, 999, Here::Present, ours, Step::Leave),
            (
                "it came to us, and nobody wrote it yet",
                &connected,
                999,
                Here::Present,
                silent,
                Step::Leave,
            ),
            ("it just left", &connected, 999, left(1), ours, Step::Leave),
            ("it left", &connected, 999, left(3), ours, Step::Mark),
            (
                "it left, and came to another",
                &connected,
                0,
                left(3),
                theirs,
                Step::Leave,
            ),
            (
                "it was here once, and its replica is silent",
                &connected,
                99,
                left(99),
                silent,
                Step::Mark,
            ),
            (
                "ours, and nobody knows of it: just written",
                &connected,
                1,
                Here::Never,
                ours,
                Step::Leave,
            ),
            (
                "ours, and nobody knows of it",
                &connected,
                3,
                Here::Never,
                ours,
                Step::Mark,
            ),
            (
                "at another",
                &connected,
                9999,
                Here::Never,
                theirs,
                Step::Leave,
            ),
            (
                "at one that is silent",
                &connected,
                0,
                Here::Never,
                silent,
                Step::Mark,
            ),
            (
                "taken out",
                &connected,
                0,
                Here::TakenOut,
                ours,
                Step::Remove,
            ),
            (
                "taken out here, and joined anew at another",
                &connected,
                0,
                Here::TakenOut,
                theirs,
                Step::Leave,
            ),
            (
                "taken out, and gone",
                &gone,
                0,
                Here::TakenOut,
                theirs,
                Step::Remove,
            ),
            (
                "gone, within the grace",
                &gone,
                59,
                Here::Never,
                theirs,
                Step::Leave,
            ),
            (
                "gone, and the grace is over",
                &gone,
                60,
                Here::Never,
                theirs,
                Step::Remove,
            ),
            (
                "gone from here, and the grace is over",
                &gone,
                60,
                left(63),
                theirs,
                Step::Remove,
            ),
        ];
        for (what, standing, lasts, here, whose, expected) in cases {
            let step = judge(standing, seconds(lasts), here, whose, GRACE);
            assert_eq!(step, expected, "{what}");
        }
    }

    #[test]
    fn how_a_machine_does_is_one_condition_among_others_and_keeps_its_time_while_it_stays_so() {
        let others = json!([{"type": "istio.io/WaypointBound", "status": "True"}]);
        let first = conditions(&others, Some("no answer"), "t1").unwrap();
        assert_eq!(first[0], others[0]);
        let expected = json!({
            "type": "Healthy", "status": "False", "message": "no answer", "lastProbeTime": "t1", "lastTransitionTime": "t1",
        });
        assert_eq!(first[1], expected);
        let first = Value::Array(first);
        assert_eq!(conditions(&first, Some("no answer"), "t2"), None);
        let other = conditions(&first, Some("status 503"), "t2").unwrap();
        let times = [&other[1]["lastProbeTime"], &other[1]["lastTransitionTime"]];
        assert_eq!(times, ["t2", "t1"], "it is still not well");
        let well = conditions(&Value::Array(other), None, "t3").unwrap();
        assert_eq!(
            (&well[1]["status"], &well[1]["lastTransitionTime"]),
            (&json!("True"), &json!("t3"))
        );
        assert_eq!(well.len(), 2);
        assert_eq!(conditions(&Value::Array(well), None, "t4"), None);
        assert_eq!(conditions(&Value::Null, None, "t1").unwrap().len(), 1);
    }
}
