//! Tokens of requests: which are good, and what they say.

use serde_json::{Map, Value};

/// The payload of a token that was found good.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    /// `iss`
    pub issuer: String,
    /// `sub`; empty if there is none.
    pub subject: String,
    /// `aud`, one or several.
    pub audiences: Vec<String>,
    /// All of it.
    pub all: Map<String, Value>,
}
