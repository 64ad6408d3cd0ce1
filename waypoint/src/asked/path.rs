//! A path in its one normal form.
//!
//! 1. `/…`, or `*` for OPTIONS; no control character, no half escape
//! 2. escapes: of letters, digits and `-._~` decoded; the others in capitals; bytes that should have been escaped are
//! 3. `\` is `/`, so are `%2F` and `%5C`; several `/` are one ([`Form`] can say otherwise)
//! 4. dot segments are resolved (RFC 3986 5.2.4)
//! 5. what would be a dot segment to a laxer reader (`/..;x/`, and with [`Form::Base`] `%2F..%2F`), or take back
//!    something else (`/a%2Fb/..`, `/a//..`), is refused
//!
//! Routes, policies and upstream get the result. What remains in which readers differ, escapes of reserved
//! characters and `;parameters`, upstream gets as it came; a policy judges it in a second reading as well
//! ([`liberal`]), in which all escapes are decoded and parameters cut off, and where the two disagree the condition
//! is undecidable.

use std::borrow::Cow;

use http::uri::{Parts, PathAndQuery};
use http::{Method, Uri};

use super::Unclear;

/// How much is made equal: MeshConfig's `pathNormalization`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Form {
    /// `%2F` and `%5C` are slashes, several slashes are one.
    #[default]
    DecodeAndMergeSlashes,
    /// Several slashes are one.
    MergeSlashes,
    /// Neither: every slash is kept.
    Base,
}

/// The normalised path of a request.
///
/// # Errors
/// When it could be read in more than one way.
pub fn target<'a>(method: &Method, uri: &'a Uri, form: Form) -> Result<Cow<'a, str>, Unclear> {
    match uri.path() {
        "*" if *method == Method::OPTIONS => Ok(Cow::Borrowed("*")),
        path => normalise(path, form),
    }
}

/// The normal form of a path (without query); borrowed if it has it already.
///
/// # Errors
/// When it could be read in more than one way.
pub fn normalise(path: &str, form: Form) -> Result<Cow<'_, str>, Unclear> {
    if !path.starts_with('/') {
        return Err(Unclear::NotAPath);
    }
    if is_plain(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let unescaped = escapes(path.as_bytes(), form)?;
    let resolved = resolve(&unescaped, form).ok_or(Unclear::HiddenDots)?;
    if hides_dots(&resolved) {
        return Err(Unclear::HiddenDots);
    }
    if resolved == path {
        return Ok(Cow::Borrowed(path));
    }
    Ok(Cow::Owned(resolved))
}

/// Gives a request the path that was judged.
///
/// # Errors
/// Never for a path that [`normalise`] made.
pub fn put_path(uri: &mut Uri, path: &str) -> Result<(), http::Error> {
    let whole = together(path, uri.query())?;
    put(uri, whole)
}

/// Gives a request another query, or none.
///
/// # Errors
/// When there is a character in it that none can have.
pub fn put_query(uri: &mut Uri, query: Option<&str>) -> Result<(), http::Error> {
    let whole = together(uri.path(), query)?;
    put(uri, whole)
}

fn together(path: &str, query: Option<&str>) -> Result<PathAndQuery, http::Error> {
    Ok(match query {
        Some(query) => PathAndQuery::try_from([path, "?", query].concat())?,
        None => PathAndQuery::try_from(path)?,
    })
}

fn put(uri: &mut Uri, whole: PathAndQuery) -> Result<(), http::Error> {
    let mut parts: Parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(whole);
    *uri = Uri::from_parts(parts)?;
    Ok(())
}

/// As a lax reader sees a normalised path: all escapes decoded, and, if asked for, `;parameters` of each segment cut
/// off. None when it sees the same.
pub(crate) fn liberal(path: &str, cut: bool) -> Option<Vec<u8>> {
    if !path.bytes().any(|byte| matches!(byte, b'%' | b';')) {
        return None;
    }
    let mut read = Vec::with_capacity(path.len());
    let mut in_parameters = false;
    for byte in decoded(path.as_bytes()) {
        match byte {
            b'/' | b'\\' => in_parameters = false,
            b';' => in_parameters = cut,
            _ => {}
        }
        if !in_parameters {
            read.push(byte);
        }
    }
    Some(read)
}

