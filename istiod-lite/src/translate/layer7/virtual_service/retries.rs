//! When a request is tried again.

use api::k8s::istio::virtual_service::Retries;
use api::waypoint as wire;

use super::actions::grpc;
use crate::translate::layer7::duration;

/// As Istio does where nothing is said: two more tries where the app has certainly not begun, or says so as gRPC does. Not a
/// 503 of its own: it may have begun.
const UNSAID: &str = "connect-failure,refused-stream,unavailable,cancelled";

pub(super) fn of(written: Option<&Retries>, faults: &mut Vec<String>) -> Option<wire::Retry> {
    let unsaid = Retries {
        attempts: 2,
        ..Retries::default()
    };
    let retries = written.unwrap_or(&unsaid);
    if retries.attempts == 0 {
        return None;
    }
    let mut time = |field: &str, text: &Option<String>| {
        duration::optional(text.as_deref()).unwrap_or_else(|why| {
            faults.push(format!("retries.{field}: {why}"));
            0
        })
    };
    let (try_timeout, backoff) = (
        time("perTryTimeout", &retries.per_try_timeout),
        time("backoff", &retries.backoff),
    );
    let mut retry = wire::Retry {
        attempts: retries.attempts,
        try_timeout,
        backoff,
        ..wire::Retry::default()
    };
    let unheard = [
        (
            "retryIgnorePreviousHosts: false has no effect: an endpoint that was not tried yet goes before",
            retries.retry_ignore_previous_hosts == Some(false),
        ),
        (
            "retryRemoteLocalities has no effect: localities are chosen as for any request",
            retries.retry_remote_localities == Some(true),
        ),
    ];
    let unheard = unheard.iter().filter(|(_, is_said)| *is_said);
    faults.extend(unheard.map(|(what, _)| format!("retries.{what}")));
    let on = retries.retry_on.as_deref().filter(|it| !it.is_empty());
    let words = on.unwrap_or(UNSAID).split(',').map(str::trim);
    for word in words.filter(|it| !it.is_empty()) {
        if !add(word, &mut retry) {
            faults.push(format!("retries.retryOn: {word:?} has no effect"));
        }
    }
    Some(retry)
}

fn add(word: &str, retry: &mut wire::Retry) -> bool {
    match word {
        "5xx" | "gateway-error" => {
            retry.server_error |= word == "5xx";
            retry.gateway_error = true;
            // No answer counts as one.
            retry.connect_failure = true;
            retry.reset = true;
            retry.refused_stream = true;
        }
        "reset" => {
            retry.reset = true;
            // No answer either, whatever has become of the connection.
            retry.connect_failure = true;
        }
        // Only what the app has not seen.
        "reset-before-request" => {
            retry.connect_failure = true;
            retry.refused_stream = true;
        }
        "connect-failure" => retry.connect_failure = true,
        "retriable-4xx" => retry.retriable_4xx = true,
        "refused-stream" => retry.refused_stream = true,
        // The codes that are named beside it.
        "retriable-status-codes" => {}
        "cancelled" | "deadline-exceeded" | "internal" | "resource-exhausted" | "unavailable" => {
            retry.grpc_codes.extend(grpc(word));
        }
        _ => match word.parse() {
            Ok(code @ 100..=599) => retry.codes.push(code),
            _ => return false,
        },
    }
    true
}
