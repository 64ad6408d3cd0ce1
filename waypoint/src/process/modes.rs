//! Which parts of a request and of its answer a processor is shown.

use api::ext_proc::ProcessingMode;
use api::ext_proc::processing_mode::{BodySendMode, HeaderSendMode};
use api::waypoint as wire;
use wire::processor::BodyMode;

/// Both ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Modes {
    /// Of the request.
    pub there: Parts,
    /// Of the answer.
    pub back: Parts,
}

/// One way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parts {
    /// Its headers.
    pub headers: bool,
    /// Its body.
    pub body: Body,
    /// Its trailers.
    pub trailers: bool,
}

/// How a body is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Body {
    /// It is not.
    #[default]
    None,
    /// All of it at once; one that is too large is refused.
    Whole,
    /// Its beginning.
    Beginning,
    /// Piece by piece, and an answer to each.
    Pieces,
    /// Piece by piece; others come back as the processor likes.
    Duplex,
}

impl Parts {
    /// Whether something is shown.
    pub fn any(self) -> bool {
        self.headers || self.body != Body::None || self.trailers
    }
}

impl Modes {
    pub(super) fn compile(of: &wire::Processor) -> Result<Self, String> {
        let parts = |headers, body, trailers| {
            let body = Body::compile(body)?;
            Ok::<_, String>(Parts {
                headers,
                body,
                // Where they end, its own pieces end.
                trailers: trailers || body == Body::Duplex,
            })
        };
        Ok(Self {
            there: parts(of.request_headers, of.request_body, of.request_trailers)?,
            back: parts(of.response_headers, of.response_body, of.response_trailers)?,
        })
    }

    /// Whether nobody has to wait until it is shown all that it is to be shown.
    pub(super) fn stands_aside(self) -> bool {
        let bodies = [self.there.body, self.back.body];
        bodies
            .iter()
            .all(|it| matches!(it, Body::None | Body::Pieces))
    }

    /// What it is told of them at first: of the request's body and the answer's.
    pub(super) fn bodies(self) -> (BodySendMode, BodySendMode) {
        (self.there.body.told(), self.back.body.told())
    }

    /// As it asks for. Where bodies go both ways at once it is too late to ask; others may not be made so.
    #[must_use]
    pub fn overridden(self, by: &ProcessingMode) -> Self {
        let bodies = [by.request_body_mode(), by.response_body_mode()];
        let duplex = [self.there.body, self.back.body].contains(&Body::Duplex);
        let Some([there, back]) = bodies
            .iter()
            .map(|mode| Body::asked(*mode))
            .collect::<Option<Vec<_>>>()
            .and_then(|bodies| <[Body; 2]>::try_from(bodies).ok())
            .filter(|_| !duplex)
        else {
            return self;
        };
        let shown = |mode: HeaderSendMode, now: bool| match mode {
            HeaderSendMode::Default => now,
            HeaderSendMode::Send => true,
            HeaderSendMode::Skip => false,
        };
        Self {
            there: Parts {
                headers: self.there.headers,
                body: there,
                trailers: shown(by.request_trailer_mode(), self.there.trailers),
            },
            back: Parts {
                headers: shown(by.response_header_mode(), self.back.headers),
                body: back,
                trailers: shown(by.response_trailer_mode(), self.back.trailers),
            },
        }
    }
}

impl Body {
    fn compile(mode: i32) -> Result<Self, String> {
        let mode = BodyMode::try_from(mode).map_err(|_| format!("no body is shown as {mode}"))?;
        Ok(match mode {
            BodyMode::None => Self::None,
            BodyMode::Buffered => Self::Whole,
            BodyMode::BufferedPartial => Self::Beginning,
            BodyMode::Streamed => Self::Pieces,
            BodyMode::FullDuplexStreamed => Self::Duplex,
        })
    }

    fn told(self) -> BodySendMode {
        match self {
            Self::None => BodySendMode::None,
            Self::Whole => BodySendMode::Buffered,
            Self::Beginning => BodySendMode::BufferedPartial,
            Self::Pieces => BodySendMode::Streamed,
            Self::Duplex => BodySendMode::FullDuplexStreamed,
        }
    }

    fn asked(mode: BodySendMode) -> Option<Self> {
        Some(match mode {
            BodySendMode::None => Self::None,
            BodySendMode::Buffered => Self::Whole,
            BodySendMode::BufferedPartial => Self::Beginning,
            BodySendMode::Streamed => Self::Pieces,
            BodySendMode::FullDuplexStreamed | BodySendMode::Grpc => return None,
        })
    }
}
