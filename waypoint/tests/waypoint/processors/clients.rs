//! A processor of a route that the clients' namespace has written, where the service has one of its own.

use anyhow::ensure;
use serde_json::json;

use super::clerk::Clerk;
use super::request;
use crate::access::signer::EC;
use crate::app::One;
use crate::shop::in_shop;

#[test]
fn a_processor_of_clients_says_nothing_that_is_not_theirs_to_say() {
    in_shop(|shop| {
        shop.lab.namespace("front").ambient()?;
        let _ours = Clerk::start(shop)?;
        let _theirs = Clerk::start_at(shop, "front/clerk")?;
        let caller = shop.lab.pod("front/caller").node(1);
        let caller = caller.service_account("caller").start()?;
        shop.lab.apply_yaml("clients", &objects())?;
        let asked = |wish: &str| {
            shop.runtime.block_on(async {
                let mut client = One::to(&caller, shop.at(80)).await?;
                client.ask(request("/theirs", wish, "")).await
            })
        };
        // What clients may say themselves it may say, too.
        shop.until("both processors to be in force", |_| {
            let order = asked("order").ok().and_then(|heard| heard.saw("x-order"));
            order.is_some_and(|order| order.contains("one") && order.contains("two"))
        })?;
        shop.until("what a token would say to be refused", |_| {
            asked("forge").is_ok_and(|heard| heard.status == 403)
        })?;
        let heard = asked("order")?.is(200)?;
        ensure!(heard.saw("x-subject").is_none(), "{heard:?}");
        Ok(())
    });
}

fn objects() -> String {
    let keys = json!({ "keys": [EC.public] });
    format!(
        "
apiVersion: ambit.io/v1alpha1
kind: ExternalProcessor
metadata: {{ namespace: shop, name: ours }}
spec:
  targetRefs: [{{ group: '', kind: Service, name: web }}]
  backendRef: {{ name: clerk, port: 9001 }}
  timeout: 20s
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ namespace: front, name: theirs }}
spec:
  parentRefs: [{{ group: '', kind: Service, namespace: shop, name: web, port: 80 }}]
  rules:
  - backendRefs: [{{ namespace: shop, name: web, port: 80 }}]
---
apiVersion: ambit.io/v1alpha1
kind: ExternalProcessor
metadata: {{ namespace: front, name: theirs }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: theirs }}]
  backendRef: {{ name: clerk, port: 9000 }}
  timeout: 20s
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{ namespace: shop, name: tokens }}
spec:
  targetRefs: [{{ group: '', kind: Service, name: web }}]
  jwtRules:
  - issuer: https://issuer.example
    jwks: '{keys}'
    outputClaimToHeaders: [{{ header: x-subject, claim: sub }}]
"
    )
}
