//! Pure: what is spoken, by its first bytes.

use mesh::service::AppProtocol;

use super::hello::{self, Hello};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guess {
    Http1,
    Http2,
    /// Nothing that we look into.
    Other,
    /// Less than a preface of HTTP/2, where HTTP is declared.
    Broken,
    /// Nobody is there any more.
    Gone,
}

/// It did not become clear in time: where nothing is declared, the server speaks first, or now.
pub(super) fn silence(declared: AppProtocol, bytes: &[u8]) -> Guess {
    match declared {
        AppProtocol::Unknown | AppProtocol::Tls => Guess::Other,
        _ => end(declared, bytes),
    }
}

/// The client ended before it was clear.
pub(super) fn end(declared: AppProtocol, bytes: &[u8]) -> Guess {
    match (bytes, declared) {
        ([], _) => Guess::Gone,
        (_, AppProtocol::Unknown | AppProtocol::Tls) => Guess::Other,
        // Carried on, it would reach the app past everything that is said of requests.
        _ => Guess::Broken,
    }
}

/// What `bytes` are the beginning of; none while that is open.
pub(super) fn guess(bytes: &[u8], declared: AppProtocol) -> Option<Guess> {
    if bytes.is_empty() {
        return None;
    }
    let shorter = bytes.len().min(PREFACE.len());
    if declared != AppProtocol::Tls && bytes[..shorter] == PREFACE[..shorter] {
        return (shorter == PREFACE.len()).then_some(Guess::Http2);
    }
    match declared {
        AppProtocol::Tls => match hello::read(bytes) {
            Hello::More => None,
            _ => Some(Guess::Other),
        },
        AppProtocol::Unknown if bytes[0] == 22 => match hello::read(bytes) {
            Hello::More => None,
            _ => Some(Guess::Other),
        },
        AppProtocol::Unknown => is_request(bytes).map(|yes| match yes {
            true => Guess::Http1,
            false => Guess::Other,
        }),
        _ => Some(Guess::Http1),
    }
}

/// Whether it begins with a method and a target; none while it may.
fn is_request(bytes: &[u8]) -> Option<bool> {
    let Some(space) = bytes.iter().position(|byte| *byte == b' ') else {
        let may = bytes.len() <= LONGEST_METHOD && bytes.iter().all(is_method);
        return (!may).then_some(false);
    };
    if space == 0 || space > LONGEST_METHOD || !bytes[..space].iter().all(is_method) {
        return Some(false);
    }
    let line = &bytes[space + 1..];
    match line.iter().position(|byte| *byte == b'\n') {
        Some(end) => Some(line[..end].windows(6).any(|part| part == b"HTTP/1")),
        None if line.len() > LONGEST_LINE => Some(false),
        None => None,
    }
}

fn is_method(byte: &u8) -> bool {
    byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_')
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const LONGEST_METHOD: usize = 24;
/// Of a request, for it to be recognised as one.
const LONGEST_LINE: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_preface_is_carried_only_where_nobody_has_declared_http() {
        let half = b"PRI * HT";
        for (declared, ends, silent) in [
            (AppProtocol::Unknown, Guess::Other, Guess::Other),
            (AppProtocol::Tls, Guess::Other, Guess::Other),
            (AppProtocol::Http11, Guess::Broken, Guess::Broken),
            (AppProtocol::Http2, Guess::Broken, Guess::Broken),
            (AppProtocol::Grpc, Guess::Broken, Guess::Broken),
        ] {
            assert_eq!(end(declared, half), ends, "{declared:?}");
            assert_eq!(silence(declared, half), silent, "{declared:?}");
            assert_eq!(end(declared, b""), Guess::Gone, "{declared:?}");
        }
    }

    #[test]
    fn what_is_spoken_is_told_by_its_first_bytes() {
        for (bytes, unknown, http) in [
            (
                &b"GET / HTTP/1.1\r\n"[..],
                Some(Guess::Http1),
                Some(Guess::Http1),
            ),
            (b"GET /", None, Some(Guess::Http1)),
            (b"G", None, Some(Guess::Http1)),
            (
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                Some(Guess::Http2),
                Some(Guess::Http2),
            ),
            (b"PRI * HT", None, None),
            (b"P", None, None),
            (b"PING\r\n", Some(Guess::Other), Some(Guess::Http1)),
            (b"GET key\r\n", Some(Guess::Other), Some(Guess::Http1)),
            (b"\x16\x03\x01\x02\x00", None, Some(Guess::Http1)),
            (b"\x16\x02", Some(Guess::Other), Some(Guess::Http1)),
            (b"\0\0\0\x08", Some(Guess::Other), Some(Guess::Http1)),
        ] {
            assert_eq!(guess(bytes, AppProtocol::Unknown), unknown, "{bytes:?}");
            assert_eq!(guess(bytes, AppProtocol::Http11), http, "{bytes:?}");
        }
    }
}
