//! `ambit top`: which workloads talk, how much, and whose connections are refused. Two looks at the counters of every
//! ztunnel, those that pods bring themselves too, and the difference.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::cluster::Access;
use crate::connections::not_asked;
use crate::live::{Proxies, Reach};
use crate::output::{self, Format, columns, say};
use crate::text::amount;

/// Flags of `top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Workloads of this namespace; of all if not said.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
    /// Print once and end, as is done where nobody looks (no terminal) and for machines.
    #[arg(long)]
    once: bool,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    reach: Reach,
}

/// What a ztunnel says.
#[derive(Debug, Deserialize)]
struct Page {
    workloads: Vec<Counted>,
}

/// The counters of one workload at one ztunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
struct Counted {
    namespace: String,
    workload: String,
    inbound: u64,
    outbound: u64,
    /// An older ztunnel does not tell them apart.
    #[serde(default)]
    flows: u64,
    opened: u64,
    refused: u64,
    sent: u64,
    received: u64,
}

/// By ztunnel, namespace and workload.
type Look = BTreeMap<(String, String, String), Counted>;

/// What one workload does.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    namespace: String,
    workload: String,
    /// Connections that came to it and are open.
    inbound: u64,
    /// Connections that it opened and are open.
    outbound: u64,
    /// Those of both that are flows of UDP.
    flows: u64,
    new_per_second: f64,
    refused_per_second: f64,
    sent_per_second: f64,
    received_per_second: f64,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Found {
    workloads: Vec<Row>,
    /// Who did not answer, and why.
    unreached: Vec<String>,
    /// Whom nobody but itself can ask: machines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_asked: Vec<String>,
}

impl Top {
    pub(crate) async fn run(&self, access: &Access) -> anyhow::Result<Outcome> {
        let mut proxies = self.reach.proxies(access).await?;
        // Once, as nodes are: whoever comes later is seen by the next `top`.
        let left = proxies.look_further(self.namespace.as_deref()).await?;
        let watched = std::io::stdout().is_terminal();
        let once = self.once || !watched || self.output != Format::Table;
        let (mut before, mut at) = (look(&proxies).await.0, Instant::now());
        loop {
            tokio::time::sleep(Duration::from_secs(self.every)).await;
            let (now, silent) = look(&proxies).await;
            let seconds = at.elapsed().as_secs_f64();
            at = Instant::now();
            let mut workloads = rows(&before, &now, seconds);
            if let Some(namespace) = &self.namespace {
                workloads.retain(|row| row.namespace == *namespace);
            }
            let found = Found {
                workloads,
                unreached: left.missed.iter().cloned().chain(silent).collect(),
                not_asked: left.machines.clone(),
            };
            before = now;
            if !once {
                // Home, and nothing below.
                output::text("\u{1b}[H\u{1b}[2J")?;
            }
            for line in &found.unreached {
                say(&format!("! {line}"));
            }
            if let Some(line) = not_asked(&found.not_asked, "top") {
                say(&line);
            }
            output::print(self.output, &found, |found| table(&found.workloads))?;
            if once {
                return Ok(match found.unreached.is_empty() {
                    true => Outcome::Well,
                    false => Outcome::Wrong,
                });
            }
        }
    }
}

async fn look(proxies: &Proxies) -> (Look, Vec<String>) {
    let (mut look, mut unreached) = (Look::new(), Vec::new());
    for (proxy, answer) in proxies.all("/traffic").await {
        let page = answer.map_err(|why| why.to_string()).and_then(|text| {
            serde_json::from_str::<Page>(&text).map_err(|error| error.to_string())
        });
        match page {
            Ok(page) => {
                let its_own = page
                    .workloads
                    .into_iter()
                    .filter(|it| proxy.may_speak_of(&it.namespace, None));
                look.extend(its_own.map(|it| {
                    let key = (
                        proxy.name.clone(),
                        it.namespace.clone(),
                        it.workload.clone(),
                    );
                    (key, it)
                }));
            }
            Err(why) => unreached.push(format!("{}: {why}", proxy.name)),
        }
    }
    (look, unreached)
}

