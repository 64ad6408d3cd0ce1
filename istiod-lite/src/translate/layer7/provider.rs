//! Extension providers of the mesh configuration: who may be asked, and who gets reports.
//!
//! Enters: `extensionProviders` as Istio writes them. Leaves: what proxies are told of each, under the key by which
//! policies name it. Rate limit services, which Istio does not have, are named likewise (`envoyRateLimit`).

use std::collections::BTreeMap;

use api::waypoint as wire;
use serde::Deserialize;
use wire::provider::Kind;

use super::duration;
use super::report::{File, Logs, Traces};

/// The key of the provider of that name.
pub fn key(name: &str) -> String {
    format!("provider/{name}")
}

/// One of `extensionProviders`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Provider {
    /// By which policies name it.
    pub name: String,
    envoy_ext_authz_http: Option<Authorizer>,
    envoy_ext_authz_grpc: Option<Authorizer>,
    envoy_rate_limit: Option<Service>,
    opentelemetry: Option<Traces>,
    zipkin: Option<Traces>,
    envoy_otel_als: Option<Logs>,
    envoy_file_access_log: Option<File>,
    prometheus: Option<serde_json::Value>,
    #[serde(flatten)]
    others: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Service {
    service: String,
    port: u32,
    timeout: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Authorizer {
    service: String,
    port: u32,
    timeout: Option<String>,
    path_prefix: String,
    fail_open: bool,
    status_on_error: Option<String>,
    include_headers_in_check: Vec<String>,
    include_request_headers_in_check: Vec<String>,
    include_additional_headers_in_check: BTreeMap<String, String>,
    include_request_body_in_check: Option<Body>,
    headers_to_upstream_on_allow: Vec<String>,
    headers_to_downstream_on_deny: Vec<String>,
    headers_to_downstream_on_allow: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Body {
    max_request_bytes: u32,
    allow_partial_message: bool,
}

/// Where a provider is: `[namespace/]host`, and the port.
pub(super) type Find<'a> = dyn Fn(&str) -> Option<String> + 'a;

impl Provider {
    /// The host of its service, without the namespace that may stand before it.
    pub fn host(&self) -> Option<&str> {
        let service = self.service()?;
        Some(service.split_once('/').map_or(service, |(_, host)| host))
    }

    fn service(&self) -> Option<&str> {
        let asked = self.envoy_ext_authz_http.as_ref();
        let asked = asked.or(self.envoy_ext_authz_grpc.as_ref());
        let traces = self.opentelemetry.as_ref().or(self.zipkin.as_ref());
        let service = asked.map(|it| &it.service);
        let service = service.or(traces.map(Traces::service));
        let service = service.or(self.envoy_otel_als.as_ref().map(Logs::service));
        let service = service.or(self.envoy_rate_limit.as_ref().map(|it| &it.service));
        service.map(String::as_str)
    }

    /// What proxies are told; none for one that they need not know. `find`: the namespace of the service that has a
    /// host.
    ///
    /// # Errors
    /// It is of a kind that is not supported, or cannot be read: whoever names it is denied.
    pub fn told(&self, find: &Find<'_>) -> Result<Option<wire::Provider>, String> {
        let kind = if let Some(it) = &self.envoy_ext_authz_http {
            Kind::Authorizer(authorizer(it, true, find)?)
        } else if let Some(it) = &self.envoy_ext_authz_grpc {
            Kind::Authorizer(authorizer(it, false, find)?)
        } else if let Some(it) = &self.envoy_rate_limit {
            Kind::RateLimiter(wire::RateLimiter {
                service: Some(place(&it.service, it.port, find)?),
                timeout: duration::optional(it.timeout.as_deref())?,
            })
        } else if let Some(it) = &self.opentelemetry {
            Kind::TraceCollector(it.otlp(find)?)
        } else if let Some(it) = &self.zipkin {
            Kind::TraceCollector(it.zipkin(find)?)
        } else if let Some(it) = &self.envoy_otel_als {
            Kind::LogCollector(it.told(find)?)
        } else if let Some(it) = &self.envoy_file_access_log {
            Kind::LogFile(it.told()?)
        } else if self.prometheus.is_some() {
            return Ok(None);
        } else {
            let kinds: Vec<&str> = self.others.keys().map(String::as_str).collect();
            return Err(match kinds.as_slice() {
                [] => "it says of nothing what it is".to_owned(),
                kinds => format!("{} is not supported", kinds.join(", ")),
            });
        };
        Ok(Some(wire::Provider { kind: Some(kind) }))
    }
}

pub(super) fn place(service: &str, port: u32, find: &Find<'_>) -> Result<wire::ServiceRef, String> {
    let (namespace, hostname) = match service.split_once('/') {
        Some((namespace, host)) => (Some(namespace.to_owned()), host),
        None => (find(service), service),
    };
    if hostname.is_empty() || port == 0 {
        return Err("service and port are needed".to_owned());
    }
    Ok(wire::ServiceRef {
        namespace: namespace.ok_or_else(|| format!("no service has the host {hostname}"))?,
        hostname: hostname.to_owned(),
        port,
    })
}

fn authorizer(it: &Authorizer, http: bool, find: &Find<'_>) -> Result<wire::Authorizer, String> {
    let status = it.status_on_error.as_deref();
    let status = status.map(|text| match text.parse() {
        Ok(code @ 100..=599) => Ok(code),
        _ => Err(format!("statusOnError: {text:?} is no status")),
    });
    let added = it.include_additional_headers_in_check.iter();
    let body = it.include_request_body_in_check.clone().unwrap_or_default();
    let checked = it.include_request_headers_in_check.iter();
    Ok(wire::Authorizer {
        service: Some(place(&it.service, it.port, find)?),
        http,
        path_prefix: it.path_prefix.clone(),
        timeout: duration::optional(it.timeout.as_deref())?,
        fail_open: it.fail_open,
        status_on_error: status.transpose()?.unwrap_or_default(),
        send_headers: checked
            .chain(&it.include_headers_in_check)
            .cloned()
            .collect(),
        add_headers: added
            .map(|(name, value)| wire::Header {
                name: name.clone(),
                value: value.clone(),
            })
            .collect(),
        to_upstream: it.headers_to_upstream_on_allow.clone(),
        to_downstream_on_deny: it.headers_to_downstream_on_deny.clone(),
        to_downstream_on_allow: it.headers_to_downstream_on_allow.clone(),
        body_bytes: body.max_request_bytes,
        body_partial: body.allow_partial_message,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Result<Option<Kind>, String> {
        let provider: Provider = serde_saphyr::from_str(text).expect("a provider");
        let find = |host: &str| (host == "authz.auth.svc.cluster.local").then(|| "auth".to_owned());
        let told = provider.told(&find)?;
        Ok(told.and_then(|it| it.kind))
    }

    #[test]
    fn an_authorizer_is_told_with_what_it_gets_and_gives() {
        let made = told(
            "name: a
envoyExtAuthzHttp:
  service: authz.auth.svc.cluster.local
  port: 8000
  timeout: 0.5s
  statusOnError: '503'
  includeRequestHeadersInCheck: [x-token]
  includeAdditionalHeadersInCheck: {x-by: mesh}
  includeRequestBodyInCheck: {maxRequestBytes: 10, allowPartialMessage: true}
  headersToUpstreamOnAllow: [x-user]
",
        );
        let Ok(Some(Kind::Authorizer(it))) = made else {
            unreachable!("{made:?}")
        };
        assert_eq!((it.http, it.timeout, it.status_on_error), (true, 500, 503));
        assert_eq!((it.body_bytes, it.body_partial), (10, true));
        assert_eq!(it.service.map(|it| it.namespace).as_deref(), Some("auth"));
        assert_eq!(it.send_headers, ["x-token"]);
        assert_eq!(it.to_upstream, ["x-user"]);
    }

    #[test]
    fn what_cannot_be_used_is_an_error_and_not_a_provider() {
        let grpc = |service: &str| format!("envoyExtAuthzGrpc: {{service: {service}, port: 1}}");
        assert!(told(&grpc("other/any.host")).is_ok());
        for (text, said) in [
            (grpc("nowhere.svc"), "no service has the host"),
            (
                "datadog: {service: a, port: 1}".to_owned(),
                "datadog is not supported",
            ),
            ("name: x".to_owned(), "nothing"),
            (
                "envoyFileAccessLog: {path: /tmp/x}".to_owned(),
                "/dev/stdout",
            ),
            ("envoyExtAuthzGrpc: {service: a/b}".to_owned(), "port"),
        ] {
            let made = told(&text);
            assert!(
                made.as_ref().is_err_and(|it| it.contains(said)),
                "{text}: {made:?}"
            );
        }
        assert_eq!(told("name: prometheus\nprometheus: {}"), Ok(None));
    }
}
