//! Runs the tests on the cluster that the kubeconfig names (`e2e/run test` sets all of it up).
//!
//! Prints a line a test, what the parts weigh, and one line of totals. The exit status says whether all passed.

#![allow(clippy::print_stdout)] // a command line: what it prints is its product

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use e2e::{cluster::Cluster, report, run, tests};
use k8s_openapi::jiff::Timestamp;

#[derive(Parser)]
struct Options {
    /// Only tests whose name contains one of these words.
    names: Vec<String>,
    /// Name the tests, run none.
    #[arg(long)]
    list: bool,
    /// How many tests that disturb nobody run at a time.
    #[arg(long, default_value_t = 3)]
    together: usize,
    /// Image of clients and servers (`e2e/run` knows it).
    #[arg(long, env = "E2E_APPS_IMAGE", default_value = "")]
    apps: String,
    /// When the last of the tests that run alone is begun, in seconds since 1970: what is left then is named, and not run.
    #[arg(long, env = "E2E_UNTIL", value_parser = moment)]
    until: Option<Timestamp>,
}

fn moment(seconds: &str) -> Result<Timestamp> {
    Ok(Timestamp::from_second(seconds.parse()?)?)
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let wanted = |name: &str| {
        options.names.is_empty()
            || options
                .names
                .iter()
                .any(|word| name.contains(word.as_str()))
    };
    let cases: Vec<run::Case> = tests::all()
        .into_iter()
        .filter(|case| wanted(case.name))
        .collect();
    if options.list {
        for case in cases {
            println!("{}", case.name);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let cluster = Cluster::connect(options.apps).await?;
    let ended = run::all(&cluster, &cases, options.together, options.until).await?;
    match report::weights(&cluster).await {
        Ok(lines) => lines.iter().for_each(|line| println!("{line}")),
        Err(error) => println!("no weights: {error:#}"),
    }
    let (lines, passed) = report::verdict(&ended);
    lines.iter().for_each(|line| println!("{line}"));
    Ok(if passed {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
