//! What a waypoint asks of others over gRPC, or tells them, answered by a server that does as it is told.
//!
//! | call | what comes of it |
//! |---|---|
//! | `Authorization/Check` | no, where the request's `x-do` has `status=…`: with this status; yes, where it has `query=name`, with this parameter as `name` in the query, and no `key` |
//! | `RateLimitService/ShouldRateLimit` | each descriptor is counted, and refused beyond the limit that came with it |
//! | `ExternalProcessor/Process` | requests and answers are changed ([`clerk`]) |
//! | `TraceService/Export`, `LogsService/Export` | what was told is counted, to be asked for with `kept=…` ([`collector`]) |

mod clerk;
mod collector;

use api::{
    ext_authz::{
        CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption,
        HttpStatus, OkHttpResponse, QueryParameter, Status, check_response::HttpResponse,
    },
    rate_limit::{
        RateLimitDescriptor, RateLimitRequest, RateLimitResponse,
        rate_limit_response::{Code, DescriptorStatus, RateLimit},
    },
};
use http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use prost::Message;

use crate::serve::{Body, Seen, grpc};

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const PROCESS: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
const SPANS: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const LINES: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// Whether a call is one of these.
pub(crate) fn is_asked(path: &str) -> bool {
    [CHECK, LIMIT, PROCESS, SPANS, LINES].contains(&path)
}

/// The answer; an empty message where the question cannot be understood.
pub(crate) async fn answer(name: &str, seen: &Seen, path: &str, body: Incoming) -> Response<Body> {
    if path == PROCESS {
        return clerk::process(name.to_owned(), body);
    }
    grpc(&one(name, seen, path, body).await.unwrap_or_default())
}

async fn one(name: &str, seen: &Seen, path: &str, body: Incoming) -> Option<Vec<u8>> {
    let bytes = body.collect().await.ok()?.to_bytes();
    let message = bytes.get(PREFIX..)?;
    Some(match path {
        CHECK => check(name, &CheckRequest::decode(message).ok()?).encode_to_vec(),
        LIMIT => limit(seen, &RateLimitRequest::decode(message).ok()?).encode_to_vec(),
        SPANS => collector::spans(seen, message)?,
        _ => collector::lines(seen, message)?,
    })
}

fn check(name: &str, asked: &CheckRequest) -> CheckResponse {
    let request = asked.attributes.as_ref().and_then(|it| it.request.as_ref());
    let http = request.and_then(|it| it.http.as_ref());
    let deeds = http.and_then(|it| it.headers.get("x-do"));
    let status = deeds.and_then(|it| it.strip_prefix("status=")?.parse().ok());
    let set = deeds.and_then(|it| it.strip_prefix("query="));
    let set = set.map(|key| QueryParameter {
        key: key.to_owned(),
        value: name.to_owned(),
    });
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
                query_parameters_to_remove: set.iter().map(|_| "key".to_owned()).collect(),
                query_parameters_to_set: set.into_iter().collect(),
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
        ..Default::default()
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

fn limit(seen: &Seen, asked: &RateLimitRequest) -> RateLimitResponse {
    let descriptors = asked.descriptors.iter();
    let statuses: Vec<_> = descriptors.map(|it| counted(seen, asked, it)).collect();
    let over = statuses.iter().any(|it| it.code() == Code::OverLimit);
    let code = if over { Code::OverLimit } else { Code::Ok };
    RateLimitResponse {
        overall_code: code.into(),
        statuses,
        ..Default::default()
    }
}

/// For ever: no window ends while a test runs.
fn counted(seen: &Seen, asked: &RateLimitRequest, of: &RateLimitDescriptor) -> DescriptorStatus {
    let Some(limit) = &of.limit else {
        return DescriptorStatus {
            code: Code::Ok.into(),
            ..Default::default()
        };
    };
    let entries = of.entries.iter();
    let entries: Vec<_> = entries.map(|it| (&*it.key, &*it.value)).collect();
    let count = seen.add(&format!("limit {} {entries:?}", asked.domain), 1);
    let most = u64::from(limit.requests_per_unit);
    let code = if count > most {
        Code::OverLimit
    } else {
        Code::Ok
    };
    DescriptorStatus {
        code: code.into(),
        current_limit: Some(RateLimit {
            requests_per_unit: limit.requests_per_unit,
            unit: limit.unit,
            ..Default::default()
        }),
        // Not more than the limit, which is one of these.
        limit_remaining: u32::try_from(most.saturating_sub(count)).unwrap_or(u32::MAX),
        ..Default::default()
    }
}

/// Of a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
