//! What expressions and formats may ask of a request or connection that has ended.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use expression::{Attribute as A, Fields, Subject, Value};
use hbone::Identity;
use http::header::{CONTENT_LENGTH, REFERER, USER_AGENT};
use http::{HeaderMap, HeaderName};
use mesh::Workload;

use super::flag::{Flag, Flags};
use super::labels::{Side, UNKNOWN};
use super::line::{protocol, text};
use super::series::{Destination, Moved};
use super::{Caller, Story};

/// A request, and how it ended.
pub(super) struct Request<'a> {
    pub(super) story: &'a Story,
    pub(super) took: Duration,
    pub(super) moved: Moved,
    pub(super) ended: SystemTime,
}

/// A connection, and how it ended.
pub(super) struct Connection<'a> {
    pub(super) ends: Ends<'a>,
    pub(super) route: Option<&'a str>,
    pub(super) policy: Option<&'a str>,
    pub(super) detail: Option<&'a str>,
    pub(super) took: Duration,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) ended: SystemTime,
}

/// Both ends.
pub(super) struct Ends<'a> {
    pub(super) caller: &'a Caller,
    pub(super) to: &'a Destination,
    pub(super) port: u16,
    /// The address that the client meant.
    pub(super) meant: Option<SocketAddr>,
    /// The server's name that it asked for, of TLS that is passed on.
    pub(super) sni: Option<&'a str>,
    pub(super) upstream: Option<SocketAddr>,
    pub(super) flags: Flags,
}

impl Subject for Request<'_> {
    fn attribute(&self, attribute: A) -> Value<'_> {
        let (story, moved) = (self.story, self.moved);
        let asked = &story.asked;
        let path = || asked.path.as_ref();
        let kept = story.kept.as_deref();
        let trace = kept.and_then(|kept| kept.trace.as_ref());
        match attribute {
            A::Path => said(path().map(|it| it.as_str())),
            A::UrlPath => said(path().map(|it| it.path())),
            A::Query => said(path().map(|it| it.query().unwrap_or_default())),
            A::Host => said(asked.host()),
            A::Scheme => Value::text("http"),
            A::Method => said(Some(asked.method.as_str())),
            A::Referer => said(kept.and_then(|it| it.request.get("referer")).and_then(text)),
            A::UserAgent => said(asked.user_agent.as_ref().and_then(text)),
            A::RequestId => said(asked.request_id.as_ref().and_then(text)),
            A::Protocol => said(Some(protocol(super::Protocol::Http, asked.version))),
            A::Time => Value::Time(nanos(self.ended) - whole(self.took)),
            A::Duration => Value::Duration(whole(self.took)),
            A::RequestSize | A::RequestTotalSize => number(moved.received),
            A::ResponseSize | A::ResponseTotalSize => number(moved.sent),
            A::Code => Value::Int(story.code.unwrap_or(0).into()),
            A::CodeDetails => said(story.detail.as_deref().or(via(story))),
            A::GrpcStatus => story.grpc.map_or(Value::Null, |it| Value::Int(it.into())),
            A::BackendLatency => match story.first_byte {
                Some(after) if story.tries > 0 => Value::Duration(whole(after)),
                _ => Value::Null,
            },
            A::UpstreamTries => number(story.tries.into()),
            A::UpstreamFailure => said(failure(story.flags, story.detail.as_deref())),
            A::Route => said(story.route.as_deref()),
            A::Policy => said(story.policy.as_deref()),
            A::Metadata => story.metadata.value(),
            A::TraceId => match &story.trace {
                Some(id) => Value::text(id.to_string()),
                None => Value::Null,
            },
            A::SpanId => match trace {
                Some(trace) => Value::text(trace.span().to_string()),
                None => Value::Null,
            },
            other => story.ends().attribute(other),
        }
    }

    fn field(&self, of: Fields, name: &str) -> Option<Cow<'_, str>> {
        let kept = self.story.kept.as_deref()?;
        let headers = match of {
            Fields::RequestHeaders => &kept.request,
            Fields::ResponseHeaders => &kept.response,
            Fields::ResponseTrailers => &kept.trailers,
        };
        joined(headers, name)
    }
}

