//! ExternalProcessor: who is shown requests and answers.

use api::k8s::limits::OnFailure;
use api::k8s::processors::{BodyMode, ExternalProcessorSpec, Mutations};
use api::waypoint as wire;
use expression::cel::Expression;
use wire::processor::BodyMode as Wire;

use super::duration;

/// What proxies are told, without targets. `domain`: of Kubernetes' services. What cannot be read refuses, unless it
/// fails open.
pub fn processing(
    spec: &ExternalProcessorSpec,
    namespace: &str,
    domain: &str,
) -> (wire::Processing, Option<String>) {
    // Who only looks on decides nothing, not even when it cannot be understood.
    let open = spec.on_failure == OnFailure::Allow || spec.observability_mode;
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
    for (field, all) in [
        ("attributes", &spec.attributes),
        ("responseAttributes", &spec.response_attributes),
    ] {
        if all.len() > ATTRIBUTES {
            return Err(format!("spec.{field}: more than {ATTRIBUTES}"));
        }
        for text in all {
            let read = Expression::read(text);
            read.map_err(|why| format!("spec.{field}: {text}: {why}"))?;
        }
    }
    let metadata = &spec.metadata;
    for (field, all) in [
        ("accessibleNamespaces", &metadata.accessible_namespaces),
        ("writableNamespaces", &metadata.writable_namespaces),
    ] {
        if all.len() > NAMESPACES || all.iter().any(String::is_empty) {
            return Err(format!(
                "spec.metadata.{field}: at most {NAMESPACES} names, and none that is empty"
            ));
        }
    }
    if metadata.writable_namespaces.iter().any(|it| it == TOKEN) {
        return Err(format!(
            "spec.metadata.writableNamespaces: {TOKEN} is what good tokens say, and nobody else"
        ));
    }
    looks_on(spec)?;
    let mutations = &spec.mutations;
    for (field, names) in [("allow", &mutations.allow), ("deny", &mutations.deny)] {
        if let Some(name) = names.iter().find(|name| !is_name(name)) {
            return Err(format!(
                "spec.mutations.{field}: {name:?} is no name of a header"
            ));
        }
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
        attributes: spec.attributes.clone(),
        mutations: Some(wire::processor::Mutations {
            allow: mutations.allow.clone(),
            deny: mutations.deny.clone(),
            routing: mutations.routing,
            strict: mutations.strict,
        }),
        fail_open: false,
        response_attributes: spec.response_attributes.clone(),
        observe: spec.observability_mode,
        deferred_close: read(
            "deferredCloseTimeout",
            spec.deferred_close_timeout.as_deref(),
        )?,
        metadata: metadata.accessible_namespaces.clone(),
        metadata_written: metadata.writable_namespaces.clone(),
    })
}

/// Whether what is asked of one that only looks on is what it can do, and of others nothing that only it does.
fn looks_on(spec: &ExternalProcessorSpec) -> Result<(), String> {
    if !spec.observability_mode {
        return match &spec.deferred_close_timeout {
            Some(_) => {
                Err("spec.deferredCloseTimeout says nothing without observabilityMode".to_owned())
            }
            None => Ok(()),
        };
    }
    for (field, shown) in [("request", &spec.request), ("response", &spec.response)] {
        if !matches!(shown.body, BodyMode::None | BodyMode::Streamed) {
            return Err(format!(
                "spec.{field}.body: with observabilityMode it is Streamed, or None"
            ));
        }
    }
    let unheard = [
        ("modeOverride", spec.mode_override),
        ("mutations", spec.mutations != Mutations::default()),
        (
            "metadata.writableNamespaces",
            !spec.metadata.writable_namespaces.is_empty(),
        ),
        ("longestTimeout", spec.longest_timeout.is_some()),
        ("statusOnFailure", spec.status_on_failure.is_some()),
    ];
    match unheard.iter().find(|(_, said)| *said) {
        Some((field, _)) => Err(format!(
            "spec.{field} says nothing with observabilityMode: nobody hears what it answers"
        )),
        None => Ok(()),
    }
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

/// Of a header, or the beginning of several.
fn is_name(name: &str) -> bool {
    let of = name.strip_suffix('*').unwrap_or(name);
    match of.strip_prefix(':') {
        Some(of) => {
            matches!(of, "path" | "status" | "authority" | "method") && of.len() + 1 == name.len()
        }
        None => !name.is_empty() && of.bytes().all(is_token),
    }
}

/// RFC 9110 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~".contains(&byte)
}

