//! Pods of a waypoint come and go while requests pass; none is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{bail, ensure};

use super::app::One;
use super::shop::in_shop;

#[test]
fn no_request_is_lost_while_a_waypoint_is_replaced_pod_by_pod() {
    in_shop(|shop| {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicUsize::new(0));
        let callers: Vec<_> = (0..4)
            .map(|number| {
                let (client, to) = (shop.client.clone(), shop.at(80));
                let (stop, done) = (stop.clone(), done.clone());
                shop.runtime.spawn(async move {
                    let mut kept: Option<One> = None;
                    while !stop.load(SeqCst) {
                        // Half of them keep their connections, until they are told to go elsewhere.
                        let mut one = match kept.take() {
                            Some(one) => one,
                            None => One::to(&client, to).await?,
                        };
                        let heard = one.get("/").await?.is(200)?;
                        let leaving = heard.headers.get("connection");
                        if number % 2 == 0 && leaving.is_none_or(|said| said != "close") {
                            kept = Some(one);
                        }
                        done.fetch_add(1, SeqCst);
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        let more = |what: &str| {
            let before = done.load(SeqCst);
            shop.until(what, |_| done.load(SeqCst) > before + 50)
        };
        more("requests before")?;
        let second = shop
            .lab
            .waypoint_pod(shop.waypoint.reference(), "way-1", 1)?;
        more("requests through both")?;
        // As a Deployment replaces a pod: it is told to end while the news that it leaves is still on its way.
        let first = shop.waypoint.pod();
        first.pod().terminating()?;
        first.component().terminate(Duration::from_secs(60))?;
        more("requests after")?;
        stop.store(true, SeqCst);
        for caller in callers {
            match shop.runtime.block_on(caller)? {
                Ok(()) => {}
                Err(why) => bail!("a request was lost: {why:?}\n{}", done.load(SeqCst)),
            }
        }
        ensure!(second.component().running());
        Ok(())
    });
}
