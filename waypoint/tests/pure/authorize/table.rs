//! `testdata/authorization.txt`, read: groups of policies, and what they say to requests.

use std::net::IpAddr;

use serde_json::Value;

/// Policies, and requests that are judged by them.
pub(crate) struct Group {
    pub(crate) title: String,
    pub(crate) policies: Vec<Policy>,
    pub(crate) cases: Vec<Case>,
}

/// As a user writes it, in namespace `app`.
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) action: String,
    pub(crate) dry_run: bool,
    pub(crate) provider: String,
    /// `spec.rules`
    pub(crate) rules: Vec<Value>,
}

/// A request, and the answer.
pub(crate) struct Case {
    /// In the file.
    pub(crate) line: usize,
    /// `allow`, `deny`, `unclear`, `ask`, `400`
    pub(crate) verdict: String,
    pub(crate) method: String,
    /// With query, as it is sent.
    pub(crate) path: String,
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    /// Namespace and account.
    pub(crate) identity: Option<(String, String)>,
    pub(crate) trust_domain: String,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) claims: Option<Value>,
    pub(crate) sni: Option<String>,
    pub(crate) https: bool,
    pub(crate) tcp: bool,
    /// `policy.rule`, or `-`.
    pub(crate) by: Option<String>,
}

/// All groups.
pub(crate) fn groups() -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let text = include_str!("../../../testdata/authorization.txt");
    for (number, line) in text.lines().enumerate() {
        if let Some(title) = line.strip_prefix("= ") {
            groups.push(Group {
                title: title.to_owned(),
                policies: Vec::new(),
                cases: Vec::new(),
            });
        } else if let Some(policy) = line.strip_prefix("policy ") {
            groups
                .last_mut()
                .unwrap()
                .policies
                .push(read_policy(policy));
        } else if !line.is_empty() && !line.starts_with('#') {
            groups
                .last_mut()
                .unwrap()
                .cases
                .push(read_case(number + 1, line));
        }
    }
    groups
}

fn read_policy(line: &str) -> Policy {
    let (words, rules) = line.split_at(line.find(['{', '[']).unwrap());
    let mut words = words.split_whitespace();
    let mut policy = Policy {
        name: words.next().unwrap().to_owned(),
        action: words.next().unwrap().to_owned(),
        dry_run: false,
        provider: String::new(),
        rules: match serde_json::from_str(rules).unwrap() {
            Value::Array(rules) => rules,
            rule => vec![rule],
        },
    };
    for word in words {
        match word.split_once('=') {
            None if word == "dry-run" => policy.dry_run = true,
            Some(("provider", key)) => key.clone_into(&mut policy.provider),
            _ => panic!("{line}: {word}"),
        }
    }
    policy
}

fn read_case(line: usize, text: &str) -> Case {
    let words = words(text);
    let [verdict, method, path, rest @ ..] = &*words else {
        panic!("{text}");
    };
    let mut case = Case {
        line,
        verdict: verdict.clone(),
        method: method.clone(),
        path: path.clone(),
        from: "10.0.0.7".parse().unwrap(),
        to: "10.96.0.1".parse().unwrap(),
        identity: Some(("app".to_owned(), "client".to_owned())),
        trust_domain: "cluster.local".to_owned(),
        host: "shop.app.svc.cluster.local".to_owned(),
        port: 80,
        headers: Vec::new(),
        claims: None,
        sni: None,
        https: false,
        tcp: false,
        by: None,
    };
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        match (key, key.strip_prefix("h:")) {
            (_, Some(name)) => case.headers.push((name.to_owned(), bytes(value))),
            ("as", _) => case.identity = value.split_once('/').map(|(a, b)| (a.into(), b.into())),
            ("td", _) => value.clone_into(&mut case.trust_domain),
            ("host", _) => value.clone_into(&mut case.host),
            ("from", _) => case.from = value.parse().unwrap(),
            ("to", _) => case.to = value.parse().unwrap(),
            ("port", _) => case.port = value.parse().unwrap(),
            ("claims", _) => case.claims = Some(serde_json::from_str(value).unwrap()),
            ("sni", _) => case.sni = Some(value.to_owned()),
            ("https", _) => case.https = true,
            ("tcp", _) => case.tcp = true,
            ("by", _) => case.by = Some(rest.next().unwrap().clone()),
            _ => panic!("{text}: {word}"),
        }
    }
    case
}

/// Apart at spaces that are not within single quotes.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for letter in text.chars() {
        match letter {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            letter => words.last_mut().unwrap().push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// With `\xNN` for a byte.
fn bytes(text: &str) -> Vec<u8> {
    let mut parts = text.split("\\x");
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).unwrap());
        bytes.extend_from_slice(rest.as_bytes());
    }
    bytes
}
