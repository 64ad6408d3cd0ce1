//! Who may read answers in a browser (the Fetch standard's CORS protocol).

use api::waypoint as wire;
use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName,
    HeaderValue, ORIGIN, VARY,
};
use http::{Method, StatusCode, request, response};

use super::answer::{Answer, Reason};
use crate::route::Text;

/// Which pages of other origins may do what.
#[derive(Debug, Clone)]
pub struct Cors {
    any_origin: bool,
    origins: Box<[Text]>,
    credentials: bool,
    methods: List,
    headers: List,
    expose: List,
    max_age: Option<HeaderValue>,
    forward_unmatched: bool,
}

/// What is allowed, as it stands in a header.
#[derive(Debug, Clone)]
enum List {
    Nothing,
    These(HeaderValue),
    Any,
}

/// A page that may: what the answer to its request gets.
#[derive(Debug, Clone)]
pub struct Granted<'r> {
    cors: &'r Cors,
    origin: HeaderValue,
}

const ANY: HeaderValue = HeaderValue::from_static("*");
const TRUE: HeaderValue = HeaderValue::from_static("true");

impl Cors {
    /// What is wrong with it, or the policy.
    pub fn compile(wire: &wire::Cors) -> Result<Self, String> {
        let origins = wire.origins.iter().map(Text::compile);
        Ok(Self {
            any_origin: wire.any_origin,
            origins: origins.collect::<Result<_, _>>()?,
            credentials: wire.credentials,
            methods: List::compile(&wire.methods)?,
            headers: List::compile(&wire.headers)?,
            expose: List::compile(&wire.expose)?,
            max_age: (wire.max_age_seconds > 0).then(|| HeaderValue::from(wire.max_age_seconds)),
            forward_unmatched: wire.forward_unmatched,
        })
    }

    /// Whether the request comes from a page that may.
    pub(super) fn grant(&self, parts: &request::Parts) -> Option<Granted<'_>> {
        let origin = parts.headers.get(ORIGIN)?;
        let named = |text: &Text| text.matches(Some(origin.as_bytes()));
        let may = self.any_origin || self.origins.iter().any(named);
        may.then(|| Granted {
            cors: self,
            origin: origin.clone(),
        })
    }

    /// The answer to a preflight; None if the request is none, or is one for the app.
    pub(super) fn answer(
        &self,
        parts: &request::Parts,
        granted: Option<&Granted<'_>>,
    ) -> Option<Answer> {
        let asks = &parts.headers;
        let preflight = parts.method == Method::OPTIONS
            && asks.contains_key(ORIGIN)
            && asks.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if !preflight || (granted.is_none() && self.forward_unmatched) {
            return None;
        }
        let mut headers = HeaderMap::new();
        if granted.is_some() {
            self.allow(asks, &mut headers);
        }
        Some(Answer {
            status: StatusCode::OK,
            headers,
            body: Bytes::new(),
            reason: Reason::Preflight,
        })
    }

    /// With credentials `*` is but a word to a browser, so what was asked for is said again.
    fn allow(&self, asks: &HeaderMap, headers: &mut HeaderMap) {
        let lists = [
            (
                &self.methods,
                ACCESS_CONTROL_REQUEST_METHOD,
                ACCESS_CONTROL_ALLOW_METHODS,
            ),
            (
                &self.headers,
                ACCESS_CONTROL_REQUEST_HEADERS,
                ACCESS_CONTROL_ALLOW_HEADERS,
            ),
        ];
        for (list, asked, name) in lists {
            let value = match list {
                List::Nothing => None,
                List::These(these) => Some(these.clone()),
                List::Any if self.credentials => asks.get(asked).cloned(),
                List::Any => Some(ANY),
            };
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        if let Some(age) = &self.max_age {
            headers.insert(ACCESS_CONTROL_MAX_AGE, age.clone());
        }
    }
}

impl Granted<'_> {
    /// Lets the page see the answer. What the app itself says of origins is replaced.
    pub fn response(&self, parts: &mut response::Parts) {
        self.headers(&mut parts.headers);
    }

    fn headers(&self, headers: &mut HeaderMap) {
        let anybody = self.cors.any_origin && !self.cors.credentials;
        let origin = if anybody { ANY } else { self.origin.clone() };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.cors.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        } else {
            headers.remove(ACCESS_CONTROL_ALLOW_CREDENTIALS);
        }
        match &self.cors.expose {
            List::Nothing => {}
            List::These(these) => {
                headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, these.clone());
            }
            List::Any => {
                headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, ANY);
            }
        }
        // A cache must not give one origin's answer to another.
        if !anybody {
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
    }
}

impl List {
    fn compile(words: &[String]) -> Result<Self, String> {
        if words.iter().any(|word| word == "*") {
            return Ok(Self::Any);
        }
        if words.is_empty() {
            return Ok(Self::Nothing);
        }
        for word in words {
            // Methods and names of headers are tokens alike.
            HeaderName::from_bytes(word.as_bytes())
                .map_err(|_| format!("CORS allows {word:?}, which is no method or header"))?;
        }
        let value = HeaderValue::try_from(words.join(", "));
        value.map(Self::These).map_err(|error| error.to_string())
    }
}