/// Bytes of a body that a proxy holds.
const MOST: u32 = 16 << 20;
/// Of one processor.
const ATTRIBUTES: usize = 64;
const NAMESPACES: usize = 16;
/// Of metadata.
const TOKEN: &str = "envoy.filters.http.jwt_authn";

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
    fn what_it_may_change_and_is_told_beside_is_told_as_written() {
        let (made, fault) = read(
            "backendRef: {name: proc, port: 9000}
attributes: [request.path, 'request.headers[\"x-user\"]', source.address]
mutations: {allow: [x-*, ':path', '*'], deny: [x-internal], routing: true, strict: true}
",
        );
        assert_eq!(fault, None);
        let it = made.processor.expect("a processor");
        assert_eq!(it.attributes.len(), 3);
        let mutations = it.mutations.expect("what it may change");
        assert_eq!(mutations.allow, ["x-*", ":path", "*"]);
        assert_eq!(mutations.deny, ["x-internal"]);
        assert!(mutations.routing && mutations.strict);
    }

    #[test]
    fn what_it_is_told_of_answers_and_of_metadata_and_that_it_only_looks_on_is_told_too() {
        let (made, fault) = read(
            "backendRef: {name: proc, port: 9000}
responseAttributes: [response.code]
metadata: {accessibleNamespaces: [envoy.filters.http.jwt_authn], writableNamespaces: [com.example]}
",
        );
        assert_eq!(fault, None);
        let it = made.processor.expect("a processor");
        assert_eq!(it.response_attributes, ["response.code"]);
        assert_eq!(it.metadata, ["envoy.filters.http.jwt_authn"]);
        assert_eq!(it.metadata_written, ["com.example"]);
        assert!(!it.observe && !it.fail_open);

        let (made, fault) = read(
            "backendRef: {name: proc, port: 9000}
observabilityMode: true
deferredCloseTimeout: 2s
request: {body: Streamed}
",
        );
        assert_eq!(fault, None);
        let it = made.processor.expect("a processor");
        // It decides nothing, also where the proxy is older than that mode.
        assert!(it.observe && it.fail_open && it.deferred_close == 2000);
    }

    #[test]
    fn who_only_looks_on_is_asked_for_nothing_and_stops_nothing() {
        for (text, said) in [
            ("request: {body: Buffered}", "spec.request.body"),
            ("response: {body: FullDuplexStreamed}", "spec.response.body"),
            ("modeOverride: true", "spec.modeOverride"),
            ("mutations: {routing: true}", "spec.mutations"),
            (
                "metadata: {writableNamespaces: [a]}",
                "spec.metadata.writableNamespaces",
            ),
            ("statusOnFailure: 503", "spec.statusOnFailure"),
        ] {
            let text = format!("backendRef: {{name: a, port: 1}}\nobservabilityMode: true\n{text}");
            let (made, fault) = read(&text);
            assert!(made.invalid.contains(said), "{text}: {}", made.invalid);
            assert!(
                fault.is_some_and(|it| it.contains("go on without it")),
                "{text}"
            );
            assert!(made.processor.is_some_and(|it| it.fail_open), "{text}");
        }
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
            (
                "backendRef: {name: a, port: 1}\nattributes: [source.adress]",
                "source.adress is not known",
            ),
            (
                "backendRef: {name: a, port: 1}\nresponseAttributes: [response.cod]",
                "spec.responseAttributes: response.cod",
            ),
            (
                "backendRef: {name: a, port: 1}\ndeferredCloseTimeout: 1s",
                "without observabilityMode",
            ),
            (
                "backendRef: {name: a, port: 1}\nmetadata: {writableNamespaces: [envoy.filters.http.jwt_authn]}",
                "nobody else",
            ),
            (
                "backendRef: {name: a, port: 1}\nmetadata: {accessibleNamespaces: ['']}",
                "none that is empty",
            ),
            (
                "backendRef: {name: a, port: 1}\nmutations: {allow: ['x-*', 'x y']}",
                "spec.mutations.allow: \"x y\" is no name",
            ),
            (
                "backendRef: {name: a, port: 1}\nmutations: {deny: [':scheme']}",
                "spec.mutations.deny",
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
