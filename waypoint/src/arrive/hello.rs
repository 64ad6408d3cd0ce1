//! Pure: the server's name that a TLS client asks for (RFC 8446 4.1.2, RFC 6066 3), read without touching it.

/// What the first bytes of a connection say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hello {
    /// It is TLS; the name in lower case, if there is one.
    Tls(Option<String>),
    /// It may be; there must be more.
    More,
    /// It is not.
    Other,
}

impl Hello {
    /// Whether `bytes`, of which this was read, may be the beginning of TLS that asks for somebody all the same: more of it did
    /// not come in time, or it is written so that only others can read it.
    pub(super) fn is_unread(&self, bytes: &[u8]) -> bool {
        match self {
            Self::Tls(_) => false,
            Self::More => true,
            Self::Other => matches!(bytes, [22, 3, ..]),
        }
    }
}

/// Reads the beginning of a connection.
pub(super) fn read(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // A record: handshake, any version 3.x, length.
        match rest {
            [22, 3, _, high, low, content @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 || length > LARGEST {
                    return Hello::Other;
                }
                let here = content.len().min(length);
                message.extend_from_slice(&content[..here]);
                if let Some(found) = client_hello(&message) {
                    return found;
                }
                if here < length || message.len() > LARGEST {
                    return if message.len() > LARGEST {
                        Hello::Other
                    } else {
                        Hello::More
                    };
                }
                rest = &content[length..];
            }
            [] | [22] | [22, 3] | [22, 3, _] | [22, 3, _, _] => return Hello::More,
            _ => return Hello::Other,
        }
    }
}

/// None while it is not whole.
fn client_hello(message: &[u8]) -> Option<Hello> {
    if *message.first()? != 1 {
        return Some(Hello::Other);
    }
    let length = message.get(1..4)?;
    let length =
        usize::from(length[0]) << 16 | usize::from(length[1]) << 8 | usize::from(length[2]);
    if length > LARGEST {
        return Some(Hello::Other);
    }
    let body = message.get(4..4 + length)?;
    Some(match server_name(body) {
        Some(name) => Hello::Tls(name),
        None => Hello::Other,
    })
}

/// None if it is no hello of a client.
fn server_name(body: &[u8]) -> Option<Option<String>> {
    let rest = body.get(2 + 32..)?;
    let (_, rest) = block(rest, 1)?; // session id
    let (_, rest) = block(rest, 2)?; // cipher suites
    let (_, rest) = block(rest, 1)?; // compression
    if rest.is_empty() {
        return Some(None);
    }
    let (mut extensions, _) = block(rest, 2)?;
    while let [high, low, after @ ..] = extensions {
        let (content, after) = block(after, 2)?;
        if (*high, *low) == (0, 0) {
            let (names, _) = block(content, 2)?;
            let [0, name @ ..] = names else { return None };
            let (name, _) = block(name, 2)?;
            let name = std::str::from_utf8(name).ok()?;
            let plain =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
            if name.is_empty() || name.len() > 253 || !name.bytes().all(plain) {
                return None;
            }
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            return Some(Some(name));
        }
        extensions = after;
    }
    Some(None)
}

/// A block whose length stands before it in so many bytes, and what follows.
fn block(bytes: &[u8], width: usize) -> Option<(&[u8], &[u8])> {
    let length = bytes.get(..width)?.iter();
    let length = length.fold(0usize, |sum, byte| sum << 8 | usize::from(*byte));
    let rest = &bytes[width..];
    (rest.len() >= length).then(|| rest.split_at(length))
}

/// Bytes of a hello.
const LARGEST: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a real client sends.
    fn hello(name: Option<&str>) -> Vec<u8> {
        let config = rustls::ClientConfig::builder_with_provider(hbone::tls::crypto_provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = match name {
            Some(name) => name.to_owned().try_into().unwrap(),
            None => std::net::IpAddr::from([10, 0, 0, 1]).into(),
        };
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_name_is_read_when_the_hello_is_whole() {
        let bytes = hello(Some("Db.Example.com"));
        assert_eq!(read(&bytes), Hello::Tls(Some("db.example.com".to_owned())));
        for cut in 0..bytes.len() {
            assert_eq!(read(&bytes[..cut]), Hello::More, "{cut} of {}", bytes.len());
        }
        assert_eq!(read(&hello(None)), Hello::Tls(None));
    }

    #[test]
    fn a_hello_in_several_records_is_one() {
        let bytes = hello(Some("db.example.com"));
        let mut parted = Vec::new();
        for part in bytes[5..].chunks(100) {
            parted.extend_from_slice(&[22, 3, 1, 0, u8::try_from(part.len()).unwrap()]);
            parted.extend_from_slice(part);
        }
        assert_eq!(read(&parted), Hello::Tls(Some("db.example.com".to_owned())));
    }

    #[test]
    fn what_is_no_hello_is_something_else() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x02\x01\x00\x05hello",
            b"\x16\x03\x01\x00\x00",
            b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        ] {
            assert_eq!(read(bytes), Hello::Other, "{bytes:?}");
        }
    }

    #[test]
    fn a_name_that_comes_late_or_is_hidden_is_not_taken_for_none() {
        fn unread(bytes: &[u8]) -> bool {
            read(bytes).is_unread(bytes)
        }
        let named = hello(Some("db.example.com"));
        assert!(!unread(&named) && !unread(&hello(None)));
        for cut in [0, 1, 5, 40, named.len() - 1] {
            assert!(unread(&named[..cut]), "{cut}");
        }
        // Longer than we read, but not than servers do.
        let mut long = vec![22, 3, 1, 0x40, 0, 1, 0, 0x50, 0];
        long.resize(5 + 0x4000, 0);
        assert!(unread(&long));
        assert!(!unread(b"EHLO web\r\n") && !unread(b"\0\0\0\x08"));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(mut bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0usize..300) {
            read(&bytes);
            // Nearly right ones, too.
            let right = hello(Some("db.example.com"));
            let at = at % right.len();
            bytes.splice(0..0, right[..at].iter().copied());
            read(&bytes);
        }
    }
}
