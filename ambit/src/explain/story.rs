//! Pure: what the proxies' answers come to.

use serde::Serialize;
use serde_json::Value;

use super::ask::{Asked, Heard, refuses};

/// What becomes of the connection.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Told<'a> {
    pub(super) verdict: Verdict,
    /// Where that is decided: `source`, `waypoint`, `destination`.
    pub(super) decided_at: &'static str,
    pub(super) because: String,
    /// As the access log and the metrics would say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) flag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<String>,
    /// What would have to change for the opposite.
    pub(super) to_change: Vec<String>,
    /// Step by step.
    pub(super) path: Vec<String>,
    /// What is not known, and why.
    pub(super) not_known: Vec<String>,
    /// Every answer, as it came.
    pub(super) answers: &'a Asked,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Allowed,
    Refused,
    Unknown,
}

pub(super) fn told(asked: &Asked) -> Told<'_> {
    let mut told = Told {
        verdict: Verdict::Unknown,
        decided_at: "source",
        because: String::new(),
        flag: None,
        hint: None,
        to_change: Vec::new(),
        path: Vec::new(),
        not_known: asked.unreached.clone(),
        answers: asked,
    };
    if let Some(heard) = &asked.leaving {
        told.leave(heard, &asked.kept_out);
    }
    if told.verdict == Verdict::Unknown
        && let Some(heard) = &asked.waypoint
    {
        told.pass(heard);
    }
    if told.verdict == Verdict::Unknown {
        match &asked.arriving {
            Some(heard) => told.arrive(heard),
            None => told.end(asked),
        }
    }
    told
}

