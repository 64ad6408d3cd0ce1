//! Namespace tea: two versions of a menu behind a waypoint; how it is asked, and how it explains itself.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use lab::{AccessLog, AccessRecord, Lab, Metrics, Pod, Waypoint, wait};
use serde_json::Value;

use super::{
    super::{
        cast::{Cast, nginx},
        screen::{Screen, Tone},
    },
    answers::{Answer, WRITTEN, escaped, heard},
};

const HOST: &str = "menu.tea.svc.cluster.local";
/// The file in the configuration directory that each chapter writes anew.
const FILE: &str = "layer-7";
/// For what should take milliseconds, on a machine busy with debug builds.
const SOON: Duration = Duration::from_secs(60);

/// The place.
pub(super) struct Room<'a> {
    lab: &'a Lab,
    screen: Screen,
    waypoint: Waypoint,
    new: Pod,
    log: AccessLog,
    asked: usize,
}

/// A request that the waypoint is asked about.
pub(super) struct Question<'a> {
    pub(super) client: &'a Pod,
    pub(super) method: &'a str,
    /// Of a good token.
    pub(super) claims: Option<&'a Value>,
}

/// Some requests like each other.
pub(super) struct Asked {
    pub(super) answers: Vec<Answer>,
    /// What the waypoint's access log says of them.
    pub(super) told: Vec<AccessRecord>,
}

impl<'a> Room<'a> {
    /// Starts two versions, a waypoint before them, and waits until a request gets through.
    pub(super) fn open(lab: &'a Lab, cast: &Cast, screen: Screen) -> Result<Self> {
        let started = Instant::now();
        lab.namespace("tea").behind("way")?;
        let waypoint = lab.waypoint("tea/way", 0)?;
        let version = |version: &str, node: usize, more: &str| -> Result<Pod> {
            let pod = lab.pod(&format!("tea/menu-{version}")).node(node);
            let pod = pod.service_account("menu").label("app", "menu");
            let pod = pod.label("version", version).start()?;
            let site = format!("{more} location / {{ return 200 {version}; }}");
            nginx(&pod, &site)?;
            Ok(pod)
        };
        version("v1", 0, "")?;
        let new = version("v2", 1, "location /order { return 503 v2; }")?;
        for (service, label) in [
            ("tea/menu", ("app", "menu")),
            ("tea/menu-v1", ("version", "v1")),
            ("tea/menu-v2", ("version", "v2")),
        ] {
            lab.service_for(service, label, &[("http", 80, 8080)])?;
        }
        let log = waypoint.pod().access_log();
        let mut room = Self {
            lab,
            screen,
            waypoint,
            new,
            log,
            asked: 0,
        };
        wait::until_true("the menu to answer through its waypoint", SOON, || {
            // Not one of the clients that are counted at the end.
            let answers = room.curl(&cast.checkout, 4, "/", &[]).unwrap_or_default();
            answers.len() == 4
                && answers.iter().all(|answer| answer.status == 200)
                && !room.log.fresh().is_empty()
        })?;
        let identity = room.waypoint.pod().pod().identity();
        room.fact(
            "waypoint",
            &format!(
                "pod way-0 on {}, {}",
                lab.node(0).name(),
                identity.replace("cluster.local", "…")
            ),
        );
        screen.done(&format!(
            "the menu answers through it, {:.1} s after its Gateway was written",
            started.elapsed().as_secs_f32()
        ));
        Ok(room)
    }

    /// Writes `text`, shows it, and waits until the waypoint explains a request by it.
    ///
    /// `by`: what it says then, if it is so.
    pub(super) fn apply(
        &self,
        shown: &str,
        text: &str,
        question: &Question<'_>,
        by: impl Fn(&Value) -> Option<String>,
    ) -> Result<()> {
        self.screen.quote(shown);
        let written = Instant::now();
        self.lab.apply_yaml(FILE, text)?;
        let explained = wait::until("the waypoint to go by what was written", SOON, || {
            let explained = self.explained(question)?;
            Ok(match by(&explained) {
                Some(explained) => wait::Probe::Ready(explained),
                None => wait::Probe::NotYet(explained.to_string()),
            })
        })?;
        let after = written.elapsed().as_millis();
        self.screen.step(&format!("in force after {after} ms"));
        let Question { client, method, .. } = question;
        self.fact(
            "/explain",
            &format!("{method} by {}: {explained}", client.name()),
        );
        Ok(())
    }

