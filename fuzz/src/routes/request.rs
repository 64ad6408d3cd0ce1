//! 1. lines become a request: method and target, then headers
//! 2. its path has one spelling, which stays what it is if it is asked for again
//! 3. whatever rule it finds leaves a path and a host that the next proxy reads as we do

use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use api::waypoint::path_change::Change;
use api::waypoint::path_match::Match as Path;
use api::waypoint::{
    Filter, Match, Origin, PathChange, PathMatch, RegexChange, Rewrite, Route, Session, filter,
    session,
};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Request};
use waypoint::asked::{self, Asked, Form};
use waypoint::client::Client;
use waypoint::filter::About;
use waypoint::route::{Deadlines, Table, Timeouts};

/// See the file's head.
pub fn request(data: &[u8]) {
    let Some(mut head) = head(data) else {
        return;
    };
    let Ok(path) = asked::target(&head.method, &head.uri, Form::default()) else {
        return;
    };
    let path = path.into_owned();
    let again = asked::normalise(&path, Form::default());
    assert!(path == "*" || again.as_deref() == Ok(&*path), "{path:?}");
    if asked::put_path(&mut head.uri, &path).is_err() {
        return;
    }
    assert_eq!(head.uri.path(), path);
    reads(&head);
    let Ok(authority) = asked::authority(&head.uri, &head.headers) else {
        return;
    };
    let Ok(host) = asked::host(authority).map(|host| host.name.into_owned()) else {
        return;
    };
    let authority = authority.to_owned();
    judged(head, &authority, &host);
}

/// Lines of text as a head; None if no parser of HTTP would let it pass.
fn head(data: &[u8]) -> Option<Parts> {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut words = lines.next()?.splitn(2, |byte| *byte == b' ');
    let request = Request::builder()
        .method(words.next()?)
        .uri(words.next()?)
        .body(());
    let mut head = request.ok()?.into_parts().0;
    for line in lines.take(32) {
        let mut halves = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(halves.next()?).ok()?;
        let value = HeaderValue::from_bytes(halves.next()?.trim_ascii()).ok()?;
        head.headers.append(name, value);
    }
    Some(head)
}

/// What is read of headers by itself.
fn reads(head: &Parts) {
    let address = IpAddr::from([10, 0, 0, 1]);
    for hops in 0..3 {
        let _remote = asked::remote(address, &head.headers, hops);
    }
    let limit = Duration::from_secs(5);
    let defaults = Deadlines {
        request: Some(limit),
        ..Deadlines::default()
    };
    let deadlines = Timeouts::default().of(&head.headers, defaults, None);
    assert!(deadlines.request.is_some_and(|asked| asked <= limit));
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
    let by = session::By::Cookie("s".into());
    let session = Session {
        by: Some(by),
        absolute_timeout: 1000,
        idle_timeout: 500,
        permanent: true,
        path: String::new(),
    };
    let session = waypoint::session::Session::compile(&session).expect("a name of a cookie");
    if let Some(wanted) = session.wanted(&head.headers, now) {
        let kept = session.keep(wanted.endpoint, Some(&wanted), now);
        assert!(kept.is_none_or(|(name, _)| name == "set-cookie"));
    }
}

fn judged(mut head: Parts, authority: &str, host: &str) {
    let client = Client {
        identity: None,
        address: ([10, 0, 0, 1], 1).into(),
        peer: [10, 0, 0, 1].into(),
        workload: None,
        said: Default::default(),
    };
    let asked = Asked {
        method: &head.method,
        scheme: "http",
        host,
        authority,
        path: head.uri.path(),
        query: head.uri.query(),
        headers: &head.headers,
        port: 80,
        destination: ([10, 96, 0, 1], 80).into(),
        sni: None,
        client: &client,
        remote: asked::remote(client.address.ip(), &head.headers, 0),
        claims: None,
    };
    let Some(found) = TABLE.find(&asked) else {
        return;
    };
    assert!(found.matched.length <= asked.path.len());
    let about = About {
        scheme: "http",
        host,
        port: 80,
        matched: found.matched,
    };
    let query = head.uri.query().map(String::from);
    let passed = found.rule.filters.request(&mut head, &about, || 0);
    if passed.answer.is_some() {
        return;
    }
    let path = head.uri.path();
    assert!(path.starts_with('/'), "{path:?}");
    let again = asked::normalise(path, Form::default());
    assert_eq!(again.as_deref(), Ok(path), "a path that was rewritten");
    assert_eq!(head.uri.query(), query.as_deref());
}

/// One rule for each kind of path, each of which writes it anew.
static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let regex = |pattern: &str, substitution: &str| {
        Change::Regex(RegexChange {
            pattern: pattern.into(),
            substitution: substitution.into(),
        })
    };
    let rules = [
        (Path::Prefix("/a".into()), Change::Prefix("/".into())),
        (Path::TextPrefix("/b".into()), Change::Prefix("/x/".into())),
        (Path::Exact("/c".into()), Change::Full("/y z".into())),
        (Path::Regex("/d.*".into()), regex("d(.)", r"\1\1/")),
        (Path::Prefix("/".into()), regex("%2|.;", "")),
    ];
    let rules: Vec<_> = rules.into_iter().map(rule).collect();
    let rules: Vec<_> = rules
        .iter()
        .map(|(origin, route)| (origin, route))
        .collect();
    Table::compile(&rules)
});

fn rule((path, change): (Path, Change)) -> (Origin, Route) {
    let rewrite = Rewrite {
        hostname: String::new(),
        path: Some(PathChange {
            change: Some(change),
        }),
    };
    let route = Route {
        matches: vec![Match {
            path: Some(PathMatch {
                ignore_case: true,
                r#match: Some(path),
            }),
            ..Match::default()
        }],
        filters: vec![Filter {
            filter: Some(filter::Filter::Rewrite(rewrite)),
        }],
        ..Route::default()
    };
    (Origin::default(), route)
}
