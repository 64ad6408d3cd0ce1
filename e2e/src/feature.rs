//! Features as their users have them: what is written, what is asked then, and what must come back.
//!
//! A file of `features/` is YAML that `kubectl apply --namespace shop` takes as it is. Lines that begin with `#?` are an [`Ask`] each;
//! `#! HTTPRoute/a Accepted False` says what stands in a status, where not all is well; `#= istio_requests_total {response_code: '200'}` what
//! the waypoint has counted then. The tests on the cluster apply it (`tests/waypoint/features.rs`), those in the lab put it into the
//! configuration directory (`tests/standalone.rs`): one file, one meaning.
//!
//! 1. a file is read                                     ([`Feature::read`])
//! 2. a program in the client's pod asks what it is told (`app/ask.rs`), and says what it [`Heard`]
//! 3. what was heard, and what the waypoint logged of it, is judged  ([`Feature::judge`], pure)
//! 4. and so are its metrics ([`Feature::counted`], and at the end [`all_counted`], pure)
//! 5. and what the control plane says of the objects ([`Feature::accepted`], pure)

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use lab::{AccessRecord, Metrics};
use serde_json::Value;

mod ask;
mod judge;

pub use ask::{Ask, Heard};
pub use judge::glob;

/// The namespace of what says nothing else.
pub const SHOP: &str = "shop";
/// Another one.
pub const ELSEWHERE: &str = "elsewhere";
/// Where those are whom a waypoint asks.
pub const PROVIDERS: &str = "providers";
/// Name, port, port of the pods: of every Service that the features find.
pub const PORTS: [(&str, u16, u16); 6] = [
    ("http", 80, 8080),
    ("grpc", 90, 8080),
    ("guess", 99, 8080),
    ("tls", 443, 8443),
    ("tcp-echo", 9000, 9000),
    ("tcp-greet", 9001, 9001),
];
/// Namespace, name, app, version: of the servers.
pub const SERVERS: [[&str; 4]; 4] = [
    [SHOP, "web-v1", "web", "v1"],
    [SHOP, "web-v2", "web", "v2"],
    [ELSEWHERE, "far", "far", "v1"],
    [PROVIDERS, "judge", "judge", "v1"],
];
/// Namespace, name, and the label of the pods: of their Services.
pub const SERVICES: [(&str, &str, (&str, &str)); 5] = [
    (SHOP, "web", ("app", "web")),
    (SHOP, "web-v1", ("version", "v1")),
    (SHOP, "web-v2", ("version", "v2")),
    (ELSEWHERE, "far", ("app", "far")),
    (PROVIDERS, "judge", ("app", "judge")),
];
/// Namespace and name of the clients.
pub const CLIENTS: [[&str; 2]; 3] = [[SHOP, "phone"], [SHOP, "thief"], [ELSEWHERE, "guest"]];

/// One of them.
#[derive(Debug, Clone)]
pub struct Feature {
    /// Its file's name.
    pub name: String,
    /// What is applied, each with its namespace.
    pub objects: Vec<Value>,
    /// What is asked then.
    pub asks: Vec<Ask>,
    /// Kind and name, type, status: of conditions that are not simply True.
    said: Vec<[String; 3]>,
    /// Metrics with these labels.
    counts: Vec<(String, BTreeMap<String, String>)>,
}

