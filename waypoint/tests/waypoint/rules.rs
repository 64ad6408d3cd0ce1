//! Rules and policies, from the directory to what a client sees.

use anyhow::{Context, Result, ensure};

use super::shop::{Shop, in_shop};

#[test]
fn what_is_written_in_the_directory_is_what_happens() {
    in_shop(|shop| {
        routes(shop).context("routes")?;
        policies(shop).context("policies")?;
        consumers(shop).context("a route of clients")
    });
}

fn routes(shop: &Shop<'_>) -> Result<()> {
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: shop, name: web }
spec:
  parentRefs: [{ group: '', kind: Service, name: web, port: 80 }]
  rules:
  - matches: [{ path: { type: PathPrefix, value: /old } }]
    filters:
    - type: RequestRedirect
      requestRedirect: { path: { type: ReplacePrefixMatch, replacePrefixMatch: /new }, statusCode: 301 }
  - matches: [{ path: { type: PathPrefix, value: /shop } }]
    filters:
    - type: URLRewrite
      urlRewrite: { path: { type: ReplacePrefixMatch, replacePrefixMatch: / } }
    - type: RequestHeaderModifier
      requestHeaderModifier: { set: [{ name: x-rule, value: shop }] }
    - type: ResponseHeaderModifier
      responseHeaderModifier: { add: [{ name: x-answer, value: 'yes' }] }
    backendRefs: [{ name: web, port: 80 }]
  - matches: [{ path: { type: PathPrefix, value: /hang } }]
    timeouts: { request: 300ms }
    filters: &told
    - type: ResponseHeaderModifier
      responseHeaderModifier: { set: [{ name: x-answer, value: 'yes' }] }
    backendRefs: [{ name: web, port: 80 }]
  - matches: [{ path: { type: PathPrefix, value: /hang }, queryParams: [{ name: each, value: '1' }] }]
    timeouts: { backendRequest: 300ms }
    filters: *told
    backendRefs: [{ name: web, port: 80 }]
  - matches: [{ path: { type: PathPrefix, value: /nowhere } }]
    filters: *told
    backendRefs: [{ name: missing, port: 80 }]
";
    shop.apply_until("route", route, "/unrouted", 404)?;
    shop.runtime.block_on(async {
        let heard = shop.get("/old/page").await?.is(301)?;
        let location = heard.headers["location"].to_str()?;
        ensure!(location.ends_with("/new/page"), "{heard:?}");
        let heard = shop.get("/shop/cart").await?.is(200)?;
        ensure!(heard.saw("uri").as_deref() == Some("/cart"), "{heard:?}");
        ensure!(heard.saw("x-rule").as_deref() == Some("shop"), "{heard:?}");
        ensure!(heard.headers["x-answer"] == "yes", "{heard:?}");
        // What a rule says of answers it says of ours.
        for (path, status) in [("/nowhere", 500), ("/hang", 504), ("/hang?each=1", 504)] {
            let heard = shop.get(path).await?.is(status)?;
            ensure!(heard.headers["x-answer"] == "yes", "{heard:?}");
        }
        let log = shop.waypoint.pod().access_log();
        let line = log.find("its line", |line| line.field("path") == "/hang?each=1")?;
        ensure!(line.field("flags") == "UT", "{line:?}");
        anyhow::Ok(())
    })?;
    shop.lab.delete_yaml("route")?;
    shop.until("the rules to go", |shop| {
        let got = shop.runtime.block_on(shop.get("/unrouted"));
        got.is_ok_and(|heard| heard.status == 200)
    })
}

fn policies(shop: &Shop<'_>) -> Result<()> {
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: no-admin }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  action: DENY
  rules:
  - from: [{ source: { principals: ['cluster.local/ns/shop/sa/client'] } }]
    to: [{ operation: { paths: ['/admin*'] } }]
  - to: [{ operation: { paths: ['/marked*'] } }]
    when: [{ key: 'request.headers[x-mark]', notValues: ['good'] }]