    /// Takes away what was written last, and waits until nothing is left of it.
    pub(super) fn clear(&self, question: &Question<'_>) -> Result<()> {
        self.lab.delete_yaml(FILE)?;
        wait::until_true("the waypoint to forget what was taken away", SOON, || {
            let Ok(explained) = self.explained(question) else {
                return false;
            };
            let none = |at: &str| {
                let list = explained.pointer(at).and_then(Value::as_array);
                list.is_some_and(Vec::is_empty)
            };
            explained["route"].is_null()
                && explained["tokens_are_checked"] == false
                && none("/limits")
                && none("/authorization/policies")
        })
    }

    /// Asks `times` times; each request stands in the waypoint's access log when this returns.
    pub(super) fn ask(
        &mut self,
        client: &Pod,
        times: usize,
        path: &str,
        more: &[&str],
    ) -> Result<Asked> {
        self.log.fresh();
        let answers = self.curl(client, times, path, more)?;
        ensure!(
            answers.len() == times,
            "{} of {times} requests were answered: {answers:?}",
            answers.len()
        );
        self.asked += times;
        let mut told = Vec::new();
        wait::until_true("each request to stand in the access log", SOON, || {
            let fresh = self.log.fresh().into_iter();
            told.extend(fresh.filter(|it| it.field("src.workload") == client.name()));
            told.len() >= times
        })?;
        ensure!(
            told.len() == times,
            "{} records of {times} requests",
            told.len()
        );
        Ok(Asked { answers, told })
    }

    fn curl(&self, client: &Pod, times: usize, path: &str, more: &[&str]) -> Result<Vec<Answer>> {
        let url = format!("http://menu.tea{path}?[1-{times}]");
        let words = ["curl", "-sS", "--max-time", "50", "-w", WRITTEN];
        let words = words.iter().chain(more).copied().chain([&*url]);
        Ok(heard(&client.exec(words)?.success()?))
    }

    fn explained(&self, question: &Question<'_>) -> Result<Value> {
        let Question {
            client,
            method,
            claims,
        } = question;
        let mut path = format!("/explain?host={HOST}&port=80&path=/&method={method}");
        path += &format!("&identity={}", escaped(&client.identity()));
        if let Some(claims) = claims {
            path += &format!("&claims={}", escaped(&claims.to_string()));
        }
        let page = self.waypoint.pod().ask(&path)?;
        serde_json::from_str(&page).context("what the waypoint explains")
    }

    /// How many requests for this path the second version has been asked.
    pub(super) fn copied(&self, path: &str) -> usize {
        let log = fs::read_to_string(self.new.dir().join("access.log")).unwrap_or_default();
        let wanted = format!("GET {path}?");
        log.lines().filter(|line| line.contains(&wanted)).count()
    }

    /// How many requests there were by [`Room::ask`].
    pub(super) fn asked(&self) -> usize {
        self.asked
    }

    /// The waypoint's.
    pub(super) fn metrics(&self) -> Result<Metrics> {
        self.waypoint.pod().metrics()
    }

    /// One line: who says what.
    pub(super) fn fact(&self, who: &str, what: &str) {
        self.screen
            .row(&[(10, Tone::Faint, who), (0, Tone::Plain, what)]);
    }

    /// What the access log says of one request, in those of these fields that it has.
    pub(super) fn logged(&self, record: Option<&AccessRecord>, fields: &[&str]) -> Result<()> {
        let record = record.context("no such request stands in the access log")?;
        let said = fields.iter().filter_map(|field| {
            let value = record.field(field);
            let quote = if value.contains(' ') { "\"" } else { "" };
            (!value.is_empty()).then(|| format!("{field}={quote}{value}{quote}"))
        });
        self.fact("access log", &said.collect::<Vec<_>>().join(" "));
        Ok(())
    }
}
