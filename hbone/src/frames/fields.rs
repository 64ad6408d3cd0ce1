//! Header fields as they are decoded: checked, and what a mesh knows of them kept.

use crate::{incoming::ResponseHeaders, request::RequestHeaders};

/// A request's method.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    /// The only one that is served.
    Connect,
    /// Any other; its first 80 characters.
    Other(Box<str>),
}

/// What a request says. Well-formed, which is not yet acceptable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    /// `:method`.
    pub method: Method,
    /// `:authority`, as it was written; empty if there was none.
    pub authority: Box<str>,
    /// The headers that mean something to a mesh.
    pub headers: RequestHeaders,
}

/// What a response says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    /// `:status`, 200 to 999.
    pub status: u16,
    /// The headers that mean something to a mesh.
    pub headers: ResponseHeaders,
}
