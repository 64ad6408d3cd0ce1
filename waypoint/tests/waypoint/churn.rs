//! What is said changes all the time, and who says it goes and comes back: no request is lost over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Pod;
use tokio::task::JoinHandle;

use super::app::{App, One};
use super::shop::{Shop, in_shop};

/// So many edits, fifty a second.
const EDITS: usize = 100;

#[test]
fn no_request_is_lost_while_routes_change_or_the_control_plane_is_away() {
    in_shop(|shop| {
        // A service that the waypoint does not front: it learns of it, and forgets it, with the route that leads there.
        let pod = shop.lab.pod("depot/far").node(0).service_account("far");
        let pod = pod.label("app", "far").start()?;
        let _far = App::start(&shop.runtime, &pod, 8080)?;
        shop.lab.service_of("depot/far", &[("http", 80, 8080)])?;
        shop.lab.apply_yaml("grant", GRANT)?;
        shop.lab.apply_yaml("route", &route(0))?;
        edit_is_seen(shop, 0)?;

        let calls = Calls::begin(shop);
        for edit in 1..=EDITS {
            shop.lab.apply_yaml("route", &route(edit))?;
            #[allow(clippy::disallowed_methods)] // the pace of the edits, in a test's own thread
            std::thread::sleep(Duration::from_millis(20));
        }
        edit_is_seen(shop, EDITS)?;
        calls.more(shop, "after the edits")?;

        let control_plane = shop.lab.control_plane()?;
        control_plane.terminate(Duration::from_secs(60))?;
        calls.more(shop, "without a control plane")?;
        shop.lab.apply_yaml("route", &route(EDITS + 1))?;
        control_plane.start()?;
        edit_is_seen(shop, EDITS + 1)?;
        calls.more(shop, "with a new one")?;
        let made = calls.end(shop)?;
        ensure!(made > EDITS, "{made} requests are not many");
        Ok(())
    });
}

const GRANT: &str = "
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: { namespace: depot, name: shop }
spec:
  from: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop }]
  to: [{ group: '', kind: Service }]
";

/// The route as it is after so many edits: every second one leads far away, alone or beside.
fn route(edit: usize) -> String {
    let backends = match edit % 4 {
        0 | 2 => "[{ name: web, port: 80 }]",
        1 => "[{ name: far, namespace: depot, port: 80 }]",
        _ => "[{ name: web, port: 80 }, { name: far, namespace: depot, port: 80 }]",
    };
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ namespace: shop, name: churn }}
spec:
  parentRefs: [{{ group: '', kind: Service, name: web, port: 80 }}]
  rules:
  - filters:
    - type: ResponseHeaderModifier
      responseHeaderModifier: {{ set: [{{ name: x-edit, value: '{edit}' }}] }}
    backendRefs: {backends}
"
    )
}

fn edit_is_seen(shop: &Shop<'_>, edit: usize) -> Result<()> {
    shop.until(&format!("edit {edit} to be seen"), |shop| {
        let heard = shop.runtime.block_on(shop.get("/"));
        heard.is_ok_and(|heard| {
            let seen = heard.headers.get("x-edit");
            seen.is_some_and(|seen| *seen == *edit.to_string())
        })
    })
}

/// Callers that stop at the first request that is not answered as it should be.
pub(super) struct Calls {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    callers: Vec<JoinHandle<Result<()>>>,
}

impl Calls {
    /// Four callers, of which two keep their connections.
    fn begin(shop: &Shop<'_>) -> Self {
        Self::of(shop, &[(&shop.client, 200)])
    }

    /// As many in each of these pods, with the status that they are to be answered.
    pub(super) fn of(shop: &Shop<'_>, clients: &[(&Pod, u16)]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let made = Arc::new(AtomicUsize::new(0));
        let call = |client: &Pod, status: u16, number: usize| {
            let (client, to) = (client.clone(), shop.at(80));
            let (stop, made) = (stop.clone(), made.clone());
            shop.runtime.spawn(async move {
                let mut kept: Option<One> = None;
                while !stop.load(SeqCst) {
                    let mut one = match kept.take() {
                        Some(one) => one,
                        None => One::to(&client, to).await?,
                    };
                    let count = made.fetch_add(1, SeqCst);
                    let heard = one
                        .get("/")
                        .await
                        .with_context(|| format!("request {count}"))?;
                    heard
                        .is(status)
                        .with_context(|| format!("request {count} of {}", client.name()))?;
                    kept = number.is_multiple_of(2).then_some(one);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Ok(())
            })
        };
        let callers = clients
            .iter()
            .flat_map(|(client, status)| (0..4).map(|number| call(client, *status, number)))
            .collect();
        Self {
            stop,
            made,
            callers,
        }
    }

    /// Waits until some more were made.
    pub(super) fn more(&self, shop: &Shop<'_>, when: &str) -> Result<()> {
        let before = self.made.load(SeqCst);
        shop.until(&format!("requests {when}"), |_| {
            self.made.load(SeqCst) > before + 50
        })
    }

    /// How many were made; none failed.
    pub(super) fn end(self, shop: &Shop<'_>) -> Result<usize> {
        self.stop.store(true, SeqCst);
        for caller in self.callers {
            shop.runtime.block_on(caller)??;
        }
        Ok(self.made.load(SeqCst))
    }
}
