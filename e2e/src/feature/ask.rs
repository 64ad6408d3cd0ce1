//! A question, what must come back, and what did.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{SERVICES, SHOP};

/// Some requests like each other, or connections, and what is expected of them.
///
/// A value is compared as [`super::glob`] does; one that is `null` must not be there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ask {
    /// Which client.
    pub from: String,
    /// `http`, `h2` (without TLS), `grpc`, `https`, `ws`, or `tcp`; host names are those of the file's namespace.
    pub url: String,
    /// Of HTTP.
    pub method: String,
    /// Of HTTP.
    pub headers: BTreeMap<String, String>,
    /// The body, or what is sent over `ws` and `tcp`.
    pub bytes: usize,
    /// The name that a TLS client asks for, where it is not the URL's.
    pub sni: Option<String>,
    /// Not there but at the pod itself, at the address that a server of ours says it was asked at when it is asked there first.
    pub around: bool,
    /// How many.
    pub times: usize,
    /// All at once, each on a connection of its own, rather than one after the other.
    pub together: bool,
    /// A header of an answer that is sent back with the next request; `set-cookie` as `cookie`.
    pub keep: Option<String>,

    /// Each answer's status, unless they are counted.
    pub status: u16,
    /// How many were answered by a pod or with a status: at least, at most.
    pub counts: BTreeMap<String, [usize; 2]>,
    /// All by the same pod.
    pub same: bool,
    /// What the app saw as path and query.
    pub path: Option<String>,
    /// What the app saw of headers.
    pub saw: BTreeMap<String, Option<String>>,
    /// Headers of the answer, and trailers.
    pub heads: BTreeMap<String, Option<String>>,
    /// The body, or what came over `tcp`.
    pub text: Option<String>,
    /// Each took as long, milliseconds.
    pub least: u64,
    /// None took longer.
    pub most: Option<u64>,
    /// What stands in the waypoint's log of each.
    pub log: BTreeMap<String, String>,
}

impl Default for Ask {
    fn default() -> Self {
        Self {
            from: "phone".into(),
            url: String::new(),
            method: "GET".into(),
            headers: BTreeMap::new(),
            bytes: 0,
            sni: None,
            around: false,
            times: 1,
            together: false,
            keep: None,
            status: 200,
            counts: BTreeMap::new(),
            same: false,
            path: None,
            saw: BTreeMap::new(),
            heads: BTreeMap::new(),
            text: None,
            least: 0,
            most: None,
            log: BTreeMap::new(),
        }
    }
}

impl Ask {
    /// Whether it is HTTP, passes the waypoint, and all of it is answered with one status.
    pub(super) fn is_certain(&self) -> bool {
        let rest = ["http://", "h2://"].map(|scheme| self.url.strip_prefix(scheme));
        let Some(rest) = rest.into_iter().flatten().next() else {
            return false;
        };
        let host = rest.split(['/', ':']).next();
        let mut behind = SERVICES.iter().filter(|(place, ..)| *place == SHOP);
        let is_behind = behind.any(|(_, name, _)| Some(*name) == host);
        is_behind && !self.around && self.counts.is_empty() && self.status != 0
    }

    /// For a person.
    pub(super) fn shown(&self) -> String {
        let headers = if self.headers.is_empty() {
            String::new()
        } else {
            format!(" {:?}", self.headers)
        };
        let around = if self.around { " at the pod" } else { "" };
        format!(
            "{} {}{around}{headers} by {}",
            self.method, self.url, self.from
        )
    }
}

/// What came of one of them.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heard {
    /// 0 where there was no answer; of what is not HTTP 200, if it ended well.
    pub status: u16,
    /// Headers and trailers of the answer, those of one name joined.
    pub heads: BTreeMap<String, String>,
    /// What a server of ours said of the request.
    pub said: Value,
    /// The body's beginning.
    pub text: String,
    /// Milliseconds to the end.
    pub took: u64,
    /// Its `x-request-id`.
    pub id: String,
    /// The pod's address, where that was asked.
    pub at: Option<String>,
    /// Why there was none.
    pub error: Option<String>,
}

impl Heard {
    /// The pod that answered.
    pub fn pod(&self) -> &str {
        match self.said["pod"].as_str() {
            Some(pod) => pod,
            // Over TCP it says its name at once.
            None => self.text.lines().next().unwrap_or_default(),
        }
    }
}
