//! `/explain?…`: a request that somebody describes.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// What may be said.
pub const USAGE: &str = "/explain?host=HOST[&port=80][&method=GET][&path=/][&header=name:value]…\
[&identity=spiffe://…][&address=IP][&claims={\"iss\":…}]\n";

/// The request that somebody describes.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Host of the service, or what the request calls it.
    pub host: String,
    /// The service's port.
    pub port: u16,
    /// Its method.
    pub method: Method,
    /// Its path, with query.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// The client's identity, `spiffe://…`.
    pub identity: Option<String>,
    /// The client's address.
    pub address: Option<IpAddr>,
    /// A good token's payload.
    pub claims: Option<serde_json::Value>,
}

impl Question {
    /// Reads a query.
    ///
    /// # Errors
    /// What is wrong with it, for the person who wrote it.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut question = Self {
            host: String::new(),
            port: 80,
            method: Method::GET,
            path: "/".to_owned(),
            headers: HeaderMap::new(),
            identity: None,
            address: None,
            claims: None,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            question.take(name, decoded(value)?)?;
        }
        if question.host.is_empty() {
            return Err("host is missing".to_owned());
        }
        Ok(question)
    }

    /// What clients ask for: the host, with its port where that is not the usual one.
    pub fn authority(&self) -> Cow<'_, str> {
        match self.port {
            80 => Cow::Borrowed(self.host.as_str()),
            port => Cow::Owned(format!("{}:{port}", self.host)),
        }
    }

    fn take(&mut self, name: &str, value: String) -> Result<(), String> {
        let wrong = |what: &str| format!("{name}: {value:?} is not {what}");
        match name {
            "host" => self.host = value.to_ascii_lowercase(),
            "port" => self.port = value.parse().map_err(|_| wrong("a port"))?,
            "method" => self.method = value.parse().map_err(|_| wrong("a method"))?,
            "path" if value.starts_with('/') || value == "*" => self.path = value,
            "path" => return Err(wrong("a path: it begins with /")),
            "header" => {
                let (name, text) = value.split_once(':').ok_or_else(|| wrong("name:value"))?;
                let name: HeaderName = name.trim().parse().map_err(|_| wrong("a header"))?;
                let text: HeaderValue = text.trim().parse().map_err(|_| wrong("a header"))?;
                self.headers.append(name, text);
            }
            "identity" => {
                value
                    .parse::<hbone::Identity>()
                    .map_err(|error| error.to_string())?;
                self.identity = Some(value);
            }
            "address" => self.address = Some(value.parse().map_err(|_| wrong("an address"))?),
            "claims" => {
                let claims = serde_json::from_str(&value).map_err(|_| wrong("JSON"))?;
                self.claims = Some(claims);
            }
            _ => return Err(format!("{name} is not something that can be said")),
        }
        Ok(())
    }
}

/// `%41` and `+`.
fn decoded(text: &str) -> Result<String, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                match (digit(bytes.next()), digit(bytes.next())) {
                    (Some(high), Some(low)) => (high << 4 | low) as u8,
                    _ => return Err(format!("{text:?} is badly escaped")),
                }
            }
            byte => byte,
        });
    }
    String::from_utf8(out).map_err(|_| format!("{text:?} is not UTF-8"))
}
