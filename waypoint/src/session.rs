//! Clients that stay with their endpoint (Gateway API, GEP-1619).
//!
//! The first answer gives a client a token, in a cookie or a header; with it, later requests say which endpoint they
//! want:
//!
//! 1. what the client brought is read          ([`Session::wanted`])
//! 2. the balancer looks for that endpoint     ([`Endpoint`] of each, compared)
//! 3. the answer says whom it stays with now   ([`Session::keep`])
//!
//! A token is opaque: it has no address or name in it, only a digest of the service's and the endpoint's names, so every
//! replica of a proxy understands it without a key in common. Whoever makes one up chooses among the endpoints of a service
//! that they may call anyway.

use std::time::{Duration, SystemTime};

use api::waypoint as wire;
use api::waypoint::session::By as Wire;
use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{COOKIE, HeaderMap, HeaderName, HeaderValue, SET_COOKIE};

/// Where tokens are kept, and for how long they are good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    by: By,
    absolute: Option<Duration>,
    idle: Option<Duration>,
    permanent: bool,
    path: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum By {
    Cookie(Box<str>),
    Header(HeaderName),
}

/// An endpoint of a service, as a token says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoint([u8; 12]);

/// What a client brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Whom it stays with.
    pub endpoint: Endpoint,
    /// When the session began and when it was last said to go on: seconds since 1970.
    began: u32,
    seen: u32,
}

/// The form of tokens; another form is another number.
const FORM: u8 = 1;
const LENGTH: usize = 1 + 12 + 4 + 4;
/// Cookies of one name that are looked at.
const COOKIES: usize = 8;

impl Endpoint {
    /// Of the workload with that uid, as one of that service's.
    pub fn of(namespace: &str, hostname: &str, uid: &str) -> Self {
        let mut digest = Context::new(&SHA256);
        for name in [namespace, hostname, uid] {
            digest.update(name.as_bytes());
            digest.update(&[0]);
        }
        let mut start = [0; 12];
        start.copy_from_slice(&digest.finish().as_ref()[..12]);
        Self(start)
    }
}

impl Session {
    /// What is wrong with it, or the session.
    pub fn compile(wire: &wire::Session) -> Result<Self, String> {
        let some = |milliseconds| (milliseconds > 0).then(|| Duration::from_millis(milliseconds));
        let by = match &wire.by {
            Some(Wire::Cookie(name)) => By::Cookie(cookie(name)?.into()),
            Some(Wire::Header(name)) => By::Header(
                HeaderName::from_bytes(name.as_bytes())
                    .map_err(|_| format!("session: {name:?} is not a name of a header"))?,
            ),
            None => return Err("a session that is kept nowhere".into()),
        };
        let path = match wire.path.as_str() {
            "" => "/",
            path if path
                .bytes()
                .all(|byte| matches!(byte, b' '..=b'~' if byte != b';')) =>
            {
                path
            }
            other => return Err(format!("session: {other:?} is no path of a cookie")),
        };
        Ok(Self {
            by,
            absolute: some(wire.absolute_timeout),
            idle: some(wire.idle_timeout),
            permanent: wire.permanent,
            path: path.into(),
        })
    }

    /// Whom the client wants to stay with, if it says so and its session is not over.
    pub fn wanted(&self, headers: &HeaderMap, now: SystemTime) -> Option<Wanted> {
        let now = seconds(now);
        let wanted = match &self.by {
            By::Header(name) => Wanted::read(headers.get(name)?.to_str().ok()?),
            By::Cookie(name) => cookies(headers, name).take(COOKIES).find_map(Wanted::read),
        }?;
        let over = |since: u32, limit: Option<Duration>| {
            let age = Duration::from_secs(now.saturating_sub(since).into());
            limit.is_some_and(|limit| age >= limit)
        };
        (!over(wanted.began, self.absolute) && !over(wanted.seen, self.idle)).then_some(wanted)
    }

    /// What is added to the answer of the endpoint that was chosen; None if the client knows it already.
    pub fn keep(
        &self,
        chosen: Endpoint,
        wanted: Option<&Wanted>,
        now: SystemTime,
    ) -> Option<(HeaderName, HeaderValue)> {
        let now = seconds(now);
        let began = match wanted.filter(|wanted| wanted.endpoint == chosen) {
            Some(wanted) if !self.stale(wanted, now) => return None,
            Some(wanted) => wanted.began,
            None => now,
        };
        let token = Wanted {
            endpoint: chosen,
            began,
            seen: now,
        };
        let (name, value) = match &self.by {
            By::Header(name) => (name.clone(), token.write()),
            By::Cookie(name) => (SET_COOKIE, self.cookie(name, &token, now)),
        };
        Some((name, HeaderValue::try_from(value).ok()?))
    }

    /// The idle time is counted from what the token says, so a tenth of it later the token is written anew.
    fn stale(&self, wanted: &Wanted, now: u32) -> bool {
        let since = Duration::from_secs(now.saturating_sub(wanted.seen).into());
        self.idle.is_some_and(|idle| since >= idle / 10)
    }

    fn cookie(&self, name: &str, token: &Wanted, now: u32) -> String {
        let mut text = format!("{name}={}; Path={}; HttpOnly", token.write(), self.path);
        if let Some(limit) = self.absolute.filter(|_| self.permanent) {
            // What a client says began is later than now where clocks differ, or where it has made it up.
            let age = now.saturating_sub(token.began);
            let left = limit.as_secs().saturating_sub(age.into());
            text.push_str(&format!("; Max-Age={left}"));
        }
        text
    }
}

impl Wanted {
    fn read(text: &str) -> Option<Self> {
        let mut bytes = [0; LENGTH + 3]; // what is not of this length is no token
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
        let (form, rest) = bytes.get(..length)?.split_first()?;
        if *form != FORM || length != LENGTH {
            return None;
        }
        let (endpoint, rest) = rest.split_first_chunk::<12>()?;
        let (began, rest) = rest.split_first_chunk::<4>()?;
        let (seen, _) = rest.split_first_chunk::<4>()?;
        Some(Self {
            endpoint: Endpoint(*endpoint),
            began: u32::from_be_bytes(*began),
            seen: u32::from_be_bytes(*seen),
        })
    }

    fn write(&self) -> String {
        let mut bytes = [0; LENGTH];
        bytes[0] = FORM;
        bytes[1..13].copy_from_slice(&self.endpoint.0);
        bytes[13..17].copy_from_slice(&self.began.to_be_bytes());
        bytes[17..].copy_from_slice(&self.seen.to_be_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    }
}

fn seconds(now: SystemTime) -> u32 {
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    })
}

/// A name that a cookie can have: a token of RFC 9110.
fn cookie(name: &str) -> Result<&str, String> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(_) => Ok(name),
        Err(_) => Err(format!("session: {name:?} is not a name of a cookie")),
    }
}

/// Values of the cookies of that name.
fn cookies<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a str> {
    let all = headers.get_all(COOKIE).iter();
    let pairs = all
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'));
    pairs.filter_map(move |pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then(|| value.trim_matches('"'))
    })
}
