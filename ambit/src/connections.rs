//! `ambit connections`: what is open now, at every node, and in pods that bring their own proxy.

use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;

use crate::Outcome;
use crate::cluster::Access;
use crate::live::{Proxy, Reach, encoded};
use crate::output::{self, Format, columns, say};
use crate::text::{amount, span};

/// Flags of `connections`.
#[derive(Debug, Args)]
pub(crate) struct Connections {
    /// Of pods of this namespace; of all if not said.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Of this pod, or of pods of this owner (a Deployment, say).
    #[arg(long)]
    workload: Option<String>,
    /// With this pod, owner or address at the other end.
    #[arg(long)]
    peer: Option<String>,
    /// To this service: its name or its host.
    #[arg(long)]
    service: Option<String>,
    /// Only connections, or only flows of datagrams.
    #[arg(long, value_enum)]
    protocol: Option<Spoken>,
    /// Only those that came to pods, or only those that pods opened.
    #[arg(long, value_enum)]
    direction: Option<Direction>,
    /// No more than so many of each proxy.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// How to print them.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Direction {
    Inbound,
    Outbound,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Spoken {
    Tcp,
    Udp,
}

/// What was found.
#[derive(Debug, Default, Serialize)]
struct Found {
    connections: Vec<Value>,
    /// Who did not answer, and why.
    unreached: Vec<String>,
    /// Whom nobody but itself can ask: machines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_asked: Vec<String>,
}

impl Connections {
    pub(crate) async fn run(&self, access: &Access) -> anyhow::Result<Outcome> {
        let mut proxies = self.reach.proxies(access).await?;
        let left = proxies.look_further(self.namespace.as_deref()).await?;
        let mut found = Found {
            unreached: left.missed,
            not_asked: left.machines,
            ..Found::default()
        };
        for (proxy, answer) in proxies.all(&self.path()).await {
            match answer {
                Ok(text) => found
                    .connections
                    .extend(read(&text).filter(|it| is_its_own(proxy, it))),
                Err(why) => found.unreached.push(format!("{}: {why}", proxy.name)),
            }
        }
        for line in &found.unreached {
            say(&format!("! {line}"));
        }
        if let Some(line) = not_asked(&found.not_asked, "connections") {
            say(&line);
        }
        if found.connections.is_empty() && self.output == Format::Table {
            say("no open connections");
        }
        output::print(self.output, &found, table)?;
        Ok(match found.unreached.is_empty() {
            true => Outcome::Well,
            false => Outcome::Wrong,
        })
    }

    fn path(&self) -> String {
        let direction = self.direction.map(|direction| match direction {
            Direction::Inbound => "inbound".to_owned(),
            Direction::Outbound => "outbound".to_owned(),
        });
        let protocol = self.protocol.map(|protocol| match protocol {
            Spoken::Tcp => "tcp".to_owned(),
            Spoken::Udp => "udp".to_owned(),
        });
        let said = [
            ("namespace", self.namespace.clone()),
            ("workload", self.workload.clone()),
            ("peer", self.peer.clone()),
            ("service", self.service.clone()),
            ("direction", direction),
            ("protocol", protocol),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ];
        let said = said
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        let query: Vec<_> = said
            .map(|(key, value)| format!("{key}={}", encoded(&value)))
            .collect();
        match query.is_empty() {
            true => "/connections".to_owned(),
            false => format!("/connections?{}", query.join("&")),
        }
    }
}

/// What to do about machines, whose proxies listen where no API server leads.
pub(crate) fn not_asked(machines: &[String], command: &str) -> Option<String> {
    let first = machines.first()?;
    let others = match machines.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "not asked: machine {first}{others}; on a machine: ambit {command} --proxy 127.0.0.1:15000"
    ))
}

/// Whether the connection is of a pod that this proxy may speak of.
fn is_its_own(proxy: &Proxy, connection: &Value) -> bool {
    let end = match connection["direction"].as_str() {
        Some("inbound") => &connection["destination"],
        _ => &connection["source"],
    };
    let text = |key: &str| end[key].as_str().unwrap_or_default();
    proxy.may_speak_of(text("namespace"), Some(text("pod")))
}

/// One document a line; what was cut off at the end is not one.
fn read(text: &str) -> impl Iterator<Item = Value> {
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
}

fn table(found: &Found) -> String {
    if found.connections.is_empty() {
        return String::new();
    }
    let head = [
        "DIRECTION",
        "PROTOCOL",
        "SOURCE",
        "DESTINATION",
        "SERVICE",
        "WAYPOINT",
        "CARRIED",
        "POLICY",
        "SENT",
        "RECEIVED",
        "AGE",
    ];
    columns(&head, found.connections.iter().map(row))
}

