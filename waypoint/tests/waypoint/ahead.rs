//! Connections that are there before a request needs them.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use anyhow::{Context, Result, ensure};

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
        let [connections, bytes] = [(); 2].map(|()| Arc::<AtomicUsize>::default());
        let seen = (connections.clone(), bytes.clone());
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                seen.0.fetch_add(1, SeqCst);
                let bytes = seen.1.clone();
                std::thread::spawn(move || {
                    let mut some = [0; 64];
                    while let Ok(read @ 1..) = stream.read(&mut some) {
                        bytes.fetch_add(read, SeqCst);
                    }
                });
            }
        });
        // All these go to whom the client stays with.
        shop.until("a connection to the new one", |shop| {
            let heard = shop.runtime.block_on(stay(shop, cookie));
            let same = heard.is_ok_and(|heard| heard.saw("app") == first.saw("app"));
            assert!(same, "sessions move");
            connections.load(SeqCst) > 0
        })?;
        for _ in 0..20 {
            shop.runtime.block_on(stay(shop, cookie))?;
        }
        let (made, said) = (connections.load(SeqCst), bytes.load(SeqCst));
        // One for each thread of the waypoint, and no more.
        ensure!((1..=4).contains(&made) && said == 0, "{made}, {said} bytes");
        Ok(())
    });
}

async fn stay(shop: &Shop<'_>, cookie: &str) -> Result<Heard> {
    let mut request = get("/stay");
    request.headers_mut().insert("cookie", cookie.parse()?);
    let mut client = One::to(&shop.client, shop.at(80)).await?;
    client.ask(request).await?.is(200)
}
