//! Ten thousand policies, a hundred of which change every second.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lab::{Lab, wait};

use crate::support::{
    calls::{calls_more, while_calling},
    ends, in_lab, refused, round_trip, talk,
};

const POLICIES: usize = 10_000;
/// Documents of one file.
const EACH: usize = 1_000;
/// Of these every second.
const CHANGES: usize = 100;
const SECONDS: usize = 10;
const SETTLED: Duration = Duration::from_secs(120);

/// Denies one account that is nobody's, at pods with a label.
fn policy(name: &str, app: &str, account: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         selector: {{matchLabels: {{app: {app}}}}}\n  action: DENY\n  rules:\n  - from: [{{source: {{principals: [cluster.local/ns/shop/sa/{account}]}}}}]\n"
    )
}

/// Policies of pods that may come some day.
fn many(lab: &Lab) -> Result<()> {
    for file in 0..POLICIES / EACH {
        let mut text = String::new();
        for number in 0..EACH {
            let name = format!("p{file}-{number}");
            let _ = write!(
                text,
                "{}",
                policy(&name, &format!("app-{name}"), "stranger")
            );
        }
        lab.apply_yaml(&format!("flood-{file}"), &text)?;
    }
    Ok(())
}

fn policies(lab: &Lab, node: usize) -> Result<usize> {
    let dump = lab.node(node).config_dump()?;
    Ok(dump["policies"].as_array().map_or(0, Vec::len))
}

fn until_policies(lab: &Lab, what: &str, fits: impl Fn(usize) -> bool) -> Result<()> {
    for node in lab.nodes() {
        wait::until(what, SETTLED, || {
            let known = policies(lab, node.index())?;
            Ok(if fits(known) {
                wait::Probe::Ready(())
            } else {
                wait::Probe::NotYet(format!("{known}"))
            })
        })?;
    }
    Ok(())
}

fn memory(lab: &Lab) -> Result<Vec<f64>> {
    let nodes = lab.nodes().iter();
    nodes
        .map(|node| Ok(node.metrics()?.sum("process_resident_memory_bytes", &[])))
        .collect()
}

/// Changes `CHANGES` policies of the server's own every second until `stop`, each to another account; says how often.
#[allow(clippy::disallowed_methods)] // no runtime in this test
fn change(lab: &Lab, stop: &AtomicBool, changed: &AtomicUsize) -> Result<()> {
    for round in 0.. {
        let began = Instant::now();
        for number in 0..CHANGES {
            if stop.load(SeqCst) {
                return Ok(());
            }
            let name = format!("change-{number}");
            lab.apply_yaml(&name, &policy(&name, "web", &format!("stranger-{round}")))?;
            changed.fetch_add(1, SeqCst);
        }
        thread::sleep(Duration::from_secs(1).saturating_sub(began.elapsed()));
    }
    Ok(())
}

#[test]
#[allow(clippy::print_stdout)] // figures for whoever reads the report
fn ten_thousand_policies_and_a_hundred_changes_a_second_hold_up_no_connection_and_no_verdict() {
    in_lab(Lab::builder(), |lab| {
        while_calling(lab, |ways| {
            let (client, to) = (&ways[0].client, ways[0].to);
            let lone = lab
                .pod("shop/lone")
                .node(1)
                .service_account("lone")
                .start()?;
            let mut open = talk(client, to, "before")?;
            let doomed = talk(&lone, to, "before")?;
            many(lab)?;
            until_policies(lab, "every policy", |known| known >= POLICIES)?;
            calls_more(ways)?;

            let (stop, changed) = (AtomicBool::new(false), AtomicUsize::new(0));
            let (during, took) = thread::scope(|scope| -> Result<_> {
                let changing = scope.spawn(|| change(lab, &stop, &changed));
                let verdict = || -> Result<_> {
                    wait::until_true("some seconds of changes", SETTLED, || {
                        changed.load(SeqCst) > CHANGES * SECONDS / 2
                    })?;
                    let during = memory(lab)?;
                    round_trip(&mut open, "in the middle of it")?;
                    // The one verdict that counts, among all those that change nothing: it ends one connection and no other.
                    let began = Instant::now();
                    lab.apply_yaml("verdict", &policy("verdict", "web", "lone"))?;
                    ends(doomed, SETTLED)?;
                    let took = began.elapsed();
                    refused(&lone, to)?;
                    wait::until_true("the rest of the changes", SETTLED, || {
                        changed.load(SeqCst) > CHANGES * SECONDS
                    })?;
                    Ok((during, took))
                };
                let verdict = verdict();
                stop.store(true, SeqCst);
                changing.join().expect("no panic")?;
                verdict
            })?;
            round_trip(&mut open, "after it")?;
            let after = memory(lab)?;
            println!(
                "{} changes; one among them ended a connection after {took:?}; memory {during:?}, {after:?}",
                changed.load(SeqCst)
            );
            for (during, after) in during.iter().zip(&after) {
                ensure!(
                    after - during < f64::from(64 << 20),
                    "memory grows with changes: {during} then {after}"
                );
            }
            Ok(())
        })
    });
}