impl Told<'_> {
    fn leave(&mut self, heard: &Heard, kept_out: &[String]) {
        let (left, decision) = (&heard.answer, &heard.answer["decision"]);
        let (who, to) = (&heard.proxy, text(&decision["to"]));
        let next = text(&decision["workload"]["uid"]);
        let because = text(&decision["because"]);
        self.path
            .push(match decision["goes"].as_str().unwrap_or_default() {
                "tunnel" => format!(
                    "{who}: tunnel to {next} ({to}), asking for {}: {because}",
                    text(&decision["asksFor"])
                ),
                "local" => format!("{who}: joined in process to {next} ({to}): {because}"),
                "plain" if self.answers.udp => format!("{who}: plain UDP to {to}: {because}"),
                "plain" => format!("{who}: plain TCP to {to}: {because}"),
                "untouched" => format!(
                    "{because}; it goes to {}",
                    if to.is_empty() {
                        "where it is addressed to".into()
                    } else {
                        to
                    }
                ),
                _ => format!("{who}: refused: {because}"),
            });
        let eligible = left["endpoints"]["eligible"].as_u64().unwrap_or_default();
        if eligible > 1 && decision["waypoint"].is_null() {
            let what = if self.answers.udp {
                "flow"
            } else {
                "connection"
            };
            self.path.push(format!(
                "  one of {eligible} endpoints; each {what} draws anew"
            ));
        }
        if left["captured"] == true && !heard.decides {
            let why = self.asked_there(&left["workload"]);
            let why = why.unwrap_or_else(|| format!("{who} does not serve the caller's pod"));
            self.not_known.push(format!(
                "{why}: what is said of its end is what the control plane tells everybody"
            ));
        }
        for what in kept_out {
            self.not_known.push(format!(
                "{what}: what it names does not pass ztunnel, and arrives in plain text"
            ));
        }
        if decision["goes"] == "refused" {
            self.refuse("source", decision);
        }
    }

    fn refuse(&mut self, at: &'static str, why: &Value) {
        self.verdict = Verdict::Refused;
        self.decided_at = at;
        self.because = text(&why["because"]);
        self.flag = why["flag"].as_str().map(str::to_owned);
        self.hint = why["hint"].as_str().map(str::to_owned);
        self.to_change = list(&why["toChange"]);
    }

    fn pass(&mut self, heard: &Heard) {
        let answer = &heard.answer;
        let because = text(&answer["because"]);
        let status = match &answer["answer"] {
            Value::String(words) => words.clone(),
            other => other.to_string(),
        };
        self.path.push(format!(
            "{}: the answer is {status}: {because}",
            heard.proxy
        ));
        if !refuses(answer) {
            return;
        }
        self.verdict = Verdict::Refused;
        self.decided_at = "waypoint";
        self.because = format!("the waypoint answers {status}: {because}");
        self.to_change = match answer["answer"].as_u64() {
            Some(403) => vec!["the waypoint's AuthorizationPolicy that decides, or the request (--method, --path, --header): its conditions stand in -o json".to_owned()],
            _ => vec!["the routes and ports of the Service at its waypoint".to_owned()],
        };
    }

    fn arrive(&mut self, heard: &Heard) {
        let there = &heard.answer;
        let because = text(&there["because"]);
        let verdict = text(&there["verdict"]);
        let how = match there["sourceIdentity"].as_str() {
            Some(identity) => format!("as {identity}"),
            None => "in plain text".to_owned(),
        };
        let pod = text(&there["workload"]["uid"]);
        let at = text(&there["address"]);
        let outcome = match &*verdict {
            "unguarded" => "passes".to_owned(),
            other => other.to_owned(),
        };
        self.path.push(format!(
            "{}: arrives {how} at {pod} ({at}): {outcome}: {because}",
            heard.proxy
        ));
        if !heard.decides && verdict != "unguarded" {
            let why = self.asked_there(&there["workload"]);
            let why = why.unwrap_or_else(|| format!("the ztunnel before {pod} was not heard"));
            self.not_known.push(format!(
                "{why}: what is said of its end is what {} knows",
                heard.proxy
            ));
        }
        self.decided_at = "destination";
        match &*verdict {
            "allowed" | "unguarded" => {
                self.verdict = Verdict::Allowed;
                self.because = because;
                self.to_change = list(&there["toChange"]);
            }
            "denied" | "misdirected" => self.refuse("destination", there),
            _ => self
                .not_known
                .push("what the destination's end does".to_owned()),
        }
        self.not_known
            .push(format!("whether the app listens on {at}"));
    }

    /// Of a machine, whose proxy only the machine itself can ask: what to run there.
    fn asked_there(&self, workload: &Value) -> Option<String> {
        let uid = workload["uid"].as_str()?;
        let (_, machine) = uid.split_once("/WorkloadEntry/")?;
        let Asked {
            source,
            destination,
            udp,
            ..
        } = self.answers;
        let udp = if *udp { " --udp" } else { "" };
        Some(format!(
            "the proxy of machine {machine} is asked on that machine alone (ambit explain{udp} --proxy 127.0.0.1:15000 {source} {destination})"
        ))
    }

    /// It goes where no ztunnel is asked.
    fn end(&mut self, asked: &Asked) {
        let Some(heard) = &asked.leaving else { return };
        let decision = &heard.answer["decision"];
        let through_waypoint = !decision["waypoint"].is_null();
        if through_waypoint && asked.waypoint.is_none() {
            self.because = "what its waypoint does is not known".to_owned();
            return;
        }
        if !decision["beyond"].is_null() {
            self.because =
                "what is behind the gateway of the other network is not known here".to_owned();
            self.not_known
                .push("policies in the other network: ask there".to_owned());
            self.not_known.push(
                "whether the Service is GLOBAL there (label istio.io/global=true): its gateway leads to no other"
                    .to_owned(),
            );
            return;
        }
        if through_waypoint && asked.unreached.is_empty() {
            self.because = "the waypoint knows of no endpoint that could take it".to_owned();
            self.decided_at = "waypoint";
            self.verdict = Verdict::Refused;
            self.to_change = vec!["readiness of the Service's pods".to_owned()];
            return;
        }
        if decision["workload"].is_null() && decision["goes"] == "plain"
            || decision["goes"] == "untouched"
        {
            self.verdict = Verdict::Allowed;
            self.because = text(&decision["because"]);
            self.not_known
                .push("whether anybody answers there".to_owned());
            return;
        }
        self.because = "the destination's end could not be asked".to_owned();
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::ask::{Called, Next};
    use super::*;

    fn heard(proxy: &str, answer: Value) -> Option<Heard> {
        Some(Heard {
            proxy: proxy.to_owned(),
            decides: answer["here"] == true || answer["answer"] != Value::Null,
            answer,
        })
    }

    fn left(decision: Value) -> Option<Heard> {
        let caller = json!({ "uid": "c//Pod/shop/client", "addresses": ["10.0.0.1"], "identity": "spiffe://c" });
        heard(
            "a",
            json!({ "here": true, "captured": true, "workload": caller, "destination": "10.1.0.1:80",
            "service": "shop/web.shop", "endpoints": { "eligible": 2, "shown": [
                { "uid": "u", "node": "n", "eligible": false, "address": "10.0.0.9", "port": 8080 },
                { "uid": "v", "node": "m", "eligible": true, "address": "10.0.0.2", "port": 8080 }] },
            "decision": decision }),
        )
    }

    fn tunnel() -> Value {
        json!({ "goes": "tunnel", "to": "10.0.0.2:15008", "asksFor": "10.0.0.2:8080", "because": "in the mesh",
            "workload": { "uid": "v", "node": "m", "addresses": ["10.0.0.2"] } })
    }

    fn there(verdict: &str) -> Value {
        json!({ "here": true, "verdict": verdict, "because": "so it is", "address": "10.0.0.2:8080",
            "workload": { "uid": "v" }, "flag": "DENY", "hint": "look", "toChange": ["this"] })
    }

    #[test]
    fn whoever_refuses_first_decides() {
        let refused = json!({ "goes": "refused", "because": "no", "flag": "EGRESS", "hint": "h", "toChange": ["c"] });
        let mut way = tunnel();
        way["waypoint"] = json!("shop/way");
        let denied = json!({ "answer": 403, "because": "denied by shop/no" });
        let passed = json!({ "answer": "the app's", "because": "no rules" });
        for (decision, waypoint, arriving, verdict, at) in [
            (refused, None, None, Verdict::Refused, "source"),
            (
                tunnel(),
                None,
                Some(there("allowed")),
                Verdict::Allowed,
                "destination",
            ),
            (
                tunnel(),
                None,
                Some(there("denied")),
                Verdict::Refused,
                "destination",
            ),
            (
                tunnel(),
                None,
                Some(there("unguarded")),
                Verdict::Allowed,
                "destination",
            ),
            (tunnel(), None, None, Verdict::Unknown, "source"),
            (
                way.clone(),
                Some(denied),
                None,
                Verdict::Refused,
                "waypoint",
            ),
            (
                way.clone(),
                Some(passed.clone()),
                Some(there("denied")),
                Verdict::Refused,
                "destination",
            ),
            (
                way.clone(),
                Some(passed),
                Some(there("allowed")),
                Verdict::Allowed,
                "destination",
            ),
            (way, None, None, Verdict::Unknown, "source"),
            (
                json!({ "goes": "plain", "to": "192.0.2.1:443" }),
                None,
                None,
                Verdict::Allowed,
                "source",
            ),
        ] {
            let asked = Asked {
                leaving: left(decision),
                waypoint: waypoint.and_then(|it| heard("w", it)),
                arriving: arriving.and_then(|it| heard("b", it)),
                ..Asked::default()
            };
            let told = told(&asked);
            assert_eq!((told.verdict, told.decided_at), (verdict, at), "{told:#?}");
            assert!(!told.because.is_empty() || at == "source", "{told:#?}");
        }
    }

    #[test]
    fn the_next_question_goes_to_the_pod_that_the_last_answer_names() {
        let left = left(tunnel()).unwrap();
        let pod = |source: &str, by_waypoint| {
            Next::Pod(Called {
                uid: "v".into(),
                source: source.into(),
                by_waypoint,
                at: "10.0.0.2:8080".into(),
                node: "m".into(),
            })
        };
        assert_eq!(
            Next::of(&left.answer, "shop/client"),
            Some(pod("10.0.0.1", false))
        );
        let mut way = left.answer.clone();
        way["decision"]["waypoint"] = json!("shop/way");
        way["decision"]["workload"] =
            json!({ "namespace": "shop", "name": "way-0", "addresses": ["10.0.0.7"] });
        let Some(Next::Waypoint(through)) = Next::of(&way, "shop/client") else {
            panic!("through the waypoint")
        };
        // The waypoint calls, and an endpoint that can be chosen is called.
        assert_eq!(
            through.behind(None, Some(&left)),
            Some(pod("10.0.0.7", true))
        );
        let refused = heard("w", json!({ "answer": 403 })).unwrap();
        assert_eq!(through.behind(Some(&refused), Some(&left)), None);
    }

    #[test]
    fn what_could_not_be_asked_is_said() {
        let mut elsewhere = there("allowed");
        elsewhere["here"] = json!(false);
        let asked = Asked {
            leaving: left(tunnel()),
            arriving: heard("a", elsewhere),
            unreached: vec!["b: no answer".into()],
            ..Asked::default()
        };
        let told = told(&asked);
        assert_eq!(told.verdict, Verdict::Allowed);
        assert!(told.not_known[0].contains("no answer"));
        assert!(
            told.not_known.iter().any(|it| it.contains("was not heard")),
            "{told:#?}"
        );
    }

    #[test]
    fn of_a_machine_it_is_said_what_to_run_there() {
        let machine = json!({ "uid": "c/networking.istio.io/WorkloadEntry/shop/db-1" });
        let mut leaving = left(tunnel()).unwrap();
        leaving.decides = false;
        leaving.answer["workload"] = machine.clone();
        let mut there = there("allowed");
        there["here"] = json!(false);
        there["workload"] = machine;
        let asked = Asked {
            source: "shop/db-1".into(),
            destination: "db:5432".into(),
            leaving: Some(leaving),
            arriving: heard("a", there),
            ..Asked::default()
        };
        let told = told(&asked);
        let command = "(ambit explain --proxy 127.0.0.1:15000 shop/db-1 db:5432)";
        let named = told
            .not_known
            .iter()
            .filter(|it| it.starts_with("the proxy of machine shop/db-1") && it.contains(command));
        assert_eq!(named.count(), 2, "{told:#?}");
    }
}