/// A request that goes on: as it is now, whoever has changed it.
pub(super) struct Going<'a> {
    pub(super) story: &'a Story,
    pub(super) head: &'a http::request::Parts,
    pub(super) authority: &'a str,
    pub(super) destination: SocketAddr,
    pub(super) now: SystemTime,
}

impl Subject for Going<'_> {
    fn attribute(&self, attribute: A) -> Value<'_> {
        let (story, uri) = (self.story, &self.head.uri);
        let header = |name: HeaderName| said(self.head.headers.get(name).and_then(text));
        match attribute {
            A::Path => said(uri.path_and_query().map(|it| it.as_str())),
            A::UrlPath => said(Some(uri.path())),
            A::Query => said(Some(uri.query().unwrap_or_default())),
            A::Host => said(Some(self.authority)),
            A::Scheme => Value::text("http"),
            A::Method => said(Some(self.head.method.as_str())),
            A::Referer => header(REFERER),
            A::UserAgent => header(USER_AGENT),
            A::RequestId => header(super::REQUEST_ID),
            A::Protocol => said(Some(protocol(super::Protocol::Http, story.asked.version))),
            A::Time => Value::Time(nanos(self.now) - whole(story.began.elapsed())),
            A::RequestSize => match header(CONTENT_LENGTH) {
                Value::Text(length) => length.parse().map_or(Value::Null, Value::Int),
                _ => Value::Null,
            },
            A::Route => said(story.route.as_deref()),
            A::Metadata => story.metadata.value(),
            A::TraceId => match &story.trace {
                Some(id) => Value::text(id.to_string()),
                None => Value::Null,
            },
            // With its port, as Envoy has it where requests are processed.
            A::SourceAddress => Value::text(story.caller.client.address.to_string()),
            A::DestinationAddress => Value::text(self.destination.to_string()),
            // Nothing has been answered, and nobody asked yet.
            A::Flags | A::FlagLetters => Value::Null,
            other => story.ends().attribute(other),
        }
    }

    fn field(&self, of: Fields, name: &str) -> Option<Cow<'_, str>> {
        match of {
            Fields::RequestHeaders => joined(&self.head.headers, name),
            Fields::ResponseHeaders | Fields::ResponseTrailers => None,
        }
    }
}

impl Story {
    fn ends(&self) -> Ends<'_> {
        Ends {
            caller: &self.caller,
            to: &self.to,
            port: self.port,
            meant: self.meant,
            sni: None,
            upstream: self.upstream,
            flags: self.flags,
        }
    }
}

impl Subject for Connection<'_> {
    fn attribute(&self, attribute: A) -> Value<'_> {
        match attribute {
            A::Protocol => Value::text("TCP"),
            A::Time => Value::Time(nanos(self.ended) - whole(self.took)),
            A::Duration => Value::Duration(whole(self.took)),
            A::RequestSize | A::RequestTotalSize => number(self.received),
            A::ResponseSize | A::ResponseTotalSize => number(self.sent),
            A::Code => Value::Int(0),
            A::Route => said(self.route),
            A::Policy => said(self.policy),
            A::CodeDetails | A::Termination => said(self.detail),
            A::UpstreamFailure => said(failure(self.ends.flags, self.detail)),
            other => self.ends.attribute(other),
        }
    }

    fn field(&self, _: Fields, _: &str) -> Option<Cow<'_, str>> {
        None
    }
}

