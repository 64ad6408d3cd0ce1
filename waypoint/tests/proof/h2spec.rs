//! `h2spec` (a Go module) as a client of a service behind a waypoint: what it sends arrives inside a tunnel, where the
//! waypoint's HTTP/2 server reads it. `H2SPEC=path cargo test --workspace --test waypoint h2spec -- --ignored`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::shop::{Shop, in_shop};

/// What is found wanting, by section and number; why each is as it is: `docs/conformance/waypoint.md`.
const KNOWN: &[&str] = &["3.5/2"];

#[test]
#[ignore = "needs h2spec: H2SPEC=path"]
fn h2spec_finds_nothing_that_is_not_explained() {
    in_shop(|shop| {
        // Where HTTP/2 is declared, and where it is told by its first bytes.
        for port in [90, 99] {
            holds(shop, port).with_context(|| format!("port {port}"))?;
        }
        Ok(())
    });
}

fn holds(shop: &Shop<'_>, port: u16) -> Result<()> {
    let h2spec = std::env::var("H2SPEC").context("H2SPEC names the program")?;
    let (host, port) = (shop.at(port).ip().to_string(), port.to_string());
    // It waits this long where it says that nothing may come; a debug build needs some of it to answer.
    let words = [&*h2spec, "-h", &host, "-p", &port, "-o", "2"];
    let ran = shop.client.command(words)?.within(LONG).run()?;
    let report = ran.stdout.as_str();
    let total = report.lines().find(|line| line.contains(" tests, "));
    eprintln!("{}", total.context("a total")?);
    let failed = failures(report);
    let known: Vec<_> = KNOWN.iter().map(|&known| known.to_owned()).collect();
    ensure!(
        failed == known,
        "{failed:?}\n{}",
        report.split("Failures:").nth(1).unwrap_or_default()
    );
    Ok(())
}

/// `section/number` of each failed case.
fn failures(report: &str) -> Vec<String> {
    let (_, failures) = report.split_once("Failures:").unwrap_or_default();
    let (mut section, mut failed) = (String::new(), Vec::new());
    for line in failures.lines().map(str::trim) {
        if let Some(case) = line.split('\u{d7}').nth(1) {
            let number = case.split(':').next().unwrap_or_default().trim();
            failed.push(format!("{section}/{number}"));
        } else if let Some((number, _)) = line.split_once(". ")
            && number.split('.').all(|part| part.parse::<u8>().is_ok())
        {
            section = number.to_owned();
        }
    }
    failed
}

const LONG: Duration = Duration::from_secs(900);