impl Feature {
    /// All of a directory, by name.
    pub fn all(directory: &Path) -> Result<Vec<Self>> {
        let mut files = Vec::new();
        for entry in directory.read_dir().context("features")? {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == "yaml") {
                files.push(path);
            }
        }
        files.sort();
        ensure!(!files.is_empty(), "no features in {}", directory.display());
        let read = |path: &std::path::PathBuf| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let text = std::fs::read_to_string(path)?;
            Self::read(&name, &text).with_context(|| name.into_owned())
        };
        files.iter().map(read).collect()
    }

    /// One, from its file's text.
    pub fn read(name: &str, text: &str) -> Result<Self> {
        let asks = text.lines().filter_map(|line| line.strip_prefix("#?"));
        let asks = asks.map(|line| {
            serde_saphyr::from_str::<Ask>(line).with_context(|| format!("in its question {line}"))
        });
        let asks: Vec<Ask> = asks.collect::<Result<_>>()?;
        ensure!(!asks.is_empty(), "it asks nothing");
        let said = text.lines().filter_map(|line| line.strip_prefix("#!"));
        let said = said.map(|line| {
            let words: Vec<String> = line.split_whitespace().map(Into::into).collect();
            <[String; 3]>::try_from(words).map_err(|words| anyhow::anyhow!("not three: {words:?}"))
        });
        let said = said.collect::<Result<_>>()?;
        let counts = text.lines().filter_map(|line| line.strip_prefix("#="));
        let counts = counts.map(|line| {
            let (name, labels) = line.trim().split_once(' ').context("no labels")?;
            Ok((name.to_owned(), serde_saphyr::from_str(labels)?))
        });
        let counts = counts.collect::<Result<_>>()?;
        let mut objects = Vec::new();
        for document in text.split("\n---") {
            let written = document.lines().any(|line| {
                let line = line.trim();
                !line.is_empty() && !line.starts_with(['#', '-'])
            });
            if !written {
                continue;
            }
            let mut object: Value =
                serde_saphyr::from_str(document).with_context(|| format!("in\n{document}"))?;
            let at = &mut object["metadata"]["namespace"];
            if at.is_null() {
                *at = SHOP.into();
            }
            objects.push(object);
        }
        Ok(Self {
            name: name.into(),
            objects,
            asks,
            said,
            counts,
        })
    }

    /// All its objects as the text of one file.
    pub fn text(&self) -> String {
        let objects = self.objects.iter().map(Value::to_string);
        objects.collect::<Vec<_>>().join("\n---\n")
    }

    /// Who asks, each with its questions.
    pub fn clients(&self) -> Vec<(&str, Vec<&Ask>)> {
        let mut clients: Vec<(&str, Vec<&Ask>)> = Vec::new();
        for ask in &self.asks {
            match clients.last_mut() {
                Some((from, asks)) if *from == ask.from => asks.push(ask),
                _ => clients.push((&ask.from, vec![ask])),
            }
        }
        clients
    }

    /// Whether everything came back as it must, and stands in the log as it must.
    pub fn judge(&self, heard: &[Vec<Heard>], log: &[AccessRecord]) -> Result<()> {
        let (asked, told) = (self.asks.len(), heard.len());
        ensure!(asked == told, "{told} answers to {asked} questions");
        for (ask, heard) in self.asks.iter().zip(heard) {
            judge::judge(ask, heard, log).with_context(|| format!("asked {}", ask.shown()))?;
        }
        Ok(())
    }

    /// Whether it says something of metrics.
    pub fn counts(&self) -> bool {
        !self.counts.is_empty()
    }

    /// Whether the waypoint has counted what the file says.
    pub fn counted(&self, metrics: &Metrics) -> Result<()> {
        for (name, labels) in &self.counts {
            let pairs: Vec<_> = labels.iter().map(|(k, v)| (&**k, &**v)).collect();
            let count = metrics.sum(name, &pairs);
            ensure!(count > 0.0, "no {name} with {labels:?}");
        }
        Ok(())
    }

    /// Who has had which answer from the waypoint, as far as the file leaves no doubt.
    fn answers(&self) -> impl Iterator<Item = (&str, u16)> {
        let certain = self.asks.iter().filter(|ask| ask.is_certain());
        certain.map(|ask| (&*ask.from, ask.status))
    }

    /// Whether the status of one of its objects finds nothing wrong with it but what the file says.
    pub fn accepted(&self, object: &Value, status: &Value) -> Result<()> {
        let kind = object["kind"].as_str().unwrap_or_default();
        if !SPOKEN_OF.contains(&kind) {
            return Ok(());
        }
        let lists = [&status["parents"], &status["ancestors"]];
        let owners = lists.into_iter().filter_map(Value::as_array).flatten();
        let lists = owners.chain([status]).map(|owner| &owner["conditions"]);
        let lists = lists.filter_map(Value::as_array);
        let all: Vec<&Value> = lists.flatten().collect();
        let of = format!(
            "{kind}/{}",
            object["metadata"]["name"].as_str().unwrap_or_default()
        );
        ensure!(!all.is_empty(), "nothing is said of {of}");
        for condition in all {
            let r#type = condition["type"].as_str().unwrap_or_default();
            let mut said = self.said.iter();
            let said = said.find(|[whose, what, _]| *whose == of && what == r#type);
            let wanted = said.map_or("True", |[_, _, status]| status);
            let good = condition["status"] == wanted;
            ensure!(good, "of {of} is said: {condition}");
        }
        Ok(())
    }
}

/// Whether the waypoint has counted every answer that these were given, under its own name and with both ends known.
pub fn all_counted(proven: &[Feature], metrics: &Metrics) -> Result<()> {
    let answers: BTreeSet<(&str, u16)> = proven.iter().flat_map(Feature::answers).collect();
    for (from, status) in answers {
        let code = status.to_string();
        // A route may lead to any of them.
        let counts = SERVICES.map(|(_, name, _)| {
            let labels = [
                ("reporter", "waypoint"),
                ("source_workload", from),
                ("destination_service_name", name),
                ("response_code", &*code),
            ];
            metrics.sum("istio_requests_total", &labels)
        });
        let count: f64 = counts.iter().sum();
        ensure!(count > 0.0, "no {code} for {from} was counted");
    }
    Ok(())
}