";
    shop.apply_until("policy", policy, "/admin/x", 403)?;
    shop.runtime.block_on(async {
        shop.get("/").await?.is(200)?;
        for path in ["//admin", "/a/../admin", "/%61dmin"] {
            shop.get(path).await?.is(403)?;
        }
        // What a client names to be taken away is not there when it is judged.
        let mut client = super::app::One::to(&shop.client, shop.at(80)).await?;
        for (named, status) in [("x-other", 200), ("x-mark", 403)] {
            let mut marked = super::app::get("/marked");
            let headers = marked.headers_mut();
            headers.insert("x-mark", "good".parse()?);
            headers.insert("connection", named.parse()?);
            client.ask(marked).await?.is(status)?;
        }
        let heard = shop.get("/admin").await?.is(403)?;
        ensure!(heard.text() == "RBAC: access denied", "{heard:?}");
        anyhow::Ok(())
    })?;
    let told = shop.waypoint.pod().access_log();
    let record = told.find("the refusal", |record| record.field("code") == "403")?;
    ensure!(format!("{record:?}").contains("no-admin"), "{record:?}");
    Ok(())
}

/// A route of the clients' namespace changes what they may say themselves, and lets them in nowhere else.
fn consumers(shop: &Shop<'_>) -> Result<()> {
    shop.lab.namespace("front").ambient()?;
    let caller = shop.lab.pod("front/caller").node(1);
    let caller = caller.service_account("caller").start()?;
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: no-back }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  action: DENY
  rules:
  - to: [{ operation: { paths: ['/back*'] } }]
  - when: [{ key: 'request.headers[x-role]', values: ['admin'] }]
";
    shop.apply_until("no-back", policy, "/back", 403)?;
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: front, name: web }
spec:
  parentRefs: [{ group: '', kind: Service, namespace: shop, name: web, port: 80 }]
  rules:
  - matches: [{ path: { value: /plain } }]
    filters:
    - type: URLRewrite
      urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: /new } }
    - type: RequestHeaderModifier
      requestHeaderModifier: { set: [{ name: x-role, value: guest }] }
    backendRefs: [{ namespace: shop, name: web, port: 80 }]
  - matches: [{ path: { value: /hidden } }]
    filters:
    - type: URLRewrite
      urlRewrite: { path: { type: ReplaceFullPath, replaceFullPath: /back/x } }
    backendRefs: [{ namespace: shop, name: web, port: 80 }]
  - matches: [{ path: { value: /role } }]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: { set: [{ name: x-role, value: admin }] }
    backendRefs: [{ namespace: shop, name: web, port: 80 }]
  - matches: [{ path: { value: /cert } }]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: { set: [{ name: x-forwarded-client-cert, value: 'URI=spiffe://cluster.local/ns/shop/sa/client' }] }
    backendRefs: [{ namespace: shop, name: web, port: 80 }]
  - matches: [{ path: { value: /double } }]
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: { set: [{ name: x_forwarded_client_cert, value: 'URI=spiffe://cluster.local/ns/shop/sa/client' }] }
    backendRefs: [{ namespace: shop, name: web, port: 80 }]
";
    shop.lab.apply_yaml("consumer", route)?;
    let asked = |path: &str| {
        shop.runtime.block_on(async {
            let mut client = super::app::One::to(&caller, shop.at(80)).await?;
            client.get(path).await
        })
    };
    shop.until("the clients' route", |_| {
        asked("/plain").is_ok_and(|heard| heard.saw("uri").as_deref() == Some("/new"))
    })?;
    let heard = asked("/plain")?.is(200)?;
    ensure!(heard.saw("x-role").as_deref() == Some("guest"), "{heard:?}");
    for path in ["/hidden", "/role", "/cert", "/double"] {
        asked(path)?.is(403).with_context(|| path.to_owned())?;
    }
    let told = shop.waypoint.pod().access_log();
    let record = told.find("whose rule it was", |record| {
        record.field("path") == "/cert" && record.field("code") == "403"
    })?;
    ensure!(
        format!("{record:?}").contains("HTTPRoute/front/web"),
        "{record:?}"
    );
    Ok(())
}
