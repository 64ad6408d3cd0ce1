//! What processors say of a request to whoever comes later, and what they are told of answers.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use lab::Lab;
use serde_json::json;

use super::clerk::Clerk;
use super::request;
use crate::access::signer::EC;
use crate::app::{Heard, One, text};
use crate::shop::{Shop, in_shop_of};

const SETTINGS: &str = "
accessLogFile: /dev/stdout
accessLogFormat: \"said %REQ(:PATH)% %DYNAMIC_METADATA(com.example.clerk)% %METADATA(DYNAMIC:com.example.other:verdict)% %CEL(metadata.filter_metadata['envoy.filters.http.jwt_authn'].payload.sub)%\\n\"
";

#[test]
fn what_is_said_of_a_request_reaches_whoever_comes_later() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SETTINGS).unwrap();
    let lab = Lab::builder().istiod_env("MESH_CONFIG", &file.path().display().to_string());
    in_shop_of(lab, |shop| {
        let _clerk = Clerk::start(shop)?;
        shop.lab.apply_yaml("sayings", &objects())?;
        shop.until("both to be in force", |shop| {
            let heard = shop.runtime.block_on(said(shop, "/said/first"));
            heard.is_ok_and(|it| !text(&it.headers, "told-response.code").is_empty())
        })?;
        let heard = shop.runtime.block_on(said(shop, "/said/it"))?.is(200)?;
        // The second was told what the first had said, where it may say something, and what the token says.
        for (name, value) in [
            ("said-com.example.clerk-verdict", Some("clean")),
            ("said-com.example.clerk-method", Some("GET")),
            ("said-com.example.other-verdict", None),
            ("told-request.path", Some("/said/it")),
            ("told-response.code", None),
        ] {
            ensure!(heard.saw(name).as_deref() == value, "{name}: {heard:?}");
        }
        let payload = heard.saw("said-envoy.filters.http.jwt_authn-payload");
        ensure!(
            payload.is_some_and(|it| it.contains("\"sub\"")),
            "{heard:?}"
        );
        // And of the answer, when there was one: what it is, and what it is one to.
        let length = text(&heard.headers, "content-length");
        for (name, value) in [
            ("told-response.code", "200"),
            ("told-response.size", &*length),
            ("told-response.headers__content-length__", &*length),
            ("told-request.headers__x-do__", "says"),
            ("told-request.method", "GET"),
            ("told-connection.mtls", "true"),
            ("said-com.example.clerk-verdict", "clean"),
        ] {
            ensure!(text(&heard.headers, name) == value, "{name}: {heard:?}");
        }
        ensure!(!length.is_empty());
        let line = "said /said/it {\"method\":\"GET\",\"verdict\":\"clean\"} - me";
        shop.until(line, |shop| {
            let log = shop.waypoint.pod().component().log_path();
            let log = std::fs::read_to_string(log).unwrap_or_default();
            log.lines().any(|it| it.contains(line))
        })
    });
}

fn objects() -> String {
    let keys = json!({"keys": [EC.public]});
    format!(
        "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{ namespace: shop, name: said }}
spec:
  parentRefs: [{{ group: '', kind: Service, name: web, port: 80 }}]
  rules:
  - matches: [{{ path: {{ type: PathPrefix, value: /said }} }}]
    backendRefs: [{{ name: web, port: 80 }}]
---
apiVersion: ambit.io/v1alpha1
kind: ExternalProcessor
metadata: {{ namespace: shop, name: a }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: said }}]
  backendRef: {{ name: clerk, port: 9000 }}
  timeout: 20s
  metadata: {{ writableNamespaces: [com.example.clerk] }}
---
apiVersion: ambit.io/v1alpha1
kind: ExternalProcessor
metadata: {{ namespace: shop, name: b }}
spec:
  targetRefs: [{{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: said }}]
  backendRef: {{ name: clerk, port: 9001 }}
  timeout: 20s
  metadata: {{ accessibleNamespaces: [com.example.clerk, com.example.other, envoy.filters.http.jwt_authn] }}
  attributes: [request.path, response.code]
  responseAttributes:
  - response.code
  - response.size
  - response.headers['content-length']
  - request.headers['x-do']
  - request.method
  - connection.mtls
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{ namespace: shop, name: tokens }}
spec:
  targetRefs: [{{ group: '', kind: Service, name: web }}]
  jwtRules:
  - issuer: https://issuer.example
    jwks: '{keys}'
"
    )
}

async fn said(shop: &Shop<'_>, path: &str) -> Result<Heard> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let claims = json!({"iss": "https://issuer.example", "sub": "me", "exp": now + 300});
    let mut asking = request(path, "says", "");
    let token = format!("Bearer {}", EC.sign(&claims)).parse()?;
    asking.headers_mut().insert("authorization", token);
    One::to(&shop.client, shop.at(80)).await?.ask(asking).await
}
