//! Extension providers that get reports: collectors of spans and log records, and the proxy's own log.
//!
//! What a format or header says is read here as the proxy will read it, so that what is wrong with it is said at once.

use std::collections::BTreeMap;

use api::waypoint as wire;
use expression::format::{Format as Text, Template};
use serde::Deserialize;
use serde_json::Value;
use wire::trace_collector::Protocol;

use super::duration;
use super::provider::{Find, place};

/// `opentelemetry`, `zipkin`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Traces {
    service: String,
    port: u32,
    max_tag_length: u32,
    http: Option<Http>,
    grpc: Option<Grpc>,
    resource_detectors: Option<Detectors>,
    // Zipkin's.
    #[serde(rename = "enable64bitTraceId")]
    short: bool,
    path: String,
    timeout: Option<String>,
    headers: Vec<Header>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Http {
    path: String,
    timeout: Option<String>,
    headers: Vec<Header>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Grpc {
    timeout: Option<String>,
    initial_metadata: Vec<Header>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Header {
    name: String,
    value: Option<String>,
    env_name: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Detectors {
    environment: Option<Value>,
}

/// `envoyOtelAls`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Logs {
    service: String,
    port: u32,
    log_name: String,
    log_format: Format,
}

/// `envoyFileAccessLog`
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct File {
    path: String,
    log_format: Format,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Format {
    text: String,
    labels: Option<BTreeMap<String, Value>>,
}

impl Traces {
    pub(super) fn service(&self) -> &String {
        &self.service
    }

    pub(super) fn otlp(&self, find: &Find<'_>) -> Result<wire::TraceCollector, String> {
        let (protocol, path, timeout, headers) = match (&self.http, &self.grpc) {
            (Some(http), _) => (
                Protocol::OtlpHttp,
                &*http.path,
                &http.timeout,
                &http.headers,
            ),
            (None, Some(grpc)) => (
                Protocol::OtlpGrpc,
                "",
                &grpc.timeout,
                &grpc.initial_metadata,
            ),
            (None, None) => (Protocol::OtlpGrpc, "", &None, &self.headers),
        };
        let detectors = self.resource_detectors.as_ref();
        Ok(wire::TraceCollector {
            protocol: protocol.into(),
            path: path.to_owned(),
            headers: said(headers)?,
            timeout: duration::optional(timeout.as_deref())?,
            environment: detectors.is_some_and(|it| it.environment.is_some()),
            ..self.any(find)?
        })
    }

    pub(super) fn zipkin(&self, find: &Find<'_>) -> Result<wire::TraceCollector, String> {
        Ok(wire::TraceCollector {
            protocol: Protocol::Zipkin.into(),
            path: self.path.clone(),
            headers: said(&self.headers)?,
            timeout: duration::optional(self.timeout.as_deref())?,
            short_ids: self.short,
            ..self.any(find)?
        })
    }

    fn any(&self, find: &Find<'_>) -> Result<wire::TraceCollector, String> {
        Ok(wire::TraceCollector {
            service: Some(place(&self.service, self.port, find)?),
            sampling: 1.0,
            longest_tag: self.max_tag_length,
            ..wire::TraceCollector::default()
        })
    }
}

/// A value that is in our environment is nobody's to read here.
fn said(headers: &[Header]) -> Result<Vec<wire::Header>, String> {
    let header = |it: &Header| match (&it.value, &it.env_name) {
        (_, Some(_)) => Err(format!("header {}: envName is not supported", it.name)),
        (value, None) => Ok(wire::Header {
            name: it.name.clone(),
            value: value.clone().unwrap_or_default(),
        }),
    };
    headers.iter().map(header).collect()
}

impl Logs {
    pub(super) fn service(&self) -> &String {
        &self.service
    }

    pub(super) fn told(&self, find: &Find<'_>) -> Result<wire::LogCollector, String> {
        let labels = self.log_format.labels.iter().flatten();
        let attribute = |(name, value): (&String, &Value)| {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Object(_) | Value::Array(_) => {
                    return Err(format!("logFormat.labels.{name} is no text"));
                }
                other => other.to_string(),
            };
            Text::read(&text).map_err(|why| format!("logFormat.labels.{name}: {why}"))?;
            Ok((name.clone(), text))
        };
        Text::read(&self.log_format.text).map_err(|why| format!("logFormat.text: {why}"))?;
        Ok(wire::LogCollector {
            service: Some(place(&self.service, self.port, find)?),
            log_name: self.log_name.clone(),
            body: self.log_format.text.clone(),
            attributes: labels.map(attribute).collect::<Result<_, String>>()?,
            ..wire::LogCollector::default()
        })
    }
}

impl File {
    /// A proxy writes to its standard output and nowhere else.
    pub(super) fn told(&self) -> Result<wire::LogFile, String> {
        if !is_output(&self.path) {
            let path = &self.path;
            return Err(format!("path {path:?}: only /dev/stdout is written to"));
        }
        let format = &self.log_format;
        if let Some(labels) = &format.labels {
            let template = Value::Object(labels.clone().into_iter().collect());
            return template_of(&template).map_err(|why| format!("logFormat.labels: {why}"));
        }
        text_of(&format.text).map_err(|why| format!("logFormat.text: {why}"))
    }
}

/// Where lines can go.
pub fn is_output(path: &str) -> bool {
    matches!(path, "/dev/stdout" | "/dev/stderr" | "")
}

/// The mesh's own log: `accessLogFormat` and `accessLogEncoding`.
///
/// # Errors
/// The format cannot be read.
pub fn own(format: &str, json: bool) -> Result<Option<wire::LogFile>, String> {
    let told = match (format, json) {
        ("", false) => return Ok(None),
        ("", true) => Ok(wire::LogFile {
            json: true,
            ..wire::LogFile::default()
        }),
        (text, true) => match serde_json::from_str(text) {
            Ok(template) => template_of(&template),
            Err(why) => Err(format!("no JSON: {why}")),
        },
        (text, false) => text_of(text),
    };
    told.map(Some)
        .map_err(|why| format!("accessLogFormat: {why}"))
}

fn template_of(template: &Value) -> Result<wire::LogFile, String> {
    Template::read(template)?;
    Ok(wire::LogFile {
        json: true,
        template: template.to_string(),
        ..wire::LogFile::default()
    })
}

fn text_of(text: &str) -> Result<wire::LogFile, String> {
    Text::read(text)?;
    Ok(wire::LogFile {
        format: text.to_owned(),
        ..wire::LogFile::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(_: &str) -> Option<String> {
        Some("obs".to_owned())
    }

    fn traces(text: &str) -> Traces {
        serde_saphyr::from_str(text).expect("a provider")
    }

    #[test]
    fn collectors_are_told_how_they_are_spoken_to() {
        let it = traces(
            "service: otel.obs.svc
port: 4318
maxTagLength: 99
http: {path: /v1/traces, timeout: 2s, headers: [{name: x-key, value: v}]}
resourceDetectors: {environment: {}}
",
        );
        let told = it.otlp(&find).expect("it is understood");
        assert_eq!(told.protocol(), Protocol::OtlpHttp);
        assert_eq!(
            (told.timeout, told.longest_tag, told.environment),
            (2_000, 99, true)
        );
        assert_eq!((told.path.as_str(), told.headers.len()), ("/v1/traces", 1));
        let it = traces("{service: a, port: 4317, grpc: {initialMetadata: [{name: k, value: v}]}}");
        let told = it.otlp(&find).expect("it is understood");
        assert_eq!(
            (told.protocol(), told.headers.len()),
            (Protocol::OtlpGrpc, 1)
        );
        let it = traces("{service: a, port: 9411, path: /spans, enable64bitTraceId: true}");
        let told = it.zipkin(&find).expect("it is understood");
        assert_eq!((told.protocol(), told.short_ids), (Protocol::Zipkin, true));
        let secret = traces("{service: a, port: 1, headers: [{name: k, envName: KEY}]}");
        assert!(
            secret
                .zipkin(&find)
                .is_err_and(|why| why.contains("envName"))
        );
    }

    #[test]
    fn formats_are_read_before_they_are_told() {
        let logs = |text: &str| -> Result<wire::LogCollector, String> {
            let logs: Logs = serde_saphyr::from_str(text).expect("a provider");
            logs.told(&find)
        };
        let told = logs(
            "{service: a, port: 1, logFormat: {text: '%PROTOCOL%', labels: {code: '%RESPONSE_CODE%', one: 1}}}",
        );
        let told = told.expect("it is understood");
        assert_eq!(
            (told.body.as_str(), &*told.attributes["one"]),
            ("%PROTOCOL%", "1")
        );
        let wrong = logs("{service: a, port: 1, logFormat: {labels: {code: '%NOBODY%'}}}");
        assert!(wrong.is_err_and(|why| why.contains("labels.code: %NOBODY%")));
        let file: File =
            serde_saphyr::from_str("logFormat: {labels: {a: {b: '%PROTOCOL%'}}}").expect("a file");
        let told = file.told().expect("it is understood");
        assert_eq!(
            (told.json, told.template.as_str()),
            (true, "{\"a\":{\"b\":\"%PROTOCOL%\"}}")
        );
        assert_eq!(own("", false), Ok(None));
        assert!(own("%NOBODY%", false).is_err_and(|why| why.contains("accessLogFormat")));
        assert!(own("{", true).is_err_and(|why| why.contains("no JSON")));
        assert_eq!(
            own("%PROTOCOL%\n", false).map(|it| it.map(|it| it.format)),
            Ok(Some("%PROTOCOL%\n".to_owned()))
        );
    }
}
