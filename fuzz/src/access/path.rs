//! 1. the bytes are a path
//! 2. if it is not refused, its normal form is normal, has nothing left to resolve, and means the same to an app that
//!    decodes all it can

use http::Uri;
use waypoint::asked::{self, Form};

/// See the file's head.
pub fn path(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = asked::host(text);
    for form in [Form::DecodeAndMergeSlashes, Form::MergeSlashes, Form::Base] {
        let Ok(normal) = asked::normalise(text, form) else {
            continue;
        };
        let again = asked::normalise(&normal, form).expect("what is normal is accepted");
        assert_eq!(again, normal, "not normal");
        let dots = |segment: &str| segment == "." || segment == "..";
        assert!(
            normal.starts_with('/') && !normal.split('/').any(dots),
            "{normal}"
        );
        assert!(normal.is_ascii() && !normal.contains('\\'), "{normal}");
        assert_eq!(
            resolved(text),
            resolved(&normal),
            "{normal} means something else"
        );
        let uri: Uri = normal.parse().expect("what is normal can be sent");
        assert_eq!(uri.path(), normal);
    }
}

/// As the laxest app reads a path: escapes decoded once, every slash a slash, dots resolved.
fn resolved(path: &str) -> Vec<u8> {
    let mut read = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digit = |at: usize| {
            after
                .get(at)
                .and_then(|&byte| char::from(byte).to_digit(16))
        };
        match (byte, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                read.push((high * 16 + low) as u8); // two digits
                rest = &after[2..];
            }
            _ => {
                read.push(byte);
                rest = after;
            }
        }
    }
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in read.split(|byte| matches!(byte, b'/' | b'\\')) {
        match segment {
            b"" | b"." => {}
            b".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    kept.join(&b'/')
}
