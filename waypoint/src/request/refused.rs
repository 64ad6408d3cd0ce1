//! Why a request is not answered by an app, and what its client is told.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::process::{Stopped, answered};
use super::{Exceeded, Unpermitted};
use crate::asked::Unclear;
use crate::authenticate;
use crate::balance::NoEndpoint;
use crate::limit::Told;
use crate::load::Overloaded;
use crate::permission::Denial;
use crate::report::{Flag, Report};
use crate::upstream::{Answer, Failed, NoWay};

/// A request that no app answers.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// There is too much to do.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// It can be read in more than one way.
    #[error(transparent)]
    Unclear(#[from] Unclear),
    /// It does not say in one way where it ends.
    #[error("the request's length can be read in more than one way")]
    Framing,
    /// It has more header fields than anybody needs.
    #[error("too many header fields")]
    TooManyFields,
    /// The rest of its body did not come.
    #[error("no byte of the body came for too long")]
    Silent,
    /// Its target cannot be written.
    #[error("the request's target cannot be read")]
    Target,
    /// Its token is not good.
    #[error("token refused: {refused}")]
    Token {
        /// Why.
        refused: authenticate::Refused,
        /// `www-authenticate`
        challenge: Option<HeaderValue>,
    },
    /// It may not: why.
    #[error("{0}")]
    Denied(String),
    /// Whoever had to be asked did not agree.
    #[error("{}", unpermitted(.provider, .why))]
    Unpermitted {
        /// The provider's key.
        provider: String,
        /// What came of it.
        why: Unpermitted,
    },
    /// It ends with a processor.
    #[error("{}", .why.words(.processor))]
    Processed {
        /// Whose object it is.
        processor: Arc<str>,
        /// Why.
        why: Box<Stopped>,
    },
    /// Bytes that are not HTTP, where somebody must be shown all that passes.
    #[error(
        "bytes that are not HTTP cannot be shown to {0}, without which nothing passes; where something else is wanted, \
         declare it at the service's port (appProtocol: tcp)"
    )]
    Unshown(Arc<str>),
    /// There have been too many like it.
    #[error("more than {} requests in {:?}: limit {}", .0.requests, .0.window, .0.name)]
    Limited(Told),
    /// The same, by somebody who counts for all proxies together.
    #[error("{}", exceeded(.0))]
    Exceeded(Box<Exceeded>),
    /// It cannot be found out whether there have been too many.
    #[error("{0} cannot be asked")]
    Uncounted(String),
    /// No rule is for it.
    #[error("no rule of the service is for this request")]
    NoRoute,
    /// Its rule cannot be followed: why.
    #[error("{0}")]
    Broken(String),
    /// `CONNECT` to somewhere else.
    #[error("this is no forward proxy")]
    Connect,
    /// What its connection was for is behind another waypoint now, or behind none, or there no more.
    #[error("what this connection was for is not fronted by this waypoint any more")]
    NotOurs,
    /// The service has nobody who could answer.
    #[error("no endpoint: {0}")]
    NoEndpoint(#[from] NoEndpoint),
    /// Something is said of how it is called that cannot be followed: why.
    #[error("the service cannot be called as its policies say: {0}")]
    Uncallable(String),
    /// As much is on its way to it as may be.
    #[error("the service's limit of requests or connections at a time is reached")]
    Full,
    /// It cannot be reached from here.
    #[error(transparent)]
    NoWay(#[from] NoWay),
    /// It did not answer.
    #[error("upstream connect error or disconnect/reset before headers: {0}")]
    Failed(#[from] Failed),
    /// It speaks another protocol now, and nobody asked for that.
    #[error("the endpoint has switched to another protocol unasked")]
    Switched,
    /// It did not answer in time.
    #[error("upstream request timeout")]
    Timeout,
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Unclear(_) | Self::Framing | Self::Target | Self::Connect => {
                StatusCode::BAD_REQUEST
            }
            Self::TooManyFields => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Silent => StatusCode::REQUEST_TIMEOUT,
            Self::Token { refused, .. } => refused.status(),
            Self::Denied(_) | Self::Unshown(_) => StatusCode::FORBIDDEN,
            Self::Unpermitted { why, .. } => match why {
                Unpermitted::Denied(denial) => denial.status,
                Unpermitted::Unanswered(status, _) => *status,
                Unpermitted::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                Unpermitted::Unread => StatusCode::BAD_REQUEST,
            },
            Self::Processed { why, .. } => why.status(),
            Self::Limited(_) | Self::Exceeded(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Uncounted(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Broken(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Timeout | Self::Failed(Failed::Late(_)) => StatusCode::GATEWAY_TIMEOUT,
            Self::Overloaded(_)
            | Self::NotOurs
            | Self::NoEndpoint(_)
            | Self::Uncallable(_)
            | Self::Full
            | Self::NoWay(_)
            | Self::Failed(_)
            | Self::Switched => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// None where the status and the policy's name say it all, as Envoy has it.
    fn flag(&self) -> Option<Flag> {
        Some(match self {
            Self::Overloaded(_) => Flag::Overloaded,
            Self::Unclear(_)
            | Self::Framing
            | Self::TooManyFields
            | Self::Target
            | Self::Unshown(_)
            | Self::Connect => Flag::DownstreamProtocolError,
            Self::Silent => Flag::IdleTimeout,
            Self::Token { .. } | Self::Denied(_) | Self::Processed { .. } => return None,
            Self::Unpermitted { why, .. } => match why {
                Unpermitted::Denied(_) | Unpermitted::Unanswered(..) => Flag::Unauthorized,
                Unpermitted::TooLarge => return None,
                Unpermitted::Unread => Flag::DownstreamProtocolError,
            },
            Self::Limited(_) | Self::Exceeded(_) => Flag::RateLimited,
            Self::Uncounted(_) => Flag::RateLimitServiceError,
            Self::NoRoute | Self::NotOurs => Flag::NoRoute,
            Self::Broken(_) => Flag::NoCluster,
            Self::NoEndpoint(_) | Self::NoWay(_) | Self::Uncallable(_) => Flag::NoHealthyUpstream,
            Self::Full | Self::Failed(Failed::Overflow) => Flag::UpstreamOverflow,
            Self::Timeout | Self::Failed(Failed::Late(_)) => Flag::UpstreamTimeout,
            Self::Failed(failed) if failed.is_connect() => Flag::UpstreamConnectFailure,
            Self::Failed(_) => Flag::UpstreamClosed,
            Self::Switched => Flag::UpstreamProtocolError,
        })
    }

    /// What the client is told: never where an endpoint is, or how it failed.
    fn text(&self) -> Cow<'static, str> {
        match self {
            Self::Overloaded(why) => why.to_string().into(),
            Self::Unclear(why) => why.to_string().into(),
            Self::Framing => "bad request length".into(),
            Self::TooManyFields => "too many header fields".into(),
            Self::Silent => "request timeout".into(),
            Self::Target => "bad request target".into(),
            Self::Token { refused, .. } => refused.to_string().into(),
            Self::Denied(_) | Self::Unshown(_) => "RBAC: access denied".into(),
            Self::Unpermitted { why, .. } => match why {
                // It has its own words.
                Unpermitted::Denied(_) => "denied".into(),
                Unpermitted::Unanswered(..) => "access cannot be checked".into(),
                Unpermitted::TooLarge => "Payload Too Large".into(),
                Unpermitted::Unread => "the body did not come".into(),
            },
            Self::Processed { why, .. } => why.text().into(),
            Self::Limited(_) | Self::Exceeded(_) => "too many requests".into(),
            Self::Uncounted(_) => "the rate limit cannot be checked".into(),
            Self::NoRoute => "no route".into(),
            Self::Broken(_) => "the route cannot be followed".into(),
            Self::Connect => "CONNECT is not served".into(),
            Self::NotOurs => "not served here any more".into(),
            Self::NoEndpoint(_) | Self::NoWay(_) | Self::Uncallable(_) => {
                "no healthy upstream".into()
            }
            Self::Full | Self::Failed(Failed::Overflow) => {
                "upstream connect error or disconnect/reset before headers: overflow".into()
            }
            Self::Timeout | Self::Failed(Failed::Late(_)) => "upstream request timeout".into(),
            Self::Failed(_) | Self::Switched => {
                "upstream connect error or disconnect/reset before headers".into()
            }
        }
    }

    /// Whether what follows may be something else to others than to us: over HTTP/1.1 nothing is read of it.
    fn ends_the_connection(&self) -> bool {
        matches!(
            self,
            Self::Unclear(_) | Self::Framing | Self::TooManyFields | Self::Target | Self::Connect
        )
    }

    /// The answer, noted in the report.
    pub fn answer(&self, grpc: bool, report: &mut Report) -> Response<Answer> {
        if let Some(flag) = self.flag() {
            report.flag(flag);
        }
        if matches!(self, Self::Failed(failed) if failed.is_revocation()) {
            report.flag(Flag::CertificateRevoked);
        }
        report.detail(self.to_string());
        if let Self::Unpermitted {
            why: Unpermitted::Denied(denial),
            ..
        } = self
        {
            return denied(grpc, denial);
        }
        if let Self::Processed { why, .. } = self
            && let Stopped::Answered(own) = &**why
        {
            return answered(grpc, own);
        }
        let mut answer = plain(grpc, self.status(), &self.text());
        if let Self::Exceeded(exceeded) = self
            && !grpc
            && !exceeded.body.is_empty()
        {
            *answer.body_mut() = Answer::whole(exceeded.body.clone());
        }
        let headers = answer.headers_mut();
        if self.ends_the_connection() {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        match self {
            Self::Token {
                challenge: Some(challenge),
                ..
            } => {
                headers.insert(header::WWW_AUTHENTICATE, challenge.clone());
            }
            Self::Limited(told) => told.write(headers),
            Self::Exceeded(exceeded) => exceeded.write(headers),
            _ => {}
        }
        answer
    }
}

fn exceeded(exceeded: &Exceeded) -> String {
    let provider = &exceeded.provider;
    match &exceeded.told {
        Some(told) => format!("{}, as {provider} counts", Refused::Limited(told.clone())),
        None => format!("{provider} says that it is one too many"),
    }
}

/// For a person who looks into the log.
fn unpermitted(provider: &str, why: &Unpermitted) -> String {
    match why {
        Unpermitted::Denied(denial) => format!("provider {provider} denies it: {}", denial.status),
        Unpermitted::Unanswered(_, why) => format!("provider {provider} cannot be asked: {why}"),
        Unpermitted::TooLarge => {
            format!("the body is larger than provider {provider} may be shown")
        }
        Unpermitted::Unread => {
            format!("the body that provider {provider} must be shown did not come")
        }
    }
}

/// What an authorizer has said, in its own words.
fn denied(grpc: bool, denial: &Denial) -> Response<Answer> {
    let text = String::from_utf8_lossy(&denial.body);
    let mut answer = plain(grpc, denial.status, &text);
    if !grpc {
        *answer.body_mut() = Answer::whole(denial.body.clone());
    }
    let headers = answer.headers_mut();
    for name in denial.headers.keys() {
        if grpc && (*name == header::CONTENT_TYPE || name.as_str().starts_with("grpc-")) {
            continue;
        }
        headers.remove(name);
        for value in denial.headers.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    answer
}

/// An answer of our own: a text, or as gRPC has it.
pub(crate) fn plain(grpc: bool, status: StatusCode, text: &str) -> Response<Answer> {
    let type_of = |kind| (header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let mut answer = if grpc {
        let mut answer = Response::new(Answer::empty());
        let headers = answer.headers_mut();
        let (name, kind) = type_of("application/grpc");
        headers.insert(name, kind);
        headers.insert("grpc-status", HeaderValue::from(grpc_status(status)));
        if let Ok(text) = HeaderValue::try_from(percent(text)) {
            headers.insert("grpc-message", text);
        }
        return answer;
    } else {
        Response::new(Answer::whole(Bytes::copy_from_slice(text.as_bytes())))
    };
    *answer.status_mut() = status;
    let (name, kind) = type_of("text/plain");
    answer.headers_mut().insert(name, kind);
    answer
}

/// As gRPC clients read HTTP statuses.
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// Texts of gRPC: printable ASCII, the rest escaped.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}
