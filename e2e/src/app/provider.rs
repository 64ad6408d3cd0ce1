//! What a waypoint asks of others over gRPC, answered by a server that does as it is told.
//!
//! | call | no, where |
//! |---|---|
//! | `Authorization/Check` | the request's `x-do` has `status=…`: with this status |
//! | `RateLimitService/ShouldRateLimit` | a descriptor has the value `greedy` |

use api::{
    ext_authz::{
        CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption,
        HttpStatus, OkHttpResponse, Status, check_response::HttpResponse,
    },
    rate_limit::{RateLimitRequest, RateLimitResponse, rate_limit_response::Code},
};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message;

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// Whether a call is one of these.
pub(crate) fn is_asked(path: &str) -> bool {
    [CHECK, LIMIT].contains(&path)
}

/// The answer's message; nothing where the question cannot be understood.
pub(crate) async fn answer(name: &str, path: &str, body: Incoming) -> Option<Vec<u8>> {
    let bytes = body.collect().await.ok()?.to_bytes();
    let message = bytes.get(5..)?;
    Some(match path {
        CHECK => check(name, &CheckRequest::decode(message).ok()?).encode_to_vec(),
        _ => limit(&RateLimitRequest::decode(message).ok()?).encode_to_vec(),
    })
}

fn check(name: &str, asked: &CheckRequest) -> CheckResponse {
    let request = asked.attributes.as_ref().and_then(|it| it.request.as_ref());
    let http = request.and_then(|it| it.http.as_ref());
    let deeds = http.and_then(|it| it.headers.get("x-do"));
    let status = deeds.and_then(|it| it.strip_prefix("status=")?.parse().ok());
    let (code, said) = match status {
        Some(code) => (
            7, // PERMISSION_DENIED
            HttpResponse::DeniedResponse(DeniedHttpResponse {
                status: Some(HttpStatus { code }),
                body: format!("{name} says no"),
                ..Default::default()
            }),
        ),
        None => (
            0,
            HttpResponse::OkResponse(OkHttpResponse {
                headers: vec![header("x-judged", name)],
                ..Default::default()
            }),
        ),
    };
    CheckResponse {
        status: Some(Status {
            code,
            ..Default::default()
        }),
        http_response: Some(said),
    }
}

fn header(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn limit(asked: &RateLimitRequest) -> RateLimitResponse {
    let mut entries = asked.descriptors.iter().flat_map(|it| &it.entries);
    let greedy = entries.any(|entry| entry.value == "greedy");
    let code = if greedy { Code::OverLimit } else { Code::Ok };
    RateLimitResponse {
        overall_code: code.into(),
        ..Default::default()
    }
}
