//! The name server of the outside world is dead, or says nothing.

use anyhow::{Result, ensure};
use lab::{Lab, OUTSIDE_NAMES, Pod, wait};
use nix::sys::signal::Signal;

use crate::support::{
    SOON,
    dns::{A, Answer, ask, ask_tcp},
    in_lab,
};

/// Nobody could say (RFC 1035, 4.1.1).
const SERVFAIL: u8 = 2;

#[test]
fn names_of_the_mesh_resolve_while_the_name_server_is_dead_or_silent_and_others_are_refused() {
    in_lab(Lab::builder().nodes(1), |lab| {
        lab.namespace("shop").ambient()?;
        lab.pod("shop/web").start()?;
        let client = lab.pod("shop/client").start()?;
        let service = lab.service("shop/web", &[(80, 8080)])?;
        let server = lab.name_server_address();
        let asked = |ask: fn(&Pod, _, &str, u16) -> Result<Answer>, name: &str| {
            ask(&client, server, name, A)
        };
        let mesh_names_resolve = || -> Result<()> {
            for by in [ask, ask_tcp] {
                let answer = asked(by, &service.host)?;
                ensure!(
                    answer.code == 0 && !answer.addresses.is_empty(),
                    "{answer:?}"
                );
            }
            Ok(())
        };
        ensure!(asked(ask, OUTSIDE_NAMES[0])?.code == 0);

        for dead in [false, true] {
            let upstream = lab.name_server().process()?;
            upstream.signal(if dead {
                Signal::SIGKILL
            } else {
                Signal::SIGSTOP
            })?;
            let failed = || -> Result<f64> {
                Ok(lab
                    .metrics(0)?
                    .sum("istio_dns_upstream_failures_total", &[]))
            };
            let before = failed()?;
            for by in [ask, ask_tcp] {
                ensure!(
                    asked(by, OUTSIDE_NAMES[1])?.code == SERVFAIL,
                    "dead: {dead}"
                );
                mesh_names_resolve()?;
            }
            wait::until_true("them to be counted", SOON, || {
                failed().is_ok_and(|now| now > before)
            })?;
            if dead {
                upstream.wait(SOON)?;
                lab.name_server().start()?;
            } else {
                upstream.signal(Signal::SIGCONT)?;
            }
            wait::until("names of the outside again", SOON, || {
                let answer = asked(ask, OUTSIDE_NAMES[2])?;
                Ok(match answer.code {
                    0 => wait::Probe::Ready(()),
                    _ => wait::Probe::NotYet(format!("{answer:?}")),
                })
            })?;
        }
        Ok(())
    });
}