/// What each workload did in between, the busiest first.
fn rows(before: &Look, now: &Look, seconds: f64) -> Vec<Row> {
    let mut sums: BTreeMap<(&str, &str), Row> = BTreeMap::new();
    let none = Counted::default();
    for (key, now) in now {
        // Of a ztunnel that did not answer before there is nothing to compare with: no rate rather than a wrong one.
        let answered = before.keys().any(|(proxy, ..)| *proxy == key.0);
        let before = before
            .get(key)
            .unwrap_or(if answered { &none } else { now });
        let per_second = |count: fn(&Counted) -> u64| {
            let (now, before) = (count(now), count(before));
            // One that has begun anew counts from 0.
            let more = now.checked_sub(before).unwrap_or(now);
            more as f64 / seconds.max(f64::EPSILON)
        };
        let row = sums.entry((&now.namespace, &now.workload)).or_default();
        row.inbound += now.inbound;
        row.outbound += now.outbound;
        row.flows += now.flows;
        row.new_per_second += per_second(|it| it.opened);
        row.refused_per_second += per_second(|it| it.refused);
        row.sent_per_second += per_second(|it| it.sent);
        row.received_per_second += per_second(|it| it.received);
    }
    let mut rows: Vec<Row> = sums
        .into_iter()
        .map(|((namespace, workload), row)| Row {
            namespace: namespace.to_owned(),
            workload: workload.to_owned(),
            ..row
        })
        .collect();
    let busy = |row: &Row| {
        (
            row.refused_per_second,
            row.sent_per_second + row.received_per_second,
            row.new_per_second,
            (row.inbound + row.outbound) as f64,
        )
    };
    rows.sort_by(|a, b| {
        let order = busy(b).partial_cmp(&busy(a));
        order.unwrap_or(std::cmp::Ordering::Equal)
    });
    rows
}

fn table(rows: &[Row]) -> String {
    let head = [
        "NAMESPACE",
        "WORKLOAD",
        "OPEN IN",
        "OPEN OUT",
        "OF UDP",
        "NEW/S",
        "REFUSED/S",
        "SENT/S",
        "RECEIVED/S",
    ];
    let cells = |row: &Row| {
        vec![
            row.namespace.clone(),
            row.workload.clone(),
            row.inbound.to_string(),
            row.outbound.to_string(),
            row.flows.to_string(),
            format!("{:.1}", row.new_per_second),
            format!("{:.1}", row.refused_per_second),
            amount(row.sent_per_second),
            amount(row.received_per_second),
        ]
    };
    columns(&head, rows.iter().map(cells))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(workload: &str, opened: u64, refused: u64, sent: u64) -> Counted {
        Counted {
            namespace: "shop".into(),
            workload: workload.into(),
            inbound: 1,
            opened,
            refused,
            sent,
            ..Counted::default()
        }
    }

    fn look(of: &[(&str, Counted)]) -> Look {
        let key = |proxy: &str, it: &Counted| {
            (proxy.to_owned(), it.namespace.clone(), it.workload.clone())
        };
        of.iter()
            .map(|(proxy, it)| (key(proxy, it), it.clone()))
            .collect()
    }

    #[test]
    fn rates_are_summed_over_nodes_and_refusals_come_first() {
        let before = look(&[
            ("a", counted("web", 10, 0, 1000)),
            ("b", counted("web", 100, 0, 0)),
            ("a", counted("client", 5, 0, 0)),
        ]);
        let now = look(&[
            ("a", counted("web", 20, 0, 3000)),
            ("b", counted("web", 110, 0, 0)),
            ("a", counted("client", 5, 4, 0)),
        ]);
        let rows = rows(&before, &now, 2.0);
        assert_eq!(
            (&*rows[0].workload, rows[0].refused_per_second),
            ("client", 2.0)
        );
        assert_eq!(
            (
                rows[1].new_per_second,
                rows[1].sent_per_second,
                rows[1].inbound
            ),
            (10.0, 1000.0, 2)
        );
        let shown = table(&rows);
        assert!(shown.lines().nth(2).unwrap().contains("1000 B"), "{shown}");
    }

    #[test]
    fn a_ztunnel_that_began_anew_or_was_silent_before_makes_no_mountain() {
        let before = look(&[("a", counted("web", 1000, 0, 0))]);
        let now = look(&[
            ("a", counted("web", 4, 0, 0)),
            ("b", counted("web", 5000, 0, 0)),
        ]);
        assert_eq!(rows(&before, &now, 2.0)[0].new_per_second, 2.0);
    }
}
