//! Two answers to one request: what of them must be equal, and where they may differ.

use std::collections::BTreeMap;

use super::asks::Ask;
use super::talk::Heard;

/// What counts of an answer: written so that two that mean the same are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) status: u16,
    /// The app that was asked; none if nobody was.
    pub(super) app: Option<String>,
    /// Values of a name in order, with commas.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
    pub(super) seen: Option<Seen>,
}

/// What the app was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: String,
}

/// Of answers: about the connection, or of chance, or what each proxy says of itself.
const NOT_OF_ANSWERS: &[&str] = &[
    "date",
    "server",
    "x-envoy-upstream-service-time",
    "x-seen",
    "x-app",
    "connection",
    "transfer-encoding",
];
/// Of what an app is sent: of chance, what Envoys tell each other, the test's own.
const NOT_OF_REQUESTS: &[&str] = &[
    "x-request-id",
    "x-key",
    "x-envoy-expected-rq-timeout-ms",
    "x-envoy-original-path",
    "x-envoy-original-host",
    "x-envoy-attempt-count",
    "x-envoy-internal",
];

impl Told {
    pub(super) fn of(heard: &Heard) -> Self {
        let app = heard.header("x-app").map(str::to_owned);
        let mut headers = joined(heard.headers.iter().cloned(), NOT_OF_ANSWERS);
        let mut body: String = heard.body.iter().copied().map(char::from).collect();
        if app.is_none()
            && heard.status >= 400
            && headers
                .get("content-type")
                .is_none_or(|kind| kind == "text/plain")
        {
            // Each has its own words for people.
            headers.remove("content-type");
            headers.remove("content-length");
            body.clear();
        }
        Self {
            status: heard.status,
            app,
            headers,
            body,
            seen: heard.header("x-seen").map(Seen::of),
        }
    }
}

impl Seen {
    pub(super) fn of(hex: &str) -> Self {
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
        let text: String = (0..hex.len())
            .step_by(2)
            .map(|at| char::from(byte(at)))
            .collect();
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let mut lines = head.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let pairs = lines.filter_map(|line| line.split_once(": "));
        let pairs = pairs.map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Self {
            line,
            headers: joined(pairs, NOT_OF_REQUESTS),
            body: body.to_owned(),
        }
    }
}

impl Seen {
    /// What tells a copy from its original: Envoy's has another host, and says who has sent it.
    pub(super) fn without_marks_of_copies(mut self) -> Self {
        self.headers.remove("x-forwarded-for");
        if let Some(host) = self.headers.get_mut("host") {
            *host = host.trim_end_matches("-shadow").to_owned();
        }
        // One has a length where the other has chunks.
        self.headers.remove("content-length");
        self.headers.remove("transfer-encoding");
        self
    }
}

fn joined(
    pairs: impl Iterator<Item = (String, String)>,
    without: &[&str],
) -> BTreeMap<String, String> {
    let mut all = BTreeMap::<String, String>::new();
    for (name, value) in pairs.filter(|(name, _)| !without.contains(&&**name)) {
        // A list may be on one line or on several.
        let value: Vec<&str> = value.split(',').map(str::trim).collect();
        let value = value.join(",");
        all.entry(name)
            .and_modify(|all| *all = format!("{all},{value}"))
            .or_insert(value);
    }
    all
}

/// Makes what is written differently alike.
type Make = fn(&Ask, &mut Told);

/// Where two answers may differ in how they are written, by the names of `docs/conformance/waypoint.md`: made alike in both.
/// What is left to differ is no matter of these.
pub(super) const ALIKE: &[(&str, Make)] = &[
    ("no content-length of 0", no_zero),
    ("vary: origin", no_vary),
    ("preflights of strangers", no_preflight),
    ("whose location", plain_location),
    ("escapes in capitals", capitals),
    ("paths as rules write them", normal),
    ("answers to preflights", no_change),
];

/// An HTTP/1.1 client of Envoy's says that there is no body where a method may have one.
fn no_zero(_: &Ask, told: &mut Told) {
    if let Some(seen) = &mut told.seen
        && seen
            .headers
            .get("content-length")
            .is_some_and(|length| length == "0")
    {
        seen.headers.remove("content-length");
    }
}

/// Where the answer is for one origin.
fn no_vary(_: &Ask, told: &mut Told) {
    let one = told.headers.contains_key("access-control-allow-origin");
    if one
        && told
            .headers
            .get("vary")
            .is_some_and(|vary| vary == "origin")
    {
        told.headers.remove("vary");
    }
}

/// To whom nothing is allowed, it need not be said what others may.
fn no_preflight(ask: &Ask, told: &mut Told) {
    let stranger = !told.headers.contains_key("access-control-allow-origin");
    if ask.method == "OPTIONS" && told.app.is_none() && stranger {
        told.headers
            .retain(|name, _| !name.starts_with("access-control-"));
    }
}

