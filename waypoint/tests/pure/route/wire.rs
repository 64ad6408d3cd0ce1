//! Messages, briefly.

use api::waypoint::path_match::Match as Path;
use api::waypoint::route::Precedence;
use api::waypoint::string_match::Match as Text;
use api::waypoint::{Match, NamedMatch, Origin, PathMatch, Route, StringMatch};

/// A rule of an object `default/<name>`; its number is its place in the object.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) origin: Origin,
    pub(crate) route: Route,
}

/// The rule with that number of that object; its name is both of them.
pub(crate) fn rule(object: &str, index: u32) -> Written {
    Written {
        origin: Origin {
            kind: "HTTPRoute".into(),
            namespace: "default".into(),
            name: object.into(),
            rule: format!("{object}-{index}"),
            created: 0,
            index,
        },
        route: Route::default(),
    }
}

impl Written {
    pub(crate) fn when(mut self, matches: Match) -> Self {
        self.route.matches.push(matches);
        self
    }

    pub(crate) fn hosts(mut self, hosts: &[&str]) -> Self {
        self.route.hostnames = hosts.iter().map(|host| (*host).into()).collect();
        self
    }

    pub(crate) fn created(mut self, seconds: i64) -> Self {
        self.origin.created = seconds;
        self
    }

    pub(crate) fn listed(mut self) -> Self {
        self.route.precedence = Precedence::Listed.into();
        self
    }

    pub(crate) fn for_consumers_in(mut self, namespace: &str) -> Self {
        self.route.consumer_namespace = namespace.into();
        self
    }

    pub(crate) fn grpc(mut self) -> Self {
        self.route.grpc = true;
        self
    }
}

/// What a match is made of.
pub(crate) trait Conditions {
    fn header(self, name: &str, value: StringMatch) -> Self;
    fn query(self, name: &str, value: StringMatch) -> Self;
    fn method(self, method: &str) -> Self;
}

impl Conditions for Match {
    fn header(mut self, name: &str, value: StringMatch) -> Self {
        self.headers.push(named(name, value));
        self
    }

    fn query(mut self, name: &str, value: StringMatch) -> Self {
        self.query.push(named(name, value));
        self
    }

    fn method(mut self, method: &str) -> Self {
        self.method = Some(is(method));
        self
    }
}

fn named(name: &str, value: StringMatch) -> NamedMatch {
    NamedMatch {
        name: name.into(),
        value: Some(value),
    }
}

pub(crate) fn any() -> Match {
    Match::default()
}

fn path(path: Path) -> Match {
    Match {
        path: Some(PathMatch {
            ignore_case: false,
            r#match: Some(path),
        }),
        ..Match::default()
    }
}

pub(crate) fn exact(text: &str) -> Match {
    path(Path::Exact(text.into()))
}

pub(crate) fn prefix(text: &str) -> Match {
    path(Path::Prefix(text.into()))
}

pub(crate) fn text_prefix(text: &str) -> Match {
    path(Path::TextPrefix(text.into()))
}

pub(crate) fn expression(text: &str) -> Match {
    path(Path::Regex(text.into()))
}

pub(crate) fn ignoring_case(mut of: Match) -> Match {
    if let Some(path) = &mut of.path {
        path.ignore_case = true;
    }
    of
}

pub(crate) fn text(of: Text) -> StringMatch {
    StringMatch {
        r#match: Some(of),
        ignore_case: false,
        invert: false,
    }
}

pub(crate) fn is(value: &str) -> StringMatch {
    text(Text::Exact(value.into()))
}

pub(crate) fn not(mut of: StringMatch) -> StringMatch {
    of.invert = true;
    of
}