fn row(connection: &Value) -> Vec<String> {
    let text = |key: &str| connection[key].as_str().unwrap_or("-").to_owned();
    let end = |key: &str| {
        let end = &connection[key];
        let address = end["address"].as_str().unwrap_or("?");
        match (end["namespace"].as_str(), end["pod"].as_str()) {
            (Some(namespace), Some(pod)) => format!("{namespace}/{pod} ({address})"),
            _ => address.to_owned(),
        }
    };
    let number = |key: &str| connection[key].as_u64().unwrap_or_default();
    vec![
        text("direction"),
        text("protocol"),
        end("source"),
        end("destination"),
        text("service"),
        text("waypoint"),
        text("carried"),
        text("policy"),
        amount(number("bytesSent") as f64),
        amount(number("bytesReceived") as f64),
        span(number("ageMs")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::tests::proxy;
    use clap::Parser;
    use serde_json::json;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        connections: Connections,
    }

    #[test]
    fn what_is_wanted_goes_to_the_proxies() {
        let path = |line: &[&str]| Line::parse_from(line).connections.path();
        assert_eq!(path(&["x"]), "/connections");
        assert_eq!(
            path(&[
                "x",
                "-n",
                "shop",
                "--peer",
                "a&b",
                "--direction",
                "inbound",
                "--protocol",
                "udp",
                "--limit",
                "5"
            ]),
            "/connections?namespace=shop&peer=a%26b&direction=inbound&protocol=udp&limit=5"
        );
    }

    #[test]
    fn what_a_pods_own_proxy_says_of_other_pods_is_left_out() {
        let between = |direction: &str, source: &str, destination: &str| {
            json!({ "direction": direction, "source": { "namespace": "shop", "pod": source },
                "destination": { "namespace": "shop", "pod": destination } })
        };
        let own = proxy(Some(("shop", "own")));
        for (direction, source, destination, counts) in [
            ("inbound", "web", "own", true),
            ("outbound", "own", "web", true),
            ("inbound", "own", "web", false),
            ("outbound", "web", "own", false),
        ] {
            let said = between(direction, source, destination);
            assert_eq!(is_its_own(&own, &said), counts, "{said}");
            assert!(
                is_its_own(&proxy(None), &said),
                "a node's stands for all of its pods"
            );
        }
        let nameless =
            json!({ "direction": "inbound", "destination": { "address": "10.0.0.1:80" } });
        assert!(!is_its_own(&own, &nameless));
    }

    #[test]
    fn machines_are_told_of_with_what_to_run_there() {
        let names = |all: &[&str]| all.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        assert_eq!(not_asked(&[], "top"), None);
        let one = not_asked(&names(&["shop/db-1"]), "top").unwrap();
        assert_eq!(
            one,
            "not asked: machine shop/db-1; on a machine: ambit top --proxy 127.0.0.1:15000"
        );
        let many = not_asked(&names(&["shop/db-1", "shop/db-2", "shop/db-3"]), "top").unwrap();
        assert!(many.contains("shop/db-1 and 2 more;"), "{many}");
    }

    #[test]
    fn a_connection_is_one_line_with_both_ends() {
        let lines = r#"{"direction":"inbound","protocol":"udp","source":{"address":"10.0.0.1:4000","namespace":"shop","pod":"client"},"destination":{"address":"10.0.0.2:80","namespace":"shop","pod":"web"},"carried":"tunnel","policy":"shop/let","bytesSent":10,"bytesReceived":2048,"ageMs":61000}
{"direction":"outbound","source":{"address":"10.0.0.1:4001"},"destination":{"address":"192.0.2.1:443"},"carried":"plain","bytesSent":0,"bytesReceived":0,"ageMs":5}
{"cut"#;
        let found = Found {
            connections: read(lines).collect(),
            ..Found::default()
        };
        let shown = table(&found);
        let rows: Vec<Vec<&str>> = shown
            .lines()
            .map(|line| {
                line.split("  ")
                    .filter(|it| !it.is_empty())
                    .map(str::trim)
                    .collect()
            })
            .collect();
        assert_eq!(rows.len(), 3, "{shown}");
        assert_eq!(
            rows[1],
            [
                "inbound",
                "udp",
                "shop/client (10.0.0.1:4000)",
                "shop/web (10.0.0.2:80)",
                "-",
                "-",
                "tunnel",
                "shop/let",
                "10 B",
                "2.0 KiB",
                "1m1s"
            ]
        );
        // One of an older ztunnel, which does not say it.
        let other = ["outbound", "-", "10.0.0.1:4001", "192.0.2.1:443"];
        assert_eq!(rows[2][..4], other);
    }
}
