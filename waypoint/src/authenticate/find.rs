//! Where a request carries tokens.
//!
//! Each place that some rule looks at is looked at once. A place with two values is refused: the app might take the
//! other one.

use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, Uri, header};

use super::rule::{Place, Rule};
use super::token::Fault;

/// Longest token, in bytes.
const LONGEST: usize = 16 * 1024;

/// A token, and which rules look where it was.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) text: Cow<'a, str>,
    pub(super) place: Place,
    /// Their numbers.
    pub(super) rules: Vec<usize>,
}

impl Found<'_> {
    /// Its middle part.
    pub(super) fn payload(&self) -> &str {
        self.text.split('.').nth(1).unwrap_or_default()
    }
}

/// All tokens of a request.
pub(super) fn tokens<'a>(
    rules: &[Arc<Rule>],
    headers: &'a HeaderMap,
    uri: &'a Uri,
) -> Result<Vec<Found<'a>>, Fault> {
    let mut found: Vec<Found<'a>> = Vec::new();
    for (number, rule) in rules.iter().enumerate() {
        for place in &rule.places {
            if let Some(known) = found.iter_mut().find(|known| known.place == *place) {
                if !known.rules.contains(&number) {
                    known.rules.push(number);
                }
                continue;
            }
            let text = match place {
                Place::Header(name, prefix) => in_header(headers, name, prefix)?,
                Place::Parameter(name) => in_query(uri.query(), name)?,
                Place::Cookie(name) => in_cookies(headers, name)?,
            };
            if let Some(text) = text {
                if text.len() > LONGEST {
                    return Err(Fault::TooLong);
                }
                found.push(Found {
                    text,
                    place: place.clone(),
                    rules: vec![number],
                });
            }
        }
    }
    Ok(found)
}

fn in_header<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    prefix: &str,
) -> Result<Option<Cow<'a, str>>, Fault> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Fault::Twice);
    }
    let Ok(text) = value.to_str() else {
        return Err(Fault::Form);
    };
    // The name of a scheme is the same in any case (RFC 9110 11.1); to some apps, so are more spaces.
    let Some(start) = text
        .get(..prefix.len())
        .filter(|start| start.eq_ignore_ascii_case(prefix))
    else {
        return Ok(None);
    };
    Ok(Some(Cow::Borrowed(text[start.len()..].trim())))
}

fn in_query<'a>(query: Option<&'a str>, name: &str) -> Result<Option<Cow<'a, str>>, Fault> {
    let mut found = None;
    for (found_name, value) in parameters(query.unwrap_or_default()) {
        if found_name == name {
            if found.is_some() {
                return Err(Fault::Twice);
            }
            found = Some(value);
        }
    }
    Ok(found)
}

fn in_cookies<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<Cow<'a, str>>, Fault> {
    let mut found = None;
    for line in headers.get_all(header::COOKIE) {
        // A cookie that cannot be read is not a token; what can be read of the line is.
        let Ok(line) = std::str::from_utf8(line.as_bytes()) else {
            return Err(Fault::Form);
        };
        for (found_name, value) in cookies(line) {
            if found_name == name {
                if found.is_some() {
                    return Err(Fault::Twice);
                }
                found = Some(Cow::Borrowed(value.trim_matches('"')));
            }
        }
    }
    Ok(found)
}

/// Name and value of each parameter, decoded.
pub(super) fn parameters(query: &str) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    query.split('&').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (unescaped(name), unescaped(value))
    })
}

/// Name and value of each cookie of a line.
pub(super) fn cookies(line: &str) -> impl Iterator<Item = (&str, &str)> {
    line.split(';').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name.trim(), value.trim())
    })
}

fn unescaped(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let mut read = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let digit = |at: usize| {
            after
                .get(at)
                .and_then(|&byte| char::from(byte).to_digit(16))
        };
        let value = digit(0)
            .zip(digit(1))
            .and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        match (byte, value) {
            (b'%', Some(value)) => {
                read.push(value);
                rest = &after[2..];
            }
            (b'+', _) => read.push(b' '),
            _ => read.push(byte),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&read).into_owned())
}