/// Kinds whose status always says something.
const SPOKEN_OF: [&str; 12] = [
    "AuthorizationPolicy",
    "BackendTLSPolicy",
    "ExternalProcessor",
    "GRPCRoute",
    "HTTPRoute",
    "QuotaPolicy",
    "RateLimitPolicy",
    "RequestAuthentication",
    "TCPRoute",
    "TLSRoute",
    "Telemetry",
    "XBackendTrafficPolicy",
];

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# What it is.\n#? {url: 'http://web/a', status: 418, from: thief}\n#? {url: 'http://far/'}\n#! HTTPRoute/b ResolvedRefs False\nkind: A\nmetadata: {name: a}\n---\n# no more\n---\nkind: B\nmetadata: {name: b, namespace: elsewhere}\n";

    #[test]
    fn a_file_is_objects_and_questions() {
        let feature = Feature::read("a", TEXT).unwrap();
        let objects = feature.objects.iter();
        let places = objects.map(|it| &it["metadata"]["namespace"]);
        assert_eq!(places.collect::<Vec<_>>(), ["shop", "elsewhere"]);
        assert_eq!((feature.asks[0].status, feature.asks[1].status), (418, 200));
        let clients = feature.clients().into_iter().map(|(from, _)| from);
        assert_eq!(clients.collect::<Vec<_>>(), ["thief", "phone"]);
        assert!(Feature::read("a", "kind: A").is_err());
        assert!(Feature::read("a", "#? {uri: x}").is_err());
    }

    #[test]
    fn a_status_must_say_that_all_is_well() {
        let feature = Feature::read("a", TEXT).unwrap();
        let route = |name| serde_json::json!({"kind": "HTTPRoute", "metadata": {"name": name}});
        let said = |name, what: &str, value: &str| {
            let conditions = serde_json::json!([{"type": what, "status": value}]);
            let status = serde_json::json!({"parents": [{"conditions": conditions}]});
            feature.accepted(&route(name), &status).is_ok()
        };
        assert!(said("a", "Accepted", "True"));
        assert!(!said("a", "Accepted", "False"));
        assert!(said("b", "ResolvedRefs", "False"));
        assert!(!said("b", "ResolvedRefs", "True"));
        assert!(!said("b", "Accepted", "False"));
        assert!(feature.accepted(&route("a"), &Value::Null).is_err());
    }

    #[test]
    fn what_a_file_counts_must_have_been_counted() {
        let text = "#? {url: 'http://web/'}\n#= requests_total {code: '200', by: a}\n";
        let feature = Feature::read("a", text).unwrap();
        let counted = |page: &str| feature.counted(&Metrics::parse(page)).is_ok();
        assert!(feature.counts());
        assert!(counted(
            "requests_total{code=\"200\",by=\"a\",more=\"x\"} 1"
        ));
        assert!(!counted("requests_total{code=\"200\",by=\"b\"} 1"));
        assert!(!counted("requests_total{code=\"200\",by=\"a\"} 0"));
        assert!(!Feature::read("a", TEXT).unwrap().counts());
    }

    #[test]
    fn every_answer_must_have_been_counted_for_who_had_it() {
        let text = "#? {url: 'http://web/', from: thief, status: 403}\n#? {url: 'h2://web:90/'}\n#? {url: 'http://web/', counts: {a: [1, 2]}, status: 500}\n\
                    #? {url: 'http://web/', around: true, status: 401}\n#? {url: 'http://judge.providers/', status: 402}\n#? {url: 'tcp://web:9000', status: 404}\n";
        let proven = [Feature::read("a", text).unwrap()];
        let line = |from: &str, to: &str, code: u16| {
            let reporter = r#"istio_requests_total{reporter="waypoint""#;
            format!(
                "{reporter},source_workload=\"{from}\",destination_service_name=\"{to}\",response_code=\"{code}\"}} 1\n"
            )
        };
        let counted = |page: &str| all_counted(&proven, &Metrics::parse(page)).is_ok();
        let denied = line("thief", "web", 403);
        assert!(counted(&(denied.clone() + &line("phone", "web-v1", 200))));
        assert!(!counted(&denied));
        assert!(!counted(&(denied.clone() + &line("thief", "web", 200))));
        assert!(!counted(&(denied + &line("phone", "unknown", 200))));
        assert!(all_counted(&[], &Metrics::parse("")).is_ok());
    }

    #[test]
    fn every_file_can_be_read() {
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("features");
        assert!(Feature::all(&files).unwrap().len() > 20);
    }
}
