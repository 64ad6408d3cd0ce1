//! ExternalProcessor: who is shown requests and answers.

use api::k8s::limits::OnFailure;
use api::k8s::processors::{BodyMode, ExternalProcessorSpec};
use api::waypoint as wire;
use wire::processor::BodyMode as Wire;

use super::duration;

/// What proxies are told, without targets. `domain`: of Kubernetes' services. What cannot be read refuses, unless it
/// fails open.
pub fn processing(
    spec: &ExternalProcessorSpec,
    namespace: &str,
    domain: &str,
) -> (wire::Processing, Option<String>) {
    let open = spec.on_failure == OnFailure::Allow;
    let (processor, invalid) = match processor(spec, namespace, domain) {
        Ok(processor) => (processor, None),
        Err(why) => (wire::Processor::default(), Some(why)),
    };
    let told = wire::Processing {
        processor: Some(wire::Processor {
            fail_open: open,
            ..processor
        }),
        invalid: invalid.clone().unwrap_or_default(),
        ..wire::Processing::default()
    };
    let becomes = match open {
        true => "requests go on without it",
        false => "until it is mended requests are refused",
    };
    (told, invalid.map(|why| format!("{why}; {becomes}")))
}

fn processor(
    spec: &ExternalProcessorSpec,
    namespace: &str,
    domain: &str,
) -> Result<wire::Processor, String> {
    let asked = &spec.backend_ref;
    if asked.name.is_empty() || asked.port == 0 || asked.port > 65_535 {
        return Err("spec.backendRef: name and port of a service are needed".to_owned());
    }
    let read = |field: &str, text: Option<&str>| {
        let read = duration::optional(text);
        read.map_err(|why| format!("spec.{field}: {why}"))
    };
    let status = spec.status_on_failure.unwrap_or_default();
    if !matches!(status, 0 | 200..=599) {
        return Err(format!("spec.statusOnFailure: {status} is no status"));
    }
    let bytes = spec.body_bytes.unwrap_or_default();
    if bytes > MOST {
        return Err(format!("spec.bodyBytes: {bytes} are more than {MOST}"));
    }
    Ok(wire::Processor {
        service: Some(wire::ServiceRef {
            namespace: namespace.to_owned(),
            hostname: format!("{}.{namespace}.svc.{domain}", asked.name),
            port: asked.port,
        }),
        timeout: read("timeout", spec.timeout.as_deref())?,
        longest_timeout: read("longestTimeout", spec.longest_timeout.as_deref())?,
        request_headers: spec.request.headers,
        response_headers: spec.response.headers,
        request_body: body(spec.request.body).into(),
        response_body: body(spec.response.body).into(),
        request_trailers: spec.request.trailers,
        response_trailers: spec.response.trailers,
        mode_override: spec.mode_override,
        body_bytes: bytes,
        status_on_error: status,
        fail_open: false,
    })
}

fn body(mode: BodyMode) -> Wire {
    match mode {
        BodyMode::None => Wire::None,
        BodyMode::Buffered => Wire::Buffered,
        BodyMode::BufferedPartial => Wire::BufferedPartial,
        BodyMode::Streamed => Wire::Streamed,
        BodyMode::FullDuplexStreamed => Wire::FullDuplexStreamed,
    }
}

/// Bytes of a body that a proxy holds.
const MOST: u32 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (wire::Processing, Option<String>) {
        let spec: ExternalProcessorSpec = serde_saphyr::from_str(text).expect("a spec");
        processing(&spec, "shop", "cluster.local")
    }

    #[test]
    fn a_processor_is_told_with_what_it_is_shown() {
        let (made, fault) = read(
            "backendRef: {name: proc, port: 9000}
timeout: 1s
request: {body: Buffered}
response: {headers: false, body: FullDuplexStreamed}
",
        );
        assert_eq!(fault, None);
        let it = made.processor.expect("a processor");
        let service = it.service.clone().expect("a service");
        assert_eq!(service.hostname, "proc.shop.svc.cluster.local");
        assert!(it.request_headers && !it.response_headers && !it.fail_open);
        assert_eq!(it.request_body(), Wire::Buffered);
        assert_eq!(it.response_body(), Wire::FullDuplexStreamed);
        assert_eq!(it.timeout, 1000);
    }

    #[test]
    fn what_cannot_be_read_refuses_unless_it_fails_open() {
        for (text, said) in [
            ("{}", "backendRef"),
            ("backendRef: {name: a, port: 1}\ntimeout: soon", "timeout"),
            (
                "backendRef: {name: a, port: 1}\nstatusOnFailure: 7",
                "no status",
            ),
            (
                "backendRef: {name: a, port: 1}\nbodyBytes: 16777217",
                "more than",
            ),
        ] {
            let (made, fault) = read(text);
            assert!(made.invalid.contains(said), "{text}: {}", made.invalid);
            assert!(fault.is_some_and(|it| it.contains("are refused")), "{text}");
        }
        let (made, fault) = read("onFailure: Allow");
        assert!(made.processor.is_some_and(|it| it.fail_open));
        assert!(fault.is_some_and(|it| it.contains("go on without it")));
    }
}
