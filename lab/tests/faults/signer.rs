//! Nobody signs certificates, for longer than they last.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{AccessLog, Lab, wait};

use crate::{
    support::{Pair, SOON, in_lab, logs_from_now, round_trip, talk, talk_soon},
    until_metric,
};

/// Life of a certificate. It is renewed at half of that, and what fails then goes on as it is for the other half.
const LIFE: &str = "60s";
const OVER: Duration = Duration::from_secs(120);

/// What is true of all nodes together.
fn until(lab: &Lab, name: &str, labels: &[(&str, &str)], fits: fn(f64) -> bool) -> Result<()> {
    until_metric(lab, &[0, 1], name, labels, fits)
}

/// Why connections have failed, at either end.
fn failures(logs: &[AccessLog]) -> Vec<String> {
    let all = logs.iter().flat_map(AccessLog::records);
    all.map(|it| it.error().to_owned())
        .filter(|error| !error.is_empty())
        .collect()
}

#[test]
fn without_a_signer_certificates_serve_to_their_end_then_refuse_by_name_and_are_renewed_when_it_is_back()
 {
    in_lab(Lab::builder().ztunnel_env("SECRET_TTL", LIFE), |lab| {
        let pair = Pair::start(lab)?;
        let mut open = talk(&pair.client, pair.at(), "before")?;
        lab.control_plane()?.kill()?;
        let logs = logs_from_now(lab)?;

        // The first half of their life is over: renewals fail, and whoever watches is told.
        until(lab, "ambit_certificates_failing", &[], |it| it > 0.0)?;
        until(
            lab,
            "ambit_certificate_requests_total",
            &[("result", "failed")],
            |it| it > 3.0,
        )?;
        let ends = "ambit_certificate_expiry_timestamp_seconds";
        until(lab, ends, &[], |it| it > 0.0)?;
        let warned = lab.nodes().iter().any(|node| {
            let log = node.ztunnel().and_then(|it| it.process());
            log.is_ok_and(|it| it.log().contains("certificate not obtained"))
        });
        ensure!(warned, "and the log says so");
        talk(&pair.client, pair.at(), "in the second half of their life")?;
        ensure!(failures(&logs).is_empty(), "{:#?}", failures(&logs));

        // Each call succeeds until one of the two ends.
        wait::until("the end of a certificate", OVER, || {
            Ok(match talk(&pair.client, pair.at(), "until then") {
                Ok(_) => wait::Probe::NotYet("it still serves".into()),
                Err(_) => wait::Probe::Ready(()),
            })
        })?;
        wait::until("the reason", SOON, || {
            let failures = failures(&logs);
            let expired = failures.iter().any(|error| {
                error.contains("has expired: the certificate authority does not answer")
            });
            Ok(if expired {
                wait::Probe::Ready(())
            } else {
                wait::Probe::NotYet(format!("{failures:#?}"))
            })
        })?;
        until(
            lab,
            "ambit_certificates",
            &[("state", "unavailable")],
            |it| it > 0.0,
        )?;
        round_trip(&mut open, "what is open goes on")?;

        lab.control_plane()?.start()?;
        talk_soon(&pair.client, pair.at())?;
        until(lab, "ambit_certificates_failing", &[], |it| it == 0.0)?;
        until(
            lab,
            "ambit_certificates",
            &[("state", "unavailable")],
            |it| it == 0.0,
        )?;
        round_trip(&mut open, "after")
    });
}
