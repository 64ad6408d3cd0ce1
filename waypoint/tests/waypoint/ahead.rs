//! Connections that are there before a request needs them.

use anyhow::{Context, Result, ensure};
use lab::Pod;

use super::app::{Heard, One, get};
use super::shop::{Shop, in_shop};

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: shop, name: ahead }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
  - matches: [{ path: { type: PathPrefix, value: /stay } }]
    sessionPersistence: { sessionName: stay, type: Cookie }
    backendRefs: [{ name: web, port: 80 }]
";

#[test]
fn whoever_comes_to_a_service_that_is_called_has_a_connection_before_its_first_request() {
    in_shop(|shop| {
        shop.apply_until("ahead", ROUTE, "/unrouted", 404)?;
        let first = shop.runtime.block_on(shop.get("/stay"))?.is(200)?;
        let given = first.headers.get("set-cookie").context("no cookie")?;
        let cookie = given.to_str()?.split(';').next().unwrap_or_default();
        let three = shop.lab.pod("shop/three").node(0);
        let three = three.service_account("web").label("app", "web").start()?;
        let listener = three.listen(8080)?;
        listener.set_nonblocking(true)?;
        // All these go to whom the client stays with.
        shop.until("a connection to the new one", |shop| {
            let heard = shop.runtime.block_on(stay(shop, cookie));
            let same = heard.is_ok_and(|heard| heard.saw("app") == first.saw("app"));
            assert!(same, "sessions move");
            tunnels(&three).is_ok_and(|made| made > 0)
        })?;
        for _ in 0..20 {
            shop.runtime.block_on(stay(shop, cookie))?;
        }
        let made = tunnels(&three)?;
        // One for each thread of the waypoint, and no more.
        ensure!((1..=4).contains(&made), "{made}");
        // An app that serves one at a time would wait for what nobody says.
        ensure!(listener.accept().is_err(), "its app has a connection");
        Ok(())
    });
}

/// Connections for tunnels that lead to a pod.
fn tunnels(to: &Pod) -> Result<usize> {
    let ways = ["ss", "-Htn", "state", "established", "sport", "=", ":15008"];
    Ok(to.exec(ways)?.success()?.lines().count())
}

async fn stay(shop: &Shop<'_>, cookie: &str) -> Result<Heard> {
    let mut request = get("/stay");
    request.headers_mut().insert("cookie", cookie.parse()?);
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    client.ask(request).await?.is(200)
}
