//! The tour's second half: requests. An object is written into the configuration directory, real clients ask, and the
//! waypoint says why they got what they got: before, by `/explain`; after, in its access log.
//!
//! 9. a waypoint     10. canary      11. retry        12. fault       13. mirror
//! 14. JWT           15. rate limit  16. a policy     17. the counters
//!
//! `room` (who plays, how they are asked), `objects` (what is written), `issuer` (tokens), `answers` (what curl heard).

mod answers;
mod issuer;
mod objects;
mod room;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use lab::{AccessRecord, Lab, wait};
use serde_json::{Value, json};

use self::{
    answers::tally,
    issuer::Issuer,
    objects::{CANARY, DENY, FAULT, ISSUER, LIMIT, MIRROR, RETRY, TOKENS},
    room::{Question, Room},
};
use super::{
    cast::Cast,
    screen::{Screen, Tone},
};

/// (claim, how it was seen)
type Proof = (&'static str, String);

/// Shows all of it; what was proven comes back.
pub(super) fn show(lab: &Lab, cast: &Cast, screen: Screen) -> Result<Vec<Proof>> {
    screen.chapter(9, "Layer 7: namespace tea is put behind a waypoint");
    screen.step("written: Gateway tea/way of class istio-waypoint; label istio.io/use-waypoint: way on namespace tea");
    screen.step("service menu is two nginx: pod menu-v1, and pod menu-v2, which answers every /order with 503");
    let room = Room::open(lab, cast, screen).context("the waypoint")?;
    let mut tour = Requests {
        room,
        cast,
        screen,
        proven: Vec::new(),
    };
    tour.canary().context("the canary")?;
    tour.retry().context("retries")?;
    tour.fault().context("faults")?;
    tour.mirror().context("the mirror")?;
    tour.tokens().context("tokens")?;
    tour.limit().context("the rate limit")?;
    tour.policy().context("the AuthorizationPolicy")?;
    tour.counters().context("the waypoint's counters")?;
    Ok(tour.proven)
}

struct Requests<'a> {
    room: Room<'a>,
    cast: &'a Cast,
    screen: Screen,
    proven: Vec<Proof>,
}

impl<'a> Requests<'a> {
    fn canary(&mut self) -> Result<()> {
        self.screen
            .chapter(10, "Canary: one of ten requests goes to the new version");
        self.route(CANARY, "HTTPRoute/tea/canary")?;
        let asked = self.room.ask(&self.cast.mobile, 200, "/", &[])?;
        let seen = tally(asked.answers.iter().map(|answer| &answer.text));
        self.room.fact("mobile", &format!("200 requests: {seen}"));
        let new = asked
            .told
            .iter()
            .filter(|it| it.field("dst.workload") == "menu-v2");
        let told = new.clone().count();
        let answered = asked
            .answers
            .iter()
            .filter(|answer| answer.text == "v2")
            .count();
        ensure!(
            told == answered,
            "the access log knows of {told}, the client of {answered}"
        );
        // Of 200 draws with 1/10 each: less or more is further off than chance goes.
        ensure!((2..=45).contains(&answered), "{seen}");
        self.room.logged(
            new.clone().next(),
            &["route", "dst.workload", "dst.identity", "code"],
        )?;
        self.proven
            .push(("a canary gets its share of requests", seen));
        self.clear()
    }

    fn retry(&mut self) -> Result<()> {
        self.screen.chapter(
            11,
            "Retry: what the broken version refuses is tried again at the other",
        );
        let mobile = &self.cast.mobile;
        let before = self.room.ask(mobile, 40, "/order", &[])?;
        let before = tally(before.answers.iter().map(|answer| answer.status));
        self.room
            .fact("mobile", &format!("40 requests, before: {before}"));
        ensure!(
            before.contains("503"),
            "nothing failed that could be tried again"
        );
        self.route(RETRY, "HTTPRoute/tea/again")?;
        let asked = self.room.ask(mobile, 40, "/order", &[])?;
        let seen = tally(asked.answers.iter().map(|answer| answer.status));
        self.room
            .fact("mobile", &format!("40 requests, after: {seen}"));
        ensure!(seen == "40 × 200", "{seen}");
        let again = asked.told.iter().filter(|it| it.number("tries") == 2);
        let twice = again.clone().count();
        ensure!(twice > 0, "nothing was tried again");
        self.room.logged(
            again.clone().next(),
            &["route", "dst.workload", "code", "tries"],
        )?;
        let seen = format!("before: {before}; after: {seen}, {twice} of them tried twice");
        self.proven
            .push(("what fails is tried again elsewhere", seen));
        self.clear()
    }

