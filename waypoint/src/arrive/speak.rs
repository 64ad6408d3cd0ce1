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

/// What `bytes` are the beginning of; none while that is open, and more of it is worth waiting for.
pub(super) fn guess(bytes: &[u8], declared: AppProtocol) -> Option<Guess> {
    if bytes.is_empty() {
        return None;
    }
    match declared {
        AppProtocol::Unknown => match told(bytes) {
            None if !is_usual(bytes) => Some(Guess::Other),
            told => told,
        },
        AppProtocol::Tls => match hello::read(bytes) {
            Hello::More => None,
            _ => Some(Guess::Other),
        },
        _ if is_preface(bytes) => whole_preface(bytes),
        _ => Some(Guess::Http1),
    }
}

/// What they are where nothing is declared; none while that is open, however unlikely it is that they become a request.
pub(super) fn told(bytes: &[u8]) -> Option<Guess> {
    if bytes.is_empty() {
        return None;
    }
    if is_preface(bytes) {
        return whole_preface(bytes);
    }
    if bytes[0] == 22 {
        return match hello::read(bytes) {
            Hello::More => None,
            _ => Some(Guess::Other),
        };
    }
    is_request(bytes).map(|yes| match yes {
        true => Guess::Http1,
        false => Guess::Other,
    })
}

fn is_preface(bytes: &[u8]) -> bool {
    let shorter = bytes.len().min(PREFACE.len());
    bytes[..shorter] == PREFACE[..shorter]
}

fn whole_preface(bytes: &[u8]) -> Option<Guess> {
    (bytes.len() >= PREFACE.len()).then_some(Guess::Http2)
}

/// Whether clients begin so whose request comes in pieces. Where it may be one all the same, nobody is kept waiting: whoever
/// says a word and waits for an answer has it, and goes on being listened to (`late`).
fn is_usual(bytes: &[u8]) -> bool {
    let usual = |byte: &u8| byte.is_ascii_uppercase() || b"-_".contains(byte);
    let word = bytes.len() <= LONGEST_USUAL && bytes.iter().all(usual);
    word || bytes[0] == 22 || bytes.iter().any(is_space)
}

/// Whether it begins with a method and a target, as readers laxer than ours see it, too: what they would take for a request
/// must not reach them as bytes. None while it may.
fn is_request(bytes: &[u8]) -> Option<bool> {
    // Empty lines before a request are skipped (RFC 9112 2.2).
    let Some(begin) = bytes.iter().position(|byte| !b"\r\n".contains(byte)) else {
        return (bytes.len() > LONGEST_LINE).then_some(true);
    };
    let bytes = &bytes[begin..];
    let Some(space) = bytes.iter().position(is_space) else {
        let may = bytes.len() <= LONGEST_METHOD && bytes.iter().all(is_method);
        return (!may).then_some(false);
    };
    let method = &bytes[..space];
    if space == 0 || space > LONGEST_METHOD || !method.iter().all(is_method) {
        return Some(false);
    }
    let Some(target) = bytes[space..].iter().position(|byte| !is_space(byte)) else {
        return (bytes.len() > LONGEST_LINE).then_some(true);
    };
    let line = &bytes[space + target..];
    let begins = TARGETS.iter().any(|target| shared(line, target));
    if !begins && method != b"CONNECT" {
        return Some(false);
    }
    match line.iter().position(|byte| *byte == b'\n') {
        Some(end) => {
            // Without a version it is HTTP/0.9, which some apps still answer.
            let oldest = method == b"GET" && line[0] == b'/';
            Some(oldest || line[..end].windows(6).any(|part| part == b"HTTP/1"))
        }
        None if bytes.len() > LONGEST_LINE => Some(begins),
        None => None,
    }
}

/// Whether they begin alike, as far as both go.
fn shared(line: &[u8], target: &[u8]) -> bool {
    let shorter = line.len().min(target.len());
    line[..shorter].eq_ignore_ascii_case(&target[..shorter])
}

