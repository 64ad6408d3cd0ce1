//! Generated rules: what an HTTPRoute and what a VirtualService can say, over few words, so that rules overlap and requests are
//! nearly right.

use super::draw::Draw;

/// A service and the rules for it.
pub(super) struct Ruled {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// Rules of each of its objects.
    pub(super) objects: Vec<Vec<Rule>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    HttpRoute,
    VirtualService,
}

#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) matches: Vec<Match>,
    pub(super) request: Change,
    pub(super) response: Change,
    pub(super) action: Action,
    pub(super) cors: Option<Cors>,
    /// Of a VirtualService.
    pub(super) abort: Option<u16>,
    /// More attempts, and upon what: of a VirtualService Envoy's words, of an HTTPRoute statuses.
    pub(super) retries: Option<(u32, &'static str)>,
    pub(super) timeouts: Timeouts,
}

/// In milliseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Timeouts {
    /// Of a request with all its tries.
    pub(super) whole: Option<u32>,
    /// Of each try.
    pub(super) each: Option<u32>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Match {
    pub(super) path: Option<Path>,
    pub(super) ignore_case: bool,
    pub(super) headers: Vec<Named>,
    pub(super) query: Vec<Named>,
    pub(super) method: Option<&'static str>,
}

#[derive(Clone, Debug)]
pub(super) enum Path {
    Exact(String),
    /// By segments.
    Prefix(String),
    /// By characters.
    Text(String),
    Regex(&'static str),
}

#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) name: &'static str,
    pub(super) text: Text,
    /// There must be none such (`withoutHeaders`).
    pub(super) without: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Text {
    Exact(&'static str),
    Prefix(&'static str),
    Regex(&'static str),
    Present,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Change {
    pub(super) set: Vec<(&'static str, &'static str)>,
    pub(super) add: Vec<(&'static str, &'static str)>,
    pub(super) remove: Vec<&'static str>,
}

#[derive(Clone, Debug)]
pub(super) enum Action {
    Forward {
        /// Number of the app; one that there is not is [`MISSING`].
        backend: usize,
        host: Option<&'static str>,
        path: Option<PathChange>,
    },
    Redirect(Redirect),
    Direct(u16, &'static str),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Redirect {
    pub(super) scheme: Option<&'static str>,
    pub(super) host: Option<&'static str>,
    pub(super) port: Option<u16>,
    pub(super) path: Option<PathChange>,
    pub(super) status: u16,
}

#[derive(Clone, Debug)]
pub(super) enum PathChange {
    Full(&'static str),
    /// In the place of the match's prefix (of a VirtualService: of what was matched).
    Prefix(&'static str),
    Regex(&'static str, &'static str),
}

#[derive(Clone, Debug)]
pub(super) struct Cors {
    pub(super) origins: Vec<&'static str>,
    pub(super) credentials: bool,
    pub(super) methods: Vec<&'static str>,
    pub(super) headers: Vec<&'static str>,
    pub(super) expose: Vec<&'static str>,
    pub(super) age: u32,
}

/// Apps that there are.
pub(super) const APPS: usize = 3;
/// The number of one that there is not.
pub(super) const MISSING: usize = APPS;

const SEGMENTS: &[&str] = &[
    "a",
    "b",
    "ab",
    "A",
    "a-b",
    "1",
    "a.b",
    "x~y",
    "long-segment",
];
pub(super) const NAMES: &[&str] = &["x-a", "x-b", "x-list"];
pub(super) const QUERY: &[&str] = &["q", "r", "a-b"];
pub(super) const VALUES: &[&str] = &["1", "2", "one", "One", "two words", "a,b", "42"];
pub(super) const METHODS: &[&str] = &["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"];
/// Expressions and what they match.
pub(super) const PATHS: &[(&str, &[&str])] = &[
    ("/a/[0-9]+", &["/a/1", "/a/22"]),
    ("/[ab]/.*", &["/a/x", "/b/"]),
    ("/a(/b)?", &["/a", "/a/b"]),
    ("/(x|y).*z", &["/xz", "/y/b/z"]),
    ("/a\\.b/?", &["/a.b", "/a.b/"]),
];
pub(super) const TEXTS: &[(&str, &[&str])] = &[
    ("[0-9]+", &["1", "42"]),
    ("one|two", &["one", "two"]),
    ("o.*", &["o", "one more"]),
    (".+", &["x"]),
];
const HOSTS: &[&str] = &[
    "other.example",
    "web.shop.svc.cluster.local",
    "a.example:8080",
];
const CODES: &[&str] = &[
    "5xx",
    "gateway-error",
    "retriable-4xx",
    "retriable-status-codes,504",
];

const STATUSES: &[&str] = &["503", "500,504", "409,429,503"];

/// A service of that number.
pub(super) fn service(number: usize, kind: Kind, draw: &mut Draw) -> Ruled {
    let objects = match kind {
        Kind::HttpRoute => 1 + draw.below(2),
        Kind::VirtualService => 1,
    };
    let object = |draw: &mut Draw| (0..2 + draw.below(6)).map(|_| rule(kind, draw)).collect();
    Ruled {
        name: format!("s{number}"),
        kind,
        objects: (0..objects).map(|_| object(draw)).collect(),
    }
}

fn rule(kind: Kind, draw: &mut Draw) -> Rule {
    let count = if draw.chance(70) {
        1
    } else {
        1 + draw.below(3)
    };
    let matches: Vec<Match> = (0..count).map(|_| matching(kind, draw)).collect();
    let by_prefix = matches.len() == 1 && matches!(matches[0].path, Some(Path::Prefix(_)));
    let action = action(kind, by_prefix, draw);
    let forwards = matches!(action, Action::Forward { .. });
    let own = kind == Kind::VirtualService && forwards;
    let codes = match kind {
        Kind::VirtualService => CODES,
        Kind::HttpRoute => STATUSES,
    };
    let retries =
        (forwards && draw.chance(25)).then(|| (1 + draw.below(3) as u32, draw.one(codes)));
    Rule {
        matches,
        request: if forwards {
            change(draw)
        } else {
            Change::default()
        },
        response: if forwards || kind == Kind::HttpRoute {
            change(draw)
        } else {
            Change::default()
        },
        action,
        cors: (forwards && draw.chance(15)).then(|| cors(draw)),
        abort: (own && draw.chance(10)).then(|| draw.one(&[418, 503, 404])),
        timeouts: if forwards {
            timeouts(kind, retries.is_some(), draw)
        } else {
            Timeouts::default()
        },
        retries,
    }
}

fn timeouts(kind: Kind, again: bool, draw: &mut Draw) -> Timeouts {
    let whole = draw.chance(15).then_some(1200);
    // A VirtualService has the time of a try among its retries.
    let each = (again || kind == Kind::HttpRoute) && draw.chance(15);
    Timeouts {
        whole,
        each: each.then_some(500),
    }
}

fn matching(kind: Kind, draw: &mut Draw) -> Match {
    let named = |all: &[&'static str], draw: &mut Draw| {
        let count = draw.below(3);
        let mut names: Vec<&str> = (0..count).map(|_| draw.one(all)).collect();
        names.sort_unstable();
        names.dedup();
        names
            .into_iter()
            .map(|name| condition(kind, name, draw))
            .collect()
    };
    let headers = if draw.chance(40) {
        named(NAMES, draw)
    } else {
        Vec::new()
    };
    let mut query: Vec<Named> = if draw.chance(30) {
        named(QUERY, draw)
    } else {
        Vec::new()
    };
    for one in &mut query {
        one.without = false;
    }
    Match {
        path: draw.chance(90).then(|| path(kind, draw)),
        ignore_case: kind == Kind::VirtualService && draw.chance(15),
        headers,
        query,
        method: draw.chance(25).then(|| draw.one(METHODS)),
    }
}

fn condition(kind: Kind, name: &'static str, draw: &mut Draw) -> Named {
    let istio = kind == Kind::VirtualService;
    let text = match draw.below(if istio { 4 } else { 2 }) {
        0 => Text::Exact(draw.one(VALUES)),
        1 => Text::Regex(draw.one(TEXTS).0),
        2 => Text::Prefix(draw.one(&["o", "1", "a"])),
        _ => Text::Present,
    };
    Named {
        name,
        text,
        without: istio && draw.chance(25),
    }
}

fn path(kind: Kind, draw: &mut Draw) -> Path {
    let istio = kind == Kind::VirtualService;
    match draw.below(10) {
        0..3 => Path::Exact(joined(draw)),
        3..8 if istio => Path::Text(match draw.below(4) {
            0 => joined(draw) + "/",
            _ => joined(draw),
        }),
        3..8 => Path::Prefix(match draw.below(5) {
            0 => "/".into(),
            1 => joined(draw) + "/",
            _ => joined(draw),
        }),
        _ => Path::Regex(draw.one(PATHS).0),
    }
}

/// `/a/b`
pub(super) fn joined(draw: &mut Draw) -> String {
    let segments = (0..1 + draw.below(3)).map(|_| format!("/{}", draw.one(SEGMENTS)));
    segments.collect()
}

fn action(kind: Kind, by_prefix: bool, draw: &mut Draw) -> Action {
    let path = |draw: &mut Draw| match draw.below(3) {
        0 if kind == Kind::HttpRoute => Some(PathChange::Full(draw.one(&["/", "/new", "/new/"]))),
        1 if by_prefix => Some(PathChange::Prefix(
            draw.one(&["/", "/new", "/new/", "/n/b"]),
        )),
        _ => None,
    };
    match draw.below(10) {
        0..2 => {
            let mut path = path(draw);
            if kind == Kind::VirtualService {
                path = draw
                    .chance(50)
                    .then(|| PathChange::Full(draw.one(&["/new", "/n/b"])));
            }
            Action::Redirect(Redirect {
                scheme: draw.chance(30).then(|| draw.one(&["http", "https"])),
                host: draw
                    .chance(50)
                    .then(|| draw.one(&["other.example", "web.shop"])),
                port: draw.chance(30).then(|| draw.one(&[80, 443, 8080])),
                path,
                status: draw.one(&[301, 302, 303, 307, 308]),
            })
        }
        2 if kind == Kind::VirtualService => {
            Action::Direct(draw.one(&[200, 404, 503]), draw.one(&["", "a text"]))
        }
        _ => {
            let mut path = if draw.chance(40) { path(draw) } else { None };
            if kind == Kind::VirtualService && draw.chance(40) {
                path = Some(match draw.below(2) {
                    0 => PathChange::Prefix(draw.one(&["/new", "/n/b/"])),
                    _ => draw.one(&[
                        PathChange::Regex("^/a/(.*)$", "/\\1/a"),
                        PathChange::Regex("b", "c"),
                        PathChange::Regex("/([^/]+)/([^/]+)", "/\\2/\\1"),
                    ]),
                });
            }
            Action::Forward {
                backend: draw.below(if kind == Kind::HttpRoute {
                    APPS + 1
                } else {
                    APPS
                }),
                host: draw.chance(20).then(|| draw.one(HOSTS)),
                path,
            }
        }
    }
}

fn change(draw: &mut Draw) -> Change {
    let mut change = Change::default();
    if draw.chance(60) {
        return change;
    }
    // A name is in one of the lists only: the order among them is not the same everywhere.
    for name in ["x-a", "x-b", "x-list", "x-new"] {
        match draw.below(6) {
            0 => change.set.push((name, draw.one(VALUES))),
            1 => change.add.push((name, draw.one(VALUES))),
            2 => change.remove.push(name),
            _ => {}
        }
    }
    change
}

fn cors(draw: &mut Draw) -> Cors {
    Cors {
        origins: draw.one(&[
            vec!["https://a.example"],
            vec!["https://a.example", "http://b.example:8080"],
        ]),
        credentials: draw.chance(50),
        methods: draw.one(&[vec![], vec!["GET"], vec!["GET", "PUT"]]),
        headers: draw.one(&[vec![], vec!["x-a"], vec!["x-a", "authorization"]]),
        expose: draw.one(&[vec![], vec!["x-b"]]),
        age: draw.one(&[60, 3600]),
    }
}