impl<'a> Ends<'a> {
    fn attribute(&self, attribute: A) -> Value<'a> {
        let (client, to) = (&self.caller.client, self.to);
        let side: &'a Side = &self.caller.side;
        let workload = to.workload.as_deref();
        let there = |part: fn(&Workload) -> &std::sync::Arc<str>| {
            said(workload.map(|it| &**part(it)).filter(|it| !it.is_empty()))
        };
        match attribute {
            A::Flags => Value::Int(envoys(self.flags)),
            A::FlagLetters => Value::text(self.flags.to_string()),
            A::SourceAddress => Value::text(client.address.ip().to_string()),
            A::SourcePort => Value::Int(client.address.port().into()),
            // Who asks for a service by name means no address, and the service may have none.
            A::DestinationAddress => match self.meant.map(|it| it.ip().to_canonical()) {
                Some(ip) if !ip.is_unspecified() => Value::text(ip.to_string()),
                _ => Value::Null,
            },
            A::DestinationPort => Value::Int(self.port.into()),
            A::ServerName => said(self.sni),
            A::Mtls => Value::Bool(client.identity.is_some()),
            A::TlsVersion if client.identity.is_some() => Value::text("TLSv1.3"),
            A::PeerIdentity | A::SourceIdentity => said(known(&side.principal)),
            A::UpstreamAddress => self.upstream.map_or(Value::Null, |it| {
                Value::text(it.ip().to_canonical().to_string())
            }),
            A::UpstreamPort => match self.upstream {
                Some(at) => Value::Int(at.port().into()),
                None => Value::Null,
            },
            A::UpstreamIdentity | A::DestinationIdentity => identity(to.identity.as_ref()),
            A::Service => said(to.service.as_ref().map(|it| &*it.hostname)),
            A::Cluster => match &to.service {
                Some(it) => Value::text(format!("inbound-vip|{}|http|{}", self.port, it.hostname)),
                None => Value::Null,
            },
            A::SourceWorkload => said(known(&side.workload)),
            A::SourceNamespace => said(known(&side.namespace)),
            A::SourceCluster => said(known(&side.cluster)),
            A::SourceService | A::SourceApp => said(known(&side.canonical_service)),
            A::SourceRevision | A::SourceVersion => said(known(&side.canonical_revision)),
            A::DestinationWorkload => there(|it| &it.workload_name),
            A::DestinationNamespace => there(|it| &it.namespace),
            A::DestinationCluster => there(|it| &it.cluster),
            A::DestinationService | A::DestinationApp => there(|it| &it.canonical_name),
            A::DestinationRevision | A::DestinationVersion => there(|it| &it.canonical_revision),
            _ => Value::Null,
        }
    }
}

/// Of one name all values, as HTTP joins them.
pub(super) fn joined<'h>(headers: &'h HeaderMap, name: &str) -> Option<Cow<'h, str>> {
    let mut values = headers.get_all(name).iter().filter_map(text);
    let first = values.next()?;
    let mut joined = Cow::Borrowed(first);
    for next in values {
        let joined = joined.to_mut();
        joined.push(',');
        joined.push_str(next);
    }
    Some(joined)
}

/// Where nothing went differently: Envoy's word for that.
fn via(story: &Story) -> Option<&'static str> {
    (story.tries > 0 && story.code.is_some()).then_some("via_upstream")
}

fn failure(flags: Flags, detail: Option<&str>) -> Option<&str> {
    detail.filter(|_| flags.has(Flag::UpstreamConnectFailure))
}

pub(super) fn said(text: Option<&str>) -> Value<'_> {
    text.map_or(Value::Null, Value::text)
}

fn known(label: &str) -> Option<&str> {
    Some(label).filter(|label| *label != UNKNOWN && !label.is_empty())
}

fn identity(identity: Option<&Identity>) -> Value<'static> {
    identity.map_or(Value::Null, |it| Value::text(it.to_string()))
}

pub(super) fn number(number: u64) -> Value<'static> {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

pub(super) fn whole(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

pub(super) fn nanos(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, whole)
}

/// As Envoy numbers them; zero where it has no such flag.
fn envoys(flags: Flags) -> i64 {
    let bits = [
        (Flag::NoHealthyUpstream, 1),
        (Flag::UpstreamTimeout, 2),
        (Flag::LocalReset, 3),
        (Flag::UpstreamReset, 4),
        (Flag::UpstreamConnectFailure, 5),
        (Flag::UpstreamClosed, 6),
        (Flag::UpstreamOverflow, 7),
        (Flag::NoRoute, 8),
        (Flag::DelayInjected, 9),
        (Flag::FaultInjected, 10),
        (Flag::RateLimited, 11),
        (Flag::Unauthorized, 12),
        (Flag::RateLimitServiceError, 13),
        (Flag::DownstreamClosed, 14),
        (Flag::RetriesExhausted, 15),
        (Flag::IdleTimeout, 16),
        (Flag::DownstreamProtocolError, 18),
        (Flag::DurationTimeout, 22),
        (Flag::UpstreamProtocolError, 23),
        (Flag::NoCluster, 24),
        (Flag::Overloaded, 25),
        (Flag::NameUnresolved, 26),
    ];
    let set = bits.into_iter().filter(|(flag, _)| flags.has(*flag));
    set.map(|(_, bit)| 1_i64 << bit).sum()
}
