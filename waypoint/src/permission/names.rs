//! Lists of header names as Istio writes them: `x-user`, `x-*`, `*-id`, `*`.

use http::HeaderName;

/// Some headers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names(Box<[Pattern]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
}

impl Names {
    /// Of a list.
    pub fn compile(list: &[String]) -> Result<Self, String> {
        let pattern = |text: &String| {
            let text = text.to_ascii_lowercase();
            let found = match (text.strip_suffix('*'), text.strip_prefix('*')) {
                (Some(prefix), _) => Pattern::Prefix(prefix.into()),
                (None, Some(suffix)) => Pattern::Suffix(suffix.into()),
                (None, None) => Pattern::Exact(text.as_str().into()),
            };
            let (Pattern::Exact(fixed) | Pattern::Prefix(fixed) | Pattern::Suffix(fixed)) = &found;
            let good =
                !fixed.contains('*') && (fixed.is_empty() || fixed.parse::<HeaderName>().is_ok());
            let good = good && !text.is_empty();
            good.then_some(found)
                .ok_or_else(|| format!("{text:?} names no header"))
        };
        Ok(Self(list.iter().map(pattern).collect::<Result<_, _>>()?))
    }

    /// None are named.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether that one is among them.
    pub fn has(&self, name: &HeaderName) -> bool {
        let name = name.as_str();
        self.0.iter().any(|pattern| match pattern {
            Pattern::Exact(whole) => **whole == *name,
            Pattern::Prefix(prefix) => name.starts_with(&**prefix),
            Pattern::Suffix(suffix) => name.ends_with(&**suffix),
        })
    }

    /// Whether it is taken from one message into another: what describes its own message only when it is named itself.
    pub fn takes(&self, name: &HeaderName) -> bool {
        match is_own(name) {
            true => self.0.contains(&Pattern::Exact(name.as_str().into())),
            false => self.has(name),
        }
    }
}

/// Whether a header is about the message that it stands in.
fn is_own(name: &HeaderName) -> bool {
    let name = name.as_str();
    let own = [
        "date",
        "server",
        "etag",
        "last-modified",
        "expires",
        "cache-control",
        "vary",
        "age",
    ];
    name.starts_with("content-") || own.contains(&name)
}