/// A redirect to the same host: in lower case, with the port of the listener and not the one that the client wrote.
fn plain_location(ask: &Ask, told: &mut Told) {
    let Some(location) = told.headers.get_mut("location") else {
        return;
    };
    let Some((scheme, rest)) = location.split_once("://") else {
        return;
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let name = |host: &str| host.split(':').next().unwrap_or_default().to_lowercase();
    if name(host) == name(&ask.host) {
        let name = name(host);
        let asked = ask.host.contains(':') && host.ends_with(":80");
        let port = host.split_once(':').filter(|_| !asked);
        let port = port.map(|(_, port)| format!(":{port}")).unwrap_or_default();
        *location = format!("{scheme}://{name}{port}{path}");
    }
}

/// `%c3` and `%C3` are one.
fn capitals(_: &Ask, told: &mut Told) {
    let location = told.headers.get_mut("location");
    for text in location
        .into_iter()
        .chain(told.seen.as_mut().map(|seen| &mut seen.line))
    {
        let mut parts = text.split('%');
        let first = parts.next().unwrap_or_default().to_owned();
        let rest = parts.map(|part| match part.split_at_checked(2) {
            Some((digits, rest)) => format!("%{}{rest}", digits.to_uppercase()),
            None => format!("%{part}"),
        });
        *text = rest.fold(first, |all, part| all + &part);
    }
}

/// A prefix is replaced as text by one, by segments and into a path in its normal form by the other.
fn normal(_: &Ask, told: &mut Told) {
    if let Some(seen) = &mut told.seen {
        seen.line = seen.line.replace("//", "/");
        // What generated rules write in the place of `/`.
        for new in ["/new/", "/n/b/"] {
            seen.line = seen.line.replacen(new, new.trim_end_matches('/'), 1);
        }
    }
}

/// Whether what a rule says of answers is said of a preflight's as well.
fn no_change(ask: &Ask, told: &mut Told) {
    if ask.method == "OPTIONS" && told.app.is_none() && told.status == 200 {
        told.headers.retain(|name, _| !name.starts_with("x-"));
    }
}

/// The same request without what the two read differently, and what that is; nothing if there is nothing of the kind.
pub(super) fn plainly(ask: &Ask) -> Option<(Ask, Vec<&'static str>)> {
    let (mut plain, mut why) = (ask.clone(), Vec::new());
    let names: BTreeMap<String, usize> =
        ask.headers
            .iter()
            .fold(BTreeMap::new(), |mut all, (name, _)| {
                *all.entry(name.to_lowercase()).or_default() += 1;
                all
            });
    if names.values().any(|count| *count > 1) {
        why.push("a header on several lines");
        plain.headers = names
            .keys()
            .map(|name| {
                let same = ask
                    .headers
                    .iter()
                    .filter(|(one, _)| one.eq_ignore_ascii_case(name));
                let values: Vec<&str> = same.map(|(_, value)| &**value).collect();
                (name.clone(), values.join(","))
            })
            .collect();
    }
    let (path, query) = ask.target.split_once('?').unwrap_or((&ask.target, ""));
    let normal = waypoint::asked::normalise(path, waypoint::asked::Form::default()).ok()?;
    if normal != path && (path.contains("..") || path.to_lowercase().contains("%2e")) {
        why.push("slashes before dots");
    } else if normal == "/" && path != "/" {
        why.push("nothing but slashes");
    }
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| !pair.contains(['%', '+']))
        .collect();
    let kept = kept.join("&");
    if kept != query {
        why.push("escapes in queries");
    }
    plain.target = match kept.as_str() {
        "" => normal.into_owned(),
        kept => format!("{normal}?{kept}"),
    };
    (!why.is_empty()).then_some((plain, why))
}

/// The same for policies.
pub(super) fn plainly_for_policies(ask: &Ask) -> Option<(Ask, Vec<&'static str>)> {
    let (mut plain, mut why) = plainly(ask).unwrap_or_else(|| (ask.clone(), Vec::new()));
    if plain.host.contains(':') {
        why.push("a host with its port");
        plain.host = plain.host.split(':').next().unwrap_or_default().to_owned();
    }
    if plain.headers.iter().any(|(_, value)| value.contains(',')) {
        // A list is each of its elements to one that denies.
        why.push("a header that is a list");
        for (_, value) in &mut plain.headers {
            *value = value.split(',').next().unwrap_or_default().to_owned();
        }
    }
    let (path, query) = plain.target.split_once('?').unwrap_or((&plain.target, ""));
    if path.contains(';') {
        // What an app may leave away before it reads a path: ours decides for both readings.
        why.push("parameters of segments");
        let segments = path.split('/');
        let segments = segments.map(|one| one.split(';').next().unwrap_or_default());
        let path = segments.collect::<Vec<_>>().join("/");
        plain.target = match query {
            "" => path,
            query => format!("{path}?{query}"),
        };
    }
    (!why.is_empty()).then_some((plain, why))
}

/// Whether ours refuses what could be read in two ways.
pub(super) fn is_unclear(ask: &Ask, ours: &Told) -> bool {
    let path = ask.target.split('?').next().unwrap_or_default();
    let normal = waypoint::asked::normalise(path, waypoint::asked::Form::default());
    normal.is_err() && ours.status == 400 && ours.app.is_none()
}
