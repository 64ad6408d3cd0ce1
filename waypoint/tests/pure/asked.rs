//! What is asked: one form of a path, of a host, of where a request comes from.

use std::borrow::Cow;
use std::net::IpAddr;

use http::{HeaderMap, HeaderValue, Method, Uri, header};
use proptest::prelude::*;
use waypoint::asked::{
    Claim, Form, Remote, Unclear, authority, host, normalise, put_path, remote, target,
};

#[test]
fn a_path_has_one_spelling() {
    for (path, normal) in [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("/a/b/", "/a/b/"),
        ("//a", "/a"),
        ("/a//b///c", "/a/b/c"),
        ("//", "/"),
        ("/.", "/"),
        ("/..", "/"),
        ("/a/.", "/a/"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/../../b", "/b"),
        ("/a//../b", "/b"),
        ("/...", "/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/a/..b/c..", "/a/..b/c.."),
        ("/%61%2D%7e", "/a-~"),
        ("/%2e%2E/x", "/x"),
        ("/a%2fb", "/a/b"),
        ("/a%2F..%2fb", "/b"),
        ("/a\\b", "/a/b"),
        ("/a%5c..%5Cb", "/b"),
        ("/a%3fb", "/a%3Fb"),
        ("/a%23b", "/a%23b"),
        ("/a%25b", "/a%25b"),
        ("/%252e%252e/x", "/%252e%252e/x"),
        ("/caf\u{e9}", "/caf%C3%A9"),
        ("/a b", "/a%20b"),
        ("/a\"<>^`{|}", "/a%22%3C%3E%5E%60%7B%7C%7D"),
        ("/a;b=c/d", "/a;b=c/d"),
        ("/a:b@c!$&'()*+,=", "/a:b@c!$&'()*+,="),
        ("/%21%40", "/%21%40"),
    ] {
        assert_eq!(
            normalise(path, Form::default()),
            Ok(Cow::Borrowed(normal)),
            "{path}"
        );
    }
}

#[test]
fn what_is_normal_is_not_copied() {
    for path in ["/", "/a/b/c", "/a;b", "/a%20b", "/.well-known/x"] {
        assert!(
            matches!(normalise(path, Form::default()), Ok(Cow::Borrowed(_))),
            "{path}"
        );
    }
}

#[test]
fn slashes_are_kept_where_that_is_asked_for() {
    for (form, path, normal) in [
        (Form::MergeSlashes, "/a//b%2fc", "/a/b%2Fc"),
        (Form::MergeSlashes, "/a%5cb\\c", "/a%5Cb/c"),
        (Form::Base, "/a//b%2fc", "/a//b%2Fc"),
        (Form::Base, "//a/../b", "//b"),
    ] {
        assert_eq!(normalise(path, form), Ok(Cow::Borrowed(normal)), "{path}");
    }
    // What a laxer reader would resolve.
    for path in [
        "/a/..%2fb",
        "/a%2f..%2fb",
        "/a%5c..%5cb",
        "/a/%2e%2e%2fb",
        "/a%2f.;x",
        "/a%2fb/../c",
        "/a%5cb/../c",
        "/a//../b",
    ] {
        assert_eq!(
            normalise(path, Form::Base),
            Err(Unclear::HiddenDots),
            "{path}"
        );
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    for (path, why) in [
        ("", Unclear::NotAPath),
        ("a", Unclear::NotAPath),
        ("*", Unclear::NotAPath),
        ("\\a", Unclear::NotAPath),
        ("%2fa", Unclear::NotAPath),
        ("/%", Unclear::Escape),
        ("/%4", Unclear::Escape),
        ("/%4g", Unclear::Escape),
        ("/%+1", Unclear::Escape),
        ("/%u0041", Unclear::Escape),
        ("/a%00", Unclear::Control),
        ("/a\0", Unclear::Control),
        ("/a\r\n", Unclear::Control),
        ("/a\x7f", Unclear::Control),
        ("/..;/a", Unclear::HiddenDots),
        ("/a/..;b=c/d", Unclear::HiddenDots),
        ("/a/.;/d", Unclear::HiddenDots),
        ("/a/..%3b/d", Unclear::HiddenDots),
        ("/a/%2e%2e;/d", Unclear::HiddenDots),
    ] {
        assert_eq!(normalise(path, Form::default()), Err(why), "{path:?}");
    }
}

#[test]
fn a_star_is_a_path_for_options_only() {
    let star = Uri::from_static("*");
    assert_eq!(
        target(&Method::OPTIONS, &star, Form::default()),
        Ok(Cow::Borrowed("*"))
    );
    assert_eq!(
        target(&Method::GET, &star, Form::default()),
        Err(Unclear::NotAPath)
    );
    let authority_only = Uri::from_static("example.com:80");
    assert!(target(&Method::CONNECT, &authority_only, Form::default()).is_err());
}

#[test]
fn upstream_gets_the_path_that_was_judged() {
    for (uri, expected) in [
        ("/a/%2e%2e/b?x=%2e", "/b?x=%2e"),
        ("http://example.com//b", "http://example.com/b"),
        ("/b//?", "/b/?"),
    ] {
        let mut uri: Uri = uri.parse().unwrap();
        let path = target(&Method::GET, &uri, Form::default())
            .unwrap()
            .into_owned();
        put_path(&mut uri, &path).unwrap();
        assert_eq!(uri.to_string(), expected);
    }
}

/// What the laxest app makes of a path: all escapes decoded once, every slash a slash, dots resolved.
fn as_an_app_reads(path: &str) -> Vec<u8> {
    let mut read = Vec::new();
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        read.push(match byte {
            b'%' => {
                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_normal_path_is_normal_and_means_the_same(
        path in "/([a-c./;\\\\ é]|//|/[.][.]/|[.][.]|%2[eEfF5]|%2[fF]|%5[cC]|%3[bB]|%6[1-3]|%C3%A9){0,10}"
    ) {
        for form in [Form::DecodeAndMergeSlashes, Form::MergeSlashes, Form::Base] {
            let Ok(normal) = normalise(&path, form) else {
                continue;
            };
            prop_assert_eq!(normalise(&normal, form), Ok(Cow::Borrowed(&*normal)), "not normal");
            prop_assert_eq!(as_an_app_reads(&path), as_an_app_reads(&normal), "{}", normal);
            prop_assert!(normal.starts_with('/'));
            prop_assert!(form == Form::Base || !normal.contains("//"));
            prop_assert!(!normal.split('/').any(|segment| segment == "." || segment == ".."));
            prop_assert!(normal.is_ascii() && !normal.contains(['\\', ' ']));
            let uri: Uri = normal.parse().unwrap();
            prop_assert_eq!(uri.path(), &*normal);
        }
    }

    #[test]
    fn no_reader_finds_dot_segments_in_a_normal_path(path in "/([a./;\\\\]|//|[.][.]|%2[eEfF]|%5[cC]|%3[bB]){0,10}") {
        for form in [Form::DecodeAndMergeSlashes, Form::MergeSlashes, Form::Base] {
            let Ok(normal) = normalise(&path, form) else {
                continue;
            };
            let lower = normal.to_ascii_lowercase();
            let read = lower.replace("%2e", ".").replace("%2f", "/").replace("%5c", "/").replace("%3b", ";");
            let dots = read.split('/').map(|segment| segment.split(';').next().unwrap_or_default());
            prop_assert!(dots.into_iter().all(|name| name != "." && name != ".."), "{} is {}", path, normal);
        }
    }

    #[test]
    fn no_text_panics(text in any::<String>(), bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        let _ = normalise(&text, Form::default());
        let _ = normalise(&format!("/{text}"), Form::Base);
        let _ = host(&text);
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            headers.insert("x-forwarded-for", value);
        }
        let _ = remote(IpAddr::from([10, 0, 0, 1]), &headers, 1);
    }
}

#[test]
fn a_host_has_one_spelling() {
    for (text, name, port) in [
        ("example.com", "example.com", None),
        ("EXAMPLE.com:8080", "example.com", Some(8080)),
        ("example.com.", "example.com", None),
        ("example.com.:1", "example.com", Some(1)),
        ("a_b.c-d", "a_b.c-d", None),
        ("10.0.0.1:80", "10.0.0.1", Some(80)),
        ("[fd00::1]:80", "[fd00::1]", Some(80)),
        ("[::1]", "[::1]", None),
    ] {
        let found = host(text).unwrap();
        assert_eq!((&*found.name, found.port), (name, port), "{text}");
    }
    for bad in [
        "",
        ".",
        ":80",
        "a:",
        "a:b",
        "a:80:80",
        "a:65536",
        "a:+1",
        "a:000080",
        "u@a",
        "a/b",
        "a b",
        "a..b",
        ".a",
        "a%2e",
        "a\0",
        "[::1",
        "::1",
        "[::1]x",
        "[x]",
        "[::1%eth0]",
        "é",
        "a,b",
        "a?",
        "a#",
        "a\\b",
    ] {
        assert_eq!(host(bad), Err(Unclear::Host), "{bad:?}");
    }
    assert!(host(&"a".repeat(300)).is_err());
}

#[test]
fn a_request_names_one_host() {
    let of = |uri: &'static str, hosts: &[&'static str]| {
        let uri = Uri::from_static(uri);
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_static(host));
        }
        authority(&uri, &headers).map(str::to_owned)
    };
    assert_eq!(of("/", &["a"]), Ok("a".to_owned()));
    assert_eq!(of("http://a/", &[]), Ok("a".to_owned()));
    assert_eq!(of("http://a/", &["A"]), Ok("a".to_owned()));
    assert_eq!(of("http://a/", &["b"]), Err(Unclear::TwoHosts));
    assert_eq!(of("http://a:80/", &["a"]), Err(Unclear::TwoHosts));
    assert_eq!(of("/", &["a", "a"]), Err(Unclear::TwoHosts));
    assert_eq!(of("/", &[]), Err(Unclear::NoHost));
    assert_eq!(of("/", &[""]), Err(Unclear::NoHost));
}

#[test]
fn an_address_is_believed_if_a_trusted_proxy_wrote_it() {
    let client: IpAddr = "10.0.0.1".parse().unwrap();
    let of = |lines: &[&'static str], hops| {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", HeaderValue::from_static(line));
        }
        remote(client, &headers, hops)
    };
    let believed = |address: &str| Remote {
        address: address.parse().unwrap(),
        claim: Claim::Nothing,
    };
    let claimed = |claim| Remote {
        address: client,
        claim,
    };
    let address = |text: &str| Claim::Address(text.parse().unwrap());
    assert_eq!(of(&[], 0), believed("10.0.0.1"));
    assert_eq!(of(&[], 2), believed("10.0.0.1"));
    assert_eq!(of(&["1.1.1.1"], 0), claimed(address("1.1.1.1")));
    assert_eq!(of(&["1.1.1.1, 2.2.2.2"], 0), claimed(address("2.2.2.2")));
    assert_eq!(of(&["1.1.1.1", "2.2.2.2"], 0), claimed(address("2.2.2.2")));
    assert_eq!(of(&["x"], 0), claimed(Claim::Unreadable));
    assert_eq!(of(&["1.1.1.1, "], 0), claimed(Claim::Unreadable));
    assert_eq!(of(&["1.1.1.1, 2.2.2.2"], 1), believed("2.2.2.2"));
    assert_eq!(of(&["1.1.1.1, 2.2.2.2"], 2), believed("1.1.1.1"));
    assert_eq!(of(&["1.1.1.1", "2.2.2.2,3.3.3.3"], 2), believed("2.2.2.2"));
    assert_eq!(of(&["1.1.1.1, 2.2.2.2"], 3), claimed(Claim::Unreadable));
    assert_eq!(of(&["x, 2.2.2.2"], 2), claimed(Claim::Unreadable));
    assert_eq!(of(&["[fd00::1]"], 1), believed("fd00::1"));
    assert_eq!(of(&["[fd00::1]:80"], 1), believed("fd00::1"));
    assert_eq!(of(&["::ffff:1.2.3.4"], 1), believed("1.2.3.4"));
    assert_eq!(of(&["1.2.3.4:5678"], 1), believed("1.2.3.4"));
}
