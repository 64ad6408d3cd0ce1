//! One command operator: `%REQ(X-USER?:AUTHORITY):20%`.

use serde_json::Value as Json;

use super::Now;
use crate::cel::{Expression, Headers};
use crate::{Attribute, Fields, Moment, Pattern, Subject, Value};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operator {
    /// A field, or another where it is not there.
    Field(Fields, Box<[Box<str>]>),
    /// A header of the request without the query that it may have.
    WithoutQuery(Box<[Box<str>]>),
    Known(Attribute),
    /// In milliseconds.
    Millis(Attribute),
    Address(Attribute, Attribute),
    Began(Pattern),
    Written(Pattern),
    Parameter(Box<str>),
    /// A namespace of metadata, and keys within it.
    Metadata(Box<[Box<str>]>),
    GrpcWord(Style),
    LongFlags,
    Hostname,
    Expression(Box<Expression>),
    /// Known when it is read.
    Constant(Box<str>),
    /// Envoy knows it, and nobody here.
    Nothing,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Style {
    Camel,
    Snake,
    Number,
}

/// An operator, how many characters of it, and how many bytes of `text` it takes with its last `%`.
pub(super) fn read(text: &str) -> Result<(Operator, Option<usize>, usize), String> {
    let unknown = |name: &str| format!("%{name}% is not known");
    let word = |it: char| !it.is_ascii_uppercase() && !it.is_ascii_digit() && it != '_';
    let length = text.find(word).ok_or_else(|| {
        let shown: String = text.chars().take(20).collect();
        format!("%{shown} has no end")
    })?;
    let (name, mut rest) = text.split_at(length);
    let mut argument = None;
    if rest.starts_with('(') {
        let end = closing(rest).ok_or_else(|| format!("%{name}( has no end"))?;
        argument = Some(&rest[1..end]);
        rest = &rest[end + 1..];
    }
    let mut longest = None;
    if let Some(after) = rest.strip_prefix(':') {
        let end = after
            .find('%')
            .ok_or_else(|| format!("%{name}: has no end"))?;
        let number = after[..end].parse();
        longest = Some(number.map_err(|_| format!("%{name}:{}% is no length", &after[..end]))?);
        rest = &after[end..];
    }
    let rest = rest.strip_prefix('%').ok_or_else(|| unknown(name))?;
    let operator = named(name, argument)?.ok_or_else(|| unknown(name))?;
    Ok((operator, longest, text.len() - rest.len()))
}

/// Where the first bracket is closed.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' if depth == 1 => return Some(at),
            ')' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn named(name: &str, argument: Option<&str>) -> Result<Option<Operator>, String> {
    use Attribute as A;
    use Operator as O;
    let needed = || argument.ok_or_else(|| format!("%{name}% needs an argument in brackets"));
    Ok(Some(match name {
        "REQ" | "RESP" | "TRAILER" | "REQ_WITHOUT_QUERY" => field(name, needed()?),
        "CEL" => O::Expression(Box::new(
            Expression::read(needed()?).map_err(|why| why.to_string())?,
        )),
        "START_TIME" | "EMIT_TIME" | "START_TIME_LOCAL" | "EMIT_TIME_LOCAL" => {
            let pattern = argument.filter(|it| !it.is_empty()).unwrap_or(TIME);
            let pattern = Pattern::read(pattern)?;
            match name {
                "START_TIME" | "START_TIME_LOCAL" => O::Began(pattern),
                _ => O::Written(pattern),
            }
        }
        "GRPC_STATUS" => O::GrpcWord(match argument {
            Some("SNAKE_STRING") => Style::Snake,
            Some("NUMBER") => Style::Number,
            _ => Style::Camel,
        }),
        "GRPC_STATUS_NUMBER" => O::GrpcWord(Style::Number),
        "QUERY_PARAM" => O::Parameter(needed()?.into()),
        "PATH" => O::Known(match argument.unwrap_or_default().split(':').next() {
            Some("NQ") => A::UrlPath,
            _ => A::Path,
        }),
        "FILTER_STATE" => peer(needed()?),
        "DYNAMIC_METADATA" => metadata(needed()?),
        "METADATA" => match needed()?.split_once(':') {
            Some(("DYNAMIC", path)) => metadata(path),
            _ => O::Nothing,
        },
        "ENVIRONMENT" => {
            let (name, most) = needed()?.split_once(':').unwrap_or((needed()?, ""));
            let value = std::env::var(name).unwrap_or_else(|_| "-".to_owned());
            let most = most.parse().unwrap_or(value.len());
            O::Constant(value[..value.floor_char_boundary(most)].into())
        }
        "HOSTNAME" => O::Hostname,
        "RESPONSE_FLAGS_LONG" => O::LongFlags,
        _ => return Ok(plain(name)),
    }))
}

/// Operators without arguments; those of others are looked over.
fn plain(name: &str) -> Option<Operator> {
    use Attribute as A;
    use Operator as O;
    let attribute = match name {
        "PROTOCOL" => A::Protocol,
        "RESPONSE_CODE" => A::Code,
        "RESPONSE_CODE_DETAILS" => A::CodeDetails,
        "CONNECTION_TERMINATION_DETAILS" => A::Termination,
        "RESPONSE_FLAGS" => A::FlagLetters,
        "BYTES_RECEIVED" => A::RequestSize,
        "BYTES_SENT" => A::ResponseSize,
        "ROUTE_NAME" => A::Route,
        "UPSTREAM_CLUSTER" | "UPSTREAM_CLUSTER_RAW" | "VIRTUAL_CLUSTER_NAME" => A::Cluster,
        "UPSTREAM_TRANSPORT_FAILURE_REASON" => A::UpstreamFailure,
        "UPSTREAM_REQUEST_ATTEMPT_COUNT" => A::UpstreamTries,
        "UPSTREAM_PEER_URI_SAN" => A::UpstreamIdentity,
        "DOWNSTREAM_PEER_URI_SAN" => A::PeerIdentity,
        "DOWNSTREAM_LOCAL_URI_SAN" => A::OwnIdentity,
        "DOWNSTREAM_TLS_VERSION" => A::TlsVersion,
        "REQUESTED_SERVER_NAME" => A::ServerName,
        "TRACE_ID" => A::TraceId,
        "SPAN_ID" => A::SpanId,
        "STREAM_ID" => A::RequestId,
        "POLICY" => A::Policy,
        "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT" | "UPSTREAM_HOST_NAME_WITHOUT_PORT" => {
            A::UpstreamAddress
        }
        "UPSTREAM_REMOTE_PORT" => A::UpstreamPort,
        "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT"
        | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT" => A::SourceAddress,
        "DOWNSTREAM_REMOTE_PORT" | "DOWNSTREAM_DIRECT_REMOTE_PORT" => A::SourcePort,
        "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT" => A::DestinationAddress,
        "DOWNSTREAM_LOCAL_PORT" => A::DestinationPort,
        _ => {
            return Some(match name {
                "DURATION" | "ROUNDTRIP_DURATION" => O::Millis(A::Duration),
                "RESPONSE_DURATION" => O::Millis(A::BackendLatency),
                "UPSTREAM_HOST" | "UPSTREAM_REMOTE_ADDRESS" | "UPSTREAM_HOST_NAME" => {
                    O::Address(A::UpstreamAddress, A::UpstreamPort)
                }
                "DOWNSTREAM_REMOTE_ADDRESS" | "DOWNSTREAM_DIRECT_REMOTE_ADDRESS" => {
                    O::Address(A::SourceAddress, A::SourcePort)
                }
                "DOWNSTREAM_LOCAL_ADDRESS" => O::Address(A::DestinationAddress, A::DestinationPort),
                _ if NOTHING.contains(&name) => O::Nothing,
                _ => return None,
            });
        }
    };
    Some(O::Known(attribute))
}

/// `REQ(X?Y)`, and `:METHOD` for what is no header.
fn field(name: &str, argument: &str) -> Operator {
    let names: Box<[Box<str>]> = argument
        .split('?')
        .map(|name| name.to_ascii_lowercase().into())
        .collect();
    let fields = match name {
        "RESP" => Fields::ResponseHeaders,
        "TRAILER" => Fields::ResponseTrailers,
        "REQ_WITHOUT_QUERY" => return Operator::WithoutQuery(names),
        _ => Fields::RequestHeaders,
    };
    Operator::Field(fields, names)
}

/// `FILTER_STATE(downstream_peer:FIELD:workload)`
fn peer(argument: &str) -> Operator {
    let mut words = argument.split(':');
    let (Some(peer), kind, field) = (words.next(), words.next(), words.next()) else {
        return Operator::Nothing;
    };
    let field = match (kind, field) {
        (Some("FIELD"), Some(field)) => field,
        _ => "workload",
    };
    let known = Attribute::named(&format!("filter_state.{peer}.{field}"));
    known.map_or(Operator::Nothing, Operator::Known)
}

/// `envoy.lb:key:key`
fn metadata(argument: &str) -> Operator {
    Operator::Metadata(argument.split(':').map(Box::from).collect())
}

impl Operator {
    pub(super) fn value(&self, subject: &dyn Subject, now: Now<'_>) -> Json {
        match self {
            Self::Field(fields, names) => {
                first(subject, *fields, names).map_or(Json::Null, Json::from)
            }
            Self::WithoutQuery(names) => {
                let found = first(subject, Fields::RequestHeaders, names);
                let path = found.map(|it| it.split('?').next().unwrap_or_default().to_owned());
                path.map_or(Json::Null, Json::from)
            }
            Self::Known(attribute) => json(&subject.attribute(*attribute)),
            Self::Millis(attribute) => match subject.attribute(*attribute) {
                Value::Duration(nanos) => (nanos / 1_000_000).into(),
                _ => Json::Null,
            },
            Self::Address(address, port) => {
                match (subject.attribute(*address), subject.attribute(*port)) {
                    (Value::Null, _) => Json::Null,
                    (Value::Text(ip), port) if ip.contains(':') => format!("[{ip}]:{port}").into(),
                    (address, port) => format!("{address}:{port}").into(),
                }
            }
            Self::Began(pattern) => match subject.attribute(Attribute::Time) {
                Value::Time(nanos) => pattern.write(Moment(nanos)).into(),
                _ => Json::Null,
            },
            Self::Written(pattern) => pattern.write(now.time).into(),
            Self::Parameter(name) => parameter(subject, name).map_or(Json::Null, Json::from),
            Self::Metadata(path) => said(subject.attribute(Attribute::Metadata), path),
            Self::GrpcWord(style) => grpc(subject, *style),
            Self::LongFlags => json(&subject.attribute(Attribute::FlagLetters)),
            Self::Hostname => now.hostname.into(),
            Self::Expression(expression) => match expression.value(subject) {
                Ok(value) => json(&value),
                Err(_) => Json::Null,
            },
            Self::Constant(text) => text.to_string().into(),
            Self::Nothing => Json::Null,
        }
    }

    pub(super) fn headers(&self, found: &mut Headers) {
        match self {
            Self::Field(Fields::RequestHeaders, names) | Self::WithoutQuery(names) => {
                found.request.some.extend(names.iter().cloned());
            }
            Self::Field(Fields::ResponseHeaders, names) => {
                found.response.some.extend(names.iter().cloned());
            }
            Self::Field(Fields::ResponseTrailers, _) => found.trailers = true,
            Self::Expression(expression) => found.merge(expression.headers()),
            _ => {}
        }
    }
}

fn first(subject: &dyn Subject, fields: Fields, names: &[Box<str>]) -> Option<String> {
    let mut found = names.iter().filter_map(|name| match &**name {
        ":authority" => text(subject, Attribute::Host),
        ":method" => text(subject, Attribute::Method),
        ":path" => text(subject, Attribute::Path),
        ":scheme" => text(subject, Attribute::Scheme),
        ":status" => text(subject, Attribute::Code),
        "x-request-id" => text(subject, Attribute::RequestId),
        "user-agent" => text(subject, Attribute::UserAgent),
        "x-envoy-original-path" => None,
        "x-envoy-upstream-service-time" => match subject.attribute(Attribute::BackendLatency) {
            Value::Duration(nanos) => Some((nanos / 1_000_000).to_string()),
            _ => None,
        },
        name => subject
            .field(fields, name)
            .map(std::borrow::Cow::into_owned),
    });
    found.next()
}

fn text(subject: &dyn Subject, attribute: Attribute) -> Option<String> {
    match subject.attribute(attribute) {
        Value::Null => None,
        value => Some(value.to_string()),
    }
}

/// Numbers stay numbers.
fn json(value: &Value<'_>) -> Json {
    match value {
        Value::Null | Value::Fields(_) => Json::Null,
        Value::Bool(it) => (*it).into(),
        Value::Int(it) => (*it).into(),
        Value::Uint(it) => (*it).into(),
        Value::Double(it) => (*it).into(),
        other => other.to_string().into(),
    }
}

/// What is there, as it is: texts, numbers, structs.
fn said(all: Value<'_>, path: &[Box<str>]) -> Json {
    let mut found = all;
    for key in path {
        let key = Value::text(&**key);
        let Value::Map(entries) = &found else {
            return Json::Null;
        };
        let mut same = entries.iter().filter(|(it, _)| it.equals(&key));
        let Some((_, value)) = same.next() else {
            return Json::Null;
        };
        found = value.clone();
    }
    deep(&found)
}

fn deep(value: &Value<'_>) -> Json {
    match value {
        Value::List(all) => all.iter().map(deep).collect(),
        Value::Map(all) => {
            let all = all.iter();
            all.map(|(key, value)| (key.to_string(), deep(value)))
                .collect()
        }
        // A whole number is written without a point.
        Value::Double(it) if it.fract() == 0.0 && it.abs() < 9e15 => (*it as i64).into(),
        other => json(other),
    }
}

fn parameter(subject: &dyn Subject, name: &str) -> Option<String> {
    let query = text(subject, Attribute::Query)?;
    let mut pairs = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.find(|(found, _)| *found == name)?;
    Some(value.to_owned())
}

fn grpc(subject: &dyn Subject, style: Style) -> Json {
    let code = match subject.attribute(Attribute::GrpcStatus) {
        Value::Int(code) => code,
        _ => return Json::Null,
    };
    let words = usize::try_from(code).ok().and_then(|code| GRPC.get(code));
    match (style, words) {
        (Style::Number, _) | (_, None) => code.into(),
        (Style::Camel, Some((camel, _))) => (*camel).into(),
        (Style::Snake, Some((_, snake))) => (*snake).into(),
    }
}

const TIME: &str = "%Y-%m-%dT%H:%M:%E3SZ";

/// Statuses of gRPC by their numbers.
const GRPC: [(&str, &str); 17] = [
    ("OK", "OK"),
    ("Canceled", "CANCELLED"),
    ("Unknown", "UNKNOWN"),
    ("InvalidArgument", "INVALID_ARGUMENT"),
    ("DeadlineExceeded", "DEADLINE_EXCEEDED"),
    ("NotFound", "NOT_FOUND"),
    ("AlreadyExists", "ALREADY_EXISTS"),
    ("PermissionDenied", "PERMISSION_DENIED"),
    ("ResourceExhausted", "RESOURCE_EXHAUSTED"),
    ("FailedPrecondition", "FAILED_PRECONDITION"),
    ("Aborted", "ABORTED"),
    ("OutOfRange", "OUT_OF_RANGE"),
    ("Unimplemented", "UNIMPLEMENTED"),
    ("Internal", "INTERNAL"),
    ("Unavailable", "UNAVAILABLE"),
    ("DataLoss", "DATA_LOSS"),
    ("Unauthenticated", "UNAUTHENTICATED"),
];

/// What Envoy knows, and nobody here has.
const NOTHING: [&str; 32] = [
    "CONNECTION_ID",
    "UPSTREAM_CONNECTION_ID",
    "UPSTREAM_LOCAL_ADDRESS",
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT",
    "UPSTREAM_LOCAL_PORT",
    "UPSTREAM_PROTOCOL",
    "UPSTREAM_METADATA",
    "UPSTREAM_TLS_VERSION",
    "UPSTREAM_TLS_CIPHER",
    "UPSTREAM_TLS_SESSION_ID",
    "UPSTREAM_PEER_SUBJECT",
    "UPSTREAM_PEER_ISSUER",
    "UPSTREAM_LOCAL_SUBJECT",
    "UPSTREAM_LOCAL_URI_SAN",
    "UPSTREAM_PEER_CERT",
    "UPSTREAM_WIRE_BYTES_SENT",
    "UPSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_WIRE_BYTES_SENT",
    "DOWNSTREAM_WIRE_BYTES_RECEIVED",
    "DOWNSTREAM_TLS_CIPHER",
    "DOWNSTREAM_TLS_SESSION_ID",
    "DOWNSTREAM_PEER_SUBJECT",
    "DOWNSTREAM_PEER_ISSUER",
    "DOWNSTREAM_PEER_SERIAL",
    "DOWNSTREAM_PEER_FINGERPRINT_256",
    "DOWNSTREAM_PEER_CERT",
    "DOWNSTREAM_LOCAL_SUBJECT",
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON",
    "DOWNSTREAM_HANDSHAKE_DURATION",
    "REQUEST_DURATION",
    "REQUEST_TX_DURATION",
    "RESPONSE_TX_DURATION",
];