/// What a policy wrote, with escapes as normalised paths have them. A half escape stays: it matches nothing.
pub(crate) fn normal_pattern(pattern: &str) -> String {
    let mut written = Vec::with_capacity(pattern.len());
    let mut rest = pattern.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, escape(after)) {
            (b'%', Some(value)) => {
                write(&mut written, value, is_unreserved(value));
                rest = &after[2..];
            }
            (b'%', None) => written.push(b'%'),
            _ => write(&mut written, byte, may_stand(byte)),
        }
    }
    String::from_utf8_lossy(&written).into_owned()
}

/// The same, as a lax reader sees it.
pub(crate) fn liberal_pattern(pattern: &str) -> Vec<u8> {
    decoded(pattern.as_bytes()).collect()
}

/// Nothing in it would be changed: nearly all paths.
fn is_plain(path: &[u8]) -> bool {
    let mut before = b'x';
    for &byte in path {
        let odd_after_slash = before == b'/' && matches!(byte, b'/' | b'.');
        if odd_after_slash || byte == b';' || byte == b'%' || !may_stand(byte) {
            return false;
        }
        before = byte;
    }
    true
}

/// Steps 1 to 3, but for the merging of slashes.
fn escapes(path: &[u8], form: Form) -> Result<Vec<u8>, Unclear> {
    let mut written = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let value = escape(after).ok_or(Unclear::Escape)?;
            rest = &after[2..];
            match value {
                0 => return Err(Unclear::Control),
                b'/' | b'\\' if form == Form::DecodeAndMergeSlashes => written.push(b'/'),
                value => write(&mut written, value, is_unreserved(value)),
            }
        } else if byte == b'\\' {
            written.push(b'/');
        } else if byte.is_ascii_control() {
            return Err(Unclear::Control);
        } else {
            write(&mut written, byte, may_stand(byte));
        }
    }
    Ok(written)
}

/// Slashes merged, dot segments resolved. None where `..` takes back what is one segment to us and another number of
/// them to those who decode or merge slashes.
fn resolve(path: &[u8], form: Form) -> Option<String> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut segments = path[1..].split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." | b".." => {
                if segment == b".." && kept.pop().is_some_and(is_not_one) {
                    return None;
                }
                // `/a/..` names a folder, as `/a/../` does.
                if last {
                    kept.push(b"");
                }
            }
            b"" if !last && form != Form::Base => {}
            _ => kept.push(segment),
        }
    }
    let mut resolved = Vec::with_capacity(path.len());
    for segment in kept {
        resolved.push(b'/');
        resolved.extend_from_slice(segment);
    }
    // `escapes` leaves ASCII only.
    String::from_utf8(resolved).ok()
}

/// Nothing, or a slash within.
fn is_not_one(segment: &[u8]) -> bool {
    let slash = |escape: &[u8]| matches!(escape, b"%2F" | b"%5C");
    segment.is_empty() || segment.windows(3).any(slash)
}

/// Whether a laxer reader finds dot segments in a resolved path.
fn hides_dots(path: &str) -> bool {
    let Some(read) = liberal(path, true) else {
        return false;
    };
    let mut segments = read.split(|byte| matches!(byte, b'/' | b'\\'));
    segments.any(|segment| matches!(segment, b"." | b".."))
}

/// All escapes decoded, in one pass; a half one stays.
fn decoded(text: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        match escape(after) {
            Some(value) if byte == b'%' => {
                rest = &after[2..];
                Some(value)
            }
            _ => Some(byte),
        }
    })
}

/// The byte of an escape, of which the two digits come next.
fn escape(after: &[u8]) -> Option<u8> {
    let digit = |at: usize| {
        after
            .get(at)
            .and_then(|&byte| char::from(byte).to_digit(16))
    };
    let value = digit(0)? * 16 + digit(1)?;
    u8::try_from(value).ok()
}

fn write(written: &mut Vec<u8>, byte: u8, plain: bool) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    if plain {
        written.push(byte);
    } else {
        let digits = [
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 15)],
        ];
        written.extend_from_slice(&[b'%', digits[0], digits[1]]);
    }
}

/// RFC 3986 2.3: an escape of these means the same as they do.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 3.3: what a path may have without escape. A backslash is dealt with before.
fn may_stand(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(
            byte,
            b'!' | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
                | b':'
                | b'@'
                | b'/'
        )
}