    fn fault(&mut self) -> Result<()> {
        self.screen.chapter(
            12,
            "Fault: half are late by 50 ms, half are given up, on purpose",
        );
        self.route(FAULT, "VirtualService/tea/trouble")?;
        let asked = self.room.ask(&self.cast.mobile, 40, "/", &[])?;
        let seen = tally(asked.answers.iter().map(|answer| answer.status));
        let late = asked
            .answers
            .iter()
            .filter(|answer| answer.seconds >= 0.05)
            .count();
        self.room.fact(
            "mobile",
            &format!("40 requests: {seen}; {late} took 50 ms or longer"),
        );
        let flagged = |letters: &str| {
            let has = |it: &&AccessRecord| it.field("flags").split(',').any(|flag| flag == letters);
            asked.told.iter().filter(has).count()
        };
        let (aborted, delayed) = (flagged("FI"), flagged("DI"));
        let given_up = asked
            .answers
            .iter()
            .filter(|answer| answer.status == 418)
            .count();
        ensure!(
            aborted == given_up && aborted > 0,
            "{aborted} were given up, {given_up} say so"
        );
        ensure!(
            late >= delayed && delayed > 0,
            "{delayed} were delayed, {late} were late"
        );
        let both = asked.told.iter().find(|it| it.field("flags") == "DI,FI");
        self.room.logged(
            both.or(asked.told.first()),
            &["route", "code", "flags", "duration"],
        )?;
        let seen = format!("of 40: {aborted} given up (FI), {delayed} delayed (DI)");
        self.proven.push(("faults come as often as written", seen));
        self.clear()
    }

    fn mirror(&mut self) -> Result<()> {
        self.screen
            .chapter(13, "Mirror: v1 answers, v2 gets a copy of each request");
        self.route(MIRROR, "HTTPRoute/tea/aside")?;
        let asked = self.room.ask(&self.cast.mobile, 20, "/copied", &[])?;
        let seen = tally(asked.answers.iter().map(|answer| &answer.text));
        self.room.fact("mobile", &format!("20 requests: {seen}"));
        ensure!(seen == "20 × v1", "{seen}");
        let room = &self.room;
        wait::until("a copy of each request", Duration::from_secs(60), || {
            Ok(match room.copied("/copied") {
                20 => wait::Probe::Ready(()),
                other => wait::Probe::NotYet(format!("{other} copies")),
            })
        })?;
        room.fact(
            "menu-v2",
            "20 requests in nginx's own log; nobody waited for its answers",
        );
        room.logged(asked.told.first(), &["route", "dst.workload", "code"])?;
        self.proven.push((
            "a mirror gets a copy of each request",
            "20 answered by v1, 20 copies at v2".into(),
        ));
        self.clear()
    }

    fn tokens(&mut self) -> Result<()> {
        self.screen
            .chapter(14, "JWT: who has no token of the issuer gets no tea");
        let (issuer, stranger) = (Issuer::new()?, Issuer::new()?);
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = json!({ "iss": ISSUER, "sub": "anna", "exp": now + 300 });
        let shown = TOKENS.replace("KEYS", "{\"keys\": […]}");
        let text = TOKENS.replace("KEYS", &issuer.published().to_string());
        let question = Question {
            claims: Some(&claims),
            ..self.question()
        };
        self.room.apply(&shown, &text, &question, |explained| {
            let because = because(explained, "/authorization/because")?;
            let checked = explained["tokens_are_checked"] == true;
            let known = checked && because.contains("tea/guests-only");
            known.then(|| format!("with a token of {ISSUER}, {because}"))
        })?;
        let tokens = [
            ("no token", None, 403),
            ("a stranger's", Some(stranger.token(&claims)?), 401),
            ("the issuer's", Some(issuer.token(&claims)?), 200),
        ];
        let mut seen = Vec::new();
        for (whose, token, expected) in tokens {
            let header = token.map(|token| format!("authorization: Bearer {token}"));
            let more = header.as_deref().map(|header| ["-H", header]);
            let more = more.as_ref().map_or(&[][..], |more| more);
            let asked = self.room.ask(&self.cast.mobile, 5, "/", more)?;
            let all = tally(asked.answers.iter().map(|answer| match answer.status {
                200 => "200".to_owned(),
                status => format!("{status} {:?}", answer.text),
            }));
            self.room.fact("mobile", &format!("{whose}: {all}"));
            ensure!(
                asked.answers.iter().all(|it| it.status == expected),
                "{whose}: {all}"
            );
            if expected != 200 {
                self.room
                    .logged(asked.told.first(), &["code", "policy", "detail"])?;
            }
            seen.push(format!("{whose} {expected}"));
        }
        self.proven
            .push(("a token counts if its issuer signed it", seen.join(", ")));
        self.clear()
    }

