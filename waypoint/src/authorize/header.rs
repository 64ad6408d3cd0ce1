//! A header against what a policy wrote.
//!
//! A header may come on several lines, which are one list to some readers, of which others take the first or the
//! last; and a list on one line is several values to some. So a pattern holds if it holds for every line; it does
//! not if it holds for no line, no list made of them and no element; else nobody knows. What is not UTF-8 is
//! undecidable too, but for the question whether it is there.

use http::{HeaderName, HeaderValue};

use super::facts::Http;
use super::pattern::{Case, Pattern};
use super::truth::Truth;
use crate::asked::is_double;

/// What is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Field {
    /// A header.
    Named(HeaderName),
    /// An element of the list that a header is.
    Element(HeaderName),
    /// `:method`
    Method,
    /// `:authority`, or `host`
    Authority,
    /// `:path`, with its query
    Path,
    /// `:scheme`
    Scheme,
}

impl Field {
    /// None: no header can have this name.
    pub(super) fn new(name: &str) -> Option<Self> {
        match name {
            ":method" => Some(Self::Method),
            ":authority" => Some(Self::Authority),
            ":path" => Some(Self::Path),
            ":scheme" => Some(Self::Scheme),
            name if name.eq_ignore_ascii_case("host") => Some(Self::Authority),
            name => HeaderName::from_bytes(name.as_bytes())
                .ok()
                .map(Self::Named),
        }
    }

    /// None: no header that is a list can have this name.
    pub(super) fn element(name: &str) -> Option<Self> {
        match Self::new(name) {
            Some(Self::Named(name)) => Some(Self::Element(name)),
            _ => None,
        }
    }

    pub(super) fn matches(&self, patterns: &[Pattern], http: &Http<'_>) -> Truth {
        let asked = http.asked;
        let any = |pieces: &[&[u8]], case: Case| {
            Truth::any(patterns.iter().map(|pattern| pattern.matches(pieces, case)))
        };
        match self {
            Self::Named(name) => named(name, patterns, http),
            Self::Element(name) => element(name, patterns, http),
            Self::Method => any(&[asked.method.as_str().as_bytes()], Case::Counts),
            Self::Authority => any(&[asked.authority.as_bytes()], Case::Ignored),
            Self::Scheme => any(&[asked.scheme.as_bytes()], Case::Ignored),
            Self::Path => match asked.query {
                Some(query) => any(
                    &[asked.path.as_bytes(), b"?", query.as_bytes()],
                    Case::Counts,
                ),
                None => any(&[asked.path.as_bytes()], Case::Counts),
            },
        }
    }
}

fn named(name: &HeaderName, patterns: &[Pattern], http: &Http<'_>) -> Truth {
    let all = http.asked.headers.get_all(name);
    let mut values = all.iter().map(HeaderValue::as_bytes);
    let found = match (values.next(), values.next()) {
        (None, _) => Truth::No,
        (Some(only), None) => matches(name, patterns, &[only]),
        (Some(_), Some(_)) => {
            let lines: Vec<&[u8]> = all.iter().map(HeaderValue::as_bytes).collect();
            matches(name, patterns, &lines)
        }
    };
    doubted(found, name, http)
}

/// A list on several lines is one list (RFC 9110 5.2): one of its elements must match, on whichever line it is.
fn element(name: &HeaderName, patterns: &[Pattern], http: &Http<'_>) -> Truth {
    let lines = http.asked.headers.get_all(name).iter();
    let found = Truth::any(lines.map(|line| has_element(line.as_bytes(), patterns)));
    doubted(found, name, http)
}

/// Blanks around an element are not of it (RFC 9110 5.6.1). Within quotes a comma divides nothing for some readers, so what
/// a line with quotes holds nobody knows.
fn has_element(line: &[u8], patterns: &[Pattern]) -> Truth {
    if patterns.contains(&Pattern::Any) {
        return Truth::Yes;
    }
    if line.contains(&b'"') || std::str::from_utf8(line).is_err() {
        return Truth::Undecidable;
    }
    let elements = line.split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    let matches = |element: &[u8]| {
        Truth::any(
            patterns
                .iter()
                .map(|pattern| pattern.matches(&[element], Case::Counts)),
        )
    };
    Truth::any(elements.map(matches))
}

/// What was found, if no other header could be the one that is meant.
fn doubted(found: Truth, name: &HeaderName, http: &Http<'_>) -> Truth {
    if found != Truth::Yes && http.has_underscores() && has_double(name, http) {
        return Truth::Undecidable;
    }
    found
}

/// `lines` is not empty.
fn matches(name: &HeaderName, patterns: &[Pattern], lines: &[&[u8]]) -> Truth {
    Truth::any(patterns.iter().map(|pattern| match pattern {
        Pattern::Any => Truth::Yes,
        pattern if *name == http::header::COOKIE => matches_cookies(pattern, lines),
        pattern => matches_lines(pattern, lines),
    }))
}

/// Another header that is the same one to apps which read underscores as dashes.
fn has_double(name: &HeaderName, http: &Http<'_>) -> bool {
    let mut others = http.asked.headers.keys();
    others.any(|other| is_double(other, name))
}

fn matches_lines(pattern: &Pattern, lines: &[&[u8]]) -> Truth {
    if lines.iter().any(|line| std::str::from_utf8(line).is_err()) {
        return Truth::Undecidable;
    }
    let holds = |value: &[u8]| pattern.matches(&[value], Case::Counts);
    let of_lines = lines.iter().map(|line| holds(line));
    let (least, most) = of_lines.fold((Truth::Yes, Truth::No), |(least, most), truth| {
        (least.min(truth), most.max(truth))
    });
    if least == Truth::Yes {
        return Truth::Yes;
    }
    let elements = || {
        lines
            .iter()
            .flat_map(|line| line.split(|&byte| byte == b','))
    };
    let of_list = lines.len() > 1 && {
        let list = |between: &[u8]| holds(&lines.join(between)) != Truth::No;
        list(b",") || list(b", ")
    };
    let of_element = || elements().any(|element| holds(element.trim_ascii()) != Truth::No);
    if most != Truth::No || of_list || of_element() {
        Truth::Undecidable
    } else {
        Truth::No
    }
}

/// HTTP/2 may cut cookies into lines (RFC 9113 8.2.3); together they are one value.
fn matches_cookies(pattern: &Pattern, lines: &[&[u8]]) -> Truth {
    let whole = lines.join(&b"; "[..]);
    if std::str::from_utf8(&whole).is_err() {
        return Truth::Undecidable;
    }
    pattern.matches(&[&whole], Case::Counts)
}
