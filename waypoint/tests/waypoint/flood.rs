//! Ten thousand policies at one waypoint, a hundred of which change every second: requests go on being answered, and are
//! judged by what is said now.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::{Lab, Pod, wait};

use super::app::One;
use super::churn::Calls;
use super::shop::{Shop, in_shop};

const POLICIES: usize = 10_000;
/// What they are for: services that nobody calls, behind the same waypoint.
const SERVICES: usize = 20;
/// Of those for the service that is called, every second.
const CHANGES: usize = 100;
const SECONDS: usize = 10;
/// Changes within which another one is in force, also on a machine that is busy with something else for a while.
const SOON_ENOUGH: usize = 60 * CHANGES;
const SETTLED: Duration = Duration::from_secs(120);

/// Denies an account at a service.
fn policy(name: &str, service: &str, account: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         targetRefs: [{{group: '', kind: Service, name: {service}}}]\n  action: DENY\n  rules:\n  - from: [{{source: {{principals: [cluster.local/ns/shop/sa/{account}]}}}}]\n"
    )
}

fn many(lab: &Lab) -> Result<()> {
    for service in 0..SERVICES {
        let name = format!("depot-{service}");
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{clusterIP: 10.96.201.{service}, selector: {{app: {name}}}, ports: [{{name: http, port: 80}}]}}\n"
        );
        for number in 0..POLICIES / SERVICES {
            let denies = policy(&format!("{name}-{number}"), &name, "stranger");
            let _ = write!(text, "{denies}");
        }
        lab.apply_yaml(&name, &text)?;
    }
    Ok(())
}

/// Policies that the waypoint has been told of.
fn known(shop: &Shop<'_>) -> Result<usize> {
    let dump = shop.waypoint.pod().config_dump()?;
    let all = dump["resources"].as_array().into_iter().flatten();
    let policies = all.filter(|it| it.to_string().contains("authorizationpolicy/"));
    Ok(policies.count())
}

fn memory(shop: &Shop<'_>) -> Result<f64> {
    let metrics = shop.waypoint.pod().metrics()?;
    Ok(metrics.sum("process_resident_memory_bytes", &[]))
}

/// How a request of that pod's is answered, on a connection of its own.
fn status(shop: &Shop<'_>, client: &Pod) -> Option<u16> {
    let asked = shop.runtime.block_on(async {
        let mut one = One::to(client, shop.at(80)).await?;
        one.get("/").await
    });
    asked.ok().map(|heard| heard.status)
}

/// Changes `CHANGES` policies of the service that is called every second until `stop`, each to another account; says how
/// often.
#[allow(clippy::disallowed_methods)] // no runtime in this thread
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
fn ten_thousand_policies_and_a_hundred_changes_a_second_hold_up_no_request_and_no_verdict() {
    in_shop(|shop| {
        let lab = shop.lab;
        let pod = |name: &str| {
            let pod = lab.pod(&format!("shop/{name}")).node(1);
            pod.service_account(name).start()
        };
        let (banned, lone) = (pod("banned")?, pod("lone")?);
        lab.apply_yaml("banned", &policy("banned", "web", "banned"))?;
        shop.until("the banned one to be denied", |shop| {
            status(shop, &banned) == Some(403)
        })?;
        let calls = Calls::of(shop, &[(&shop.client, 200), (&banned, 403)]);
        many(lab)?;
        wait::until("every policy", SETTLED, || {
            // Busy with ten thousand of them, it may be late with an answer.
            let known = known(shop);
            Ok(if known.as_ref().is_ok_and(|known| *known > POLICIES) {
                wait::Probe::Ready(())
            } else {
                wait::Probe::NotYet(format!("{known:?}"))
            })
        })?;
        calls.more(shop, "among ten thousand policies")?;

        let (stop, changed) = (AtomicBool::new(false), AtomicUsize::new(0));
        let so_many = || changed.load(SeqCst);
        let (during, later) = thread::scope(|scope| -> Result<_> {
            let changing = scope.spawn(|| change(lab, &stop, &changed));
            let verdict = || -> Result<_> {
                wait::until_true("some seconds of changes", SETTLED, || {
                    so_many() > CHANGES * SECONDS / 2
                })?;
                let during = memory(shop)?;
                wait::until_true("the lone one to be served", SETTLED, || {
                    status(shop, &lone) == Some(200)
                })?;
                // The one that counts, among all those that change nothing; and that it is taken back.
                let mut later = Vec::new();
                for (told, answered) in [(true, 403), (false, 200)] {
                    let before = so_many();
                    match told {
                        true => lab.apply_yaml("verdict", &policy("verdict", "web", "lone"))?,
                        false => lab.delete_yaml("verdict")?,
                    }
                    wait::until_true("the verdict to be in force", SETTLED, || {
                        status(shop, &lone) == Some(answered)
                    })?;
                    later.push(so_many() - before);
                }
                wait::until_true("the rest of the changes", SETTLED, || {
                    so_many() > CHANGES * SECONDS
                })?;
                Ok((during, later))
            };
            let verdict = verdict();
            stop.store(true, SeqCst);
            changing.join().expect("no panic")?;
            verdict
        })?;
        calls.more(shop, "after it")?;
        let made = calls.end(shop)?;
        // What the last changes took is given back soon after them.
        let grown = |after: f64| after - during >= f64::from(64 << 20);
        wait::until("memory not to grow with changes", SETTLED, || {
            Ok(match memory(shop)? {
                after if grown(after) => wait::Probe::NotYet(format!("{during} then {after}")),
                _ => wait::Probe::Ready(()),
            })
        })?;
        println!(
            "{} changes; verdicts among them in force after {later:?} more; {made} requests; memory {during}, {}",
            so_many(),
            memory(shop)?
        );
        ensure!(
            later.iter().all(|changes| *changes < SOON_ENOUGH),
            "{later:?} changes until a verdict is in force"
        );
        Ok(())
    });
}