/// Any of those that a method may have (RFC 9110 5.6.2): not every app minds which.
fn is_method(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

fn is_space(byte: &u8) -> bool {
    b" \t".contains(byte)
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How what a request is for begins, but for CONNECT.
const TARGETS: [&[u8]; 4] = [b"/", b"*", b"http://", b"https://"];
const LONGEST_METHOD: usize = 256;
/// Of those that people use.
const LONGEST_USUAL: usize = 24;
/// Of a request whose end of line is waited for.
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
    fn what_a_lax_app_takes_for_a_request_is_one() {
        let long = "x".repeat(3 * LONGEST_LINE);
        for (said, yes) in [
            ("\r\nGET / HTTP/1.1\r\n".to_owned(), Some(true)),
            ("\n\n\r\nGET / HTTP/1.1\r\n".to_owned(), Some(true)),
            ("\r\n".to_owned(), None),
            ("\r\n".repeat(LONGEST_LINE), Some(true)),
            ("get / HTTP/1.1\r\n".to_owned(), Some(true)),
            ("M-SEARCH.1!  * HTTP/1.1\r\n".to_owned(), Some(true)),
            ("GET\t/ HTTP/1.1\r\n".to_owned(), Some(true)),
            ("GET /\r\n".to_owned(), Some(true)),
            (format!("GET /?{long}"), Some(true)),
            (format!("GET HTTP://web/{long}"), Some(true)),
            (format!("GET /{long} HTTP/1.1\r\n"), Some(true)),
            (format!("{} / HTTP/1.1\r\n", &long[..200]), Some(true)),
            (format!("GET {long}"), Some(false)),
            ("to whoever it may concern".to_owned(), Some(false)),
            ("CONNECT web:80 HTTP/1.1\r\n".to_owned(), Some(true)),
            ("CONNECT {}\r\n".to_owned(), Some(false)),
            (long.clone(), Some(false)),
            (" GET / HTTP/1.1\r\n".to_owned(), Some(false)),
            ("GET ".to_owned(), None),
            (format!("GET{}", " ".repeat(LONGEST_LINE)), Some(true)),
            ("GET \n".to_owned(), Some(false)),
            ("ruok".to_owned(), None),
            ("ruok\n".to_owned(), Some(false)),
            ("EHLO web\r\n".to_owned(), Some(false)),
            ("PING".to_owned(), None),
        ] {
            let seen = said.get(..40).unwrap_or(&said);
            assert_eq!(is_request(said.as_bytes()), yes, "{seen:?}");
            // In pieces it is never taken for something else on its way.
            for end in 1..said.len().min(100) {
                let before = is_request(&said.as_bytes()[..end]);
                assert!(before.is_none() || before == yes, "{end} bytes of {seen:?}");
            }
        }
    }

    #[test]
    fn nobody_is_kept_waiting_for_the_rest_of_an_unusual_request() {
        for (bytes, waits) in [
            (&b"GET"[..], true),
            (b"get /", true),
            (b"\x16\x03\x01\x02\x00", true),
            (b"PRI * HT", true),
            (b"get", false),
            (b"ruok", false),
            (b"\r\n", false),
        ] {
            let expected = (!waits).then_some(Guess::Other);
            assert_eq!(guess(bytes, AppProtocol::Unknown), expected, "{bytes:?}");
            assert_eq!(told(bytes), None, "{bytes:?}");
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
            (b"stats items\r\n", Some(Guess::Other), Some(Guess::Http1)),
            (
                b"SSH-2.0-OpenSSH_9.2 a\r\n",
                Some(Guess::Other),
                Some(Guess::Http1),
            ),
            (
                b"*1\r\n$4\r\nPING\r\n",
                Some(Guess::Other),
                Some(Guess::Http1),
            ),
            (b"\x16\x03\x01\x02\x00", None, Some(Guess::Http1)),
            (b"\x16\x02", Some(Guess::Other), Some(Guess::Http1)),
            (b"\0\0\0\x08", Some(Guess::Other), Some(Guess::Http1)),
        ] {
            assert_eq!(guess(bytes, AppProtocol::Unknown), unknown, "{bytes:?}");
            assert_eq!(guess(bytes, AppProtocol::Http11), http, "{bytes:?}");
        }
    }
}