    fn limit(&mut self) -> Result<()> {
        self.screen.chapter(
            15,
            "Rate limit: five requests an hour for each client, by its proven identity",
        );
        self.room
            .apply(LIMIT, LIMIT, &self.question(), |explained| {
                let limits = explained["limits"].as_array()?;
                let limit = limits.first()?.as_str()?;
                Some(format!("counts towards limit {limit}"))
            })?;
        for client in [&self.cast.mobile, &self.cast.kiosk] {
            let asked = self.room.ask(client, 8, "/", &[])?;
            let seen = tally(asked.answers.iter().map(|answer| answer.status));
            self.room
                .fact(client.name(), &format!("8 requests: {seen}"));
            ensure!(seen == "5 × 200, 3 × 429", "{}: {seen}", client.name());
            let refused = asked.told.iter().find(|it| it.field("flags") == "RL");
            self.room
                .logged(refused, &["src.workload", "code", "flags", "detail"])?;
        }
        self.proven.push((
            "a limit counts each client by itself",
            "of 8 requests each, mobile 5, kiosk 5".into(),
        ));
        self.clear()
    }

    fn policy(&mut self) -> Result<()> {
        self.screen.chapter(
            16,
            "A policy for requests: kiosk may look at the menu, and do nothing else",
        );
        let (mobile, kiosk) = (&self.cast.mobile, &self.cast.kiosk);
        let question = Question {
            client: kiosk,
            method: "POST",
            claims: None,
        };
        self.room.apply(DENY, DENY, &question, |explained| {
            let because = because(explained, "/because")?;
            (explained["answer"] == 403).then(|| format!("403, {because}"))
        })?;
        let mut named = String::new();
        for (client, method, expected) in [
            (kiosk, "GET", 200),
            (mobile, "POST", 200),
            (kiosk, "POST", 403),
        ] {
            let asked = self.room.ask(client, 10, "/", &["-X", method])?;
            let seen = tally(asked.answers.iter().map(|answer| answer.status));
            self.room
                .fact(client.name(), &format!("10 × {method}: {seen}"));
            ensure!(
                seen == format!("10 × {expected}"),
                "{method} of {}: {seen}",
                client.name()
            );
            if expected == 403 {
                let denied = asked
                    .told
                    .iter()
                    .find(|it| it.field("policy").contains("tea/kiosk-may-only-look"));
                self.room
                    .logged(denied, &["src.identity", "method", "code", "policy"])?;
                named = denied
                    .map(|it| it.field("policy").to_owned())
                    .unwrap_or_default();
            }
        }
        self.proven.push((
            "a denied request's record names its policy",
            format!("kiosk's POST: {named}"),
        ));
        self.clear()
    }

    /// Every request of these chapters, by client and status: none twice, none left out.
    fn counters(&mut self) -> Result<()> {
        self.screen.chapter(
            17,
            "Counted once more, by request (istio_requests_total of the waypoint, port 15020)",
        );
        let asked = self.room.asked();
        let labels = [("reporter", "waypoint")];
        let counted = wait::until(
            "all requests in the metrics",
            Duration::from_secs(60),
            || {
                let metrics = self.room.metrics()?;
                let mut counted = BTreeMap::<(String, String), f64>::new();
                for sample in metrics.select("istio_requests_total", &labels) {
                    let label = |name: &str| sample.labels.get(name).cloned().unwrap_or_default();
                    let client = label("source_workload");
                    if [&self.cast.mobile, &self.cast.kiosk]
                        .iter()
                        .any(|it| it.name() == client)
                    {
                        *counted.entry((client, label("response_code"))).or_default() +=
                            sample.value;
                    }
                }
                let all: f64 = counted.values().sum();
                Ok(if all as usize == asked {
                    wait::Probe::Ready(counted)
                } else {
                    wait::Probe::NotYet(format!("{asked} were asked, counted are {counted:?}"))
                })
            },
        )?;
        let row = |tone, cells: [&str; 3]| {
            let cells = [10, 6, 0].into_iter().zip(cells);
            let cells: Vec<_> = cells.map(|(width, text)| (width, tone, text)).collect();
            self.screen.row(&cells);
        };
        row(Tone::Faint, ["CLIENT", "CODE", "REQUESTS"]);
        for ((client, code), times) in &counted {
            row(Tone::Plain, [client, code, &format!("{times:.0}")]);
        }
        self.proven.push((
            "every request is counted, by client and status",
            format!("{asked} asked, {asked} in istio_requests_total"),
        ));
        Ok(())
    }

    /// Writes a route, and waits until it is what requests go by.
    fn route(&self, text: &str, name: &str) -> Result<()> {
        let rule = format!("rule {name}/");
        self.room.apply(text, text, &self.question(), |explained| {
            let because = because(explained, "/because")?;
            because.starts_with(&rule).then(|| because.to_owned())
        })
    }

    fn clear(&self) -> Result<()> {
        self.room.clear(&self.question())
    }

    /// As mobile asks.
    fn question(&self) -> Question<'a> {
        Question {
            client: &self.cast.mobile,
            method: "GET",
            claims: None,
        }
    }
}

fn because<'v>(explained: &'v Value, at: &str) -> Option<&'v str> {
    explained.pointer(at)?.as_str()
}
