//! Generated requests: right for some condition, then changed a little.

use super::draw::Draw;
use super::rules::{
    METHODS, Match, NAMES, Named, PATHS, Path, QUERY, Ruled, TEXTS, Text, VALUES, joined,
};

/// A request as it is written.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) method: String,
    /// With its query.
    pub(super) target: String,
    pub(super) host: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
    pub(super) http2: bool,
}

impl Ask {
    /// One for rules of a service.
    pub(super) fn generate(ruled: &Ruled, draw: &mut Draw) -> Self {
        let rules: Vec<_> = ruled.objects.iter().flatten().collect();
        let rule = rules[draw.below(rules.len())];
        let one = &rule.matches[draw.below(rule.matches.len())];
        let mut ask = Self::right(ruled, one, draw);
        if rule.retries.is_some() && draw.chance(60) {
            let status = draw.one(&["503", "504", "500", "409", "429"]);
            ask.say("x-status", status);
            ask.say("x-fail", draw.one(&["1", "2", "9"]));
        } else if draw.chance(10) {
            ask.say("x-status", draw.one(&["201", "204", "304", "404", "500"]));
        }
        let timed = rule.timeouts.whole.or(rule.timeouts.each).is_some();
        if timed && draw.chance(15) {
            // Longer than anybody waits; of one that fails, only while it fails.
            ask.say("x-delay", "2500");
        }
        if rule.cors.is_some() && draw.chance(70) {
            ask.be_of_a_page(draw);
        }
        for _ in 0..draw.below(3) {
            ask.change(draw);
        }
        ask
    }

    /// Whether its app takes its time.
    pub(super) fn is_slow(&self) -> bool {
        self.headers.iter().any(|(name, _)| name == "x-delay")
    }

    /// One that the condition is about.
    fn right(ruled: &Ruled, one: &Match, draw: &mut Draw) -> Self {
        let path = match &one.path {
            None => joined(draw),
            Some(Path::Exact(path)) => path.clone(),
            Some(Path::Prefix(path) | Path::Text(path)) => match draw.below(3) {
                0 => path.clone(),
                1 => format!("{path}{}", joined(draw)),
                _ => format!("{}{}", path.trim_end_matches('/'), joined(draw)),
            },
            Some(Path::Regex(path)) => sample(PATHS, path, draw),
        };
        let query: Vec<String> = one
            .query
            .iter()
            .map(|named| format!("{}={}", named.name, value(named, draw).replace(' ', "%20")))
            .collect();
        let method = one.method.unwrap_or_else(|| match draw.below(4) {
            0 => draw.one(METHODS),
            _ => "GET",
        });
        let mut ask = Self {
            method: method.into(),
            target: match query.is_empty() {
                true => path,
                false => format!("{path}?{}", query.join("&")),
            },
            host: match draw.below(8) {
                0 => format!("{}.shop:80", ruled.name),
                1 => "other.example".into(),
                2 => format!("{}.Shop", ruled.name.to_uppercase()),
                _ => format!("{}.shop", ruled.name),
            },
            headers: Vec::new(),
            body: String::new(),
            http2: false,
        };
        for named in one.headers.iter().filter(|named| !named.without) {
            let value = value(named, draw);
            ask.say(named.name, &value);
        }
        if matches!(method, "POST" | "PUT" | "PATCH") {
            ask.body = "a body ".repeat(draw.below(30));
        }
        ask
    }

    pub(super) fn say(&mut self, name: &str, value: &str) {
        self.headers.push((name.into(), value.into()));
    }

    fn be_of_a_page(&mut self, draw: &mut Draw) {
        self.say(
            "origin",
            draw.one(&[
                "https://a.example",
                "http://b.example:8080",
                "https://c.example",
                "null",
            ]),
        );
        if draw.chance(50) {
            self.method = "OPTIONS".into();
            self.body.clear();
            self.say(
                "access-control-request-method",
                draw.one(&["GET", "PUT", "DELETE"]),
            );
            if draw.chance(50) {
                self.say(
                    "access-control-request-headers",
                    draw.one(&["x-a", "x-a,x-other"]),
                );
            }
        }
    }

    pub(super) fn change(&mut self, draw: &mut Draw) {
        match draw.below(10) {
            0..5 => self.target = other_path(&self.target, draw),
            5..7 => {
                let name = draw.one(NAMES);
                let value = draw.one(VALUES);
                match draw.below(3) {
                    0 => self.headers.retain(|(one, _)| one != name),
                    1 => self.say(name, value),
                    _ => self.say(&name.to_uppercase(), value),
                }
            }
            7..9 => self.target = other_query(&self.target, draw),
            _ => self.method = draw.one(METHODS).into(),
        }
    }
}

fn value(named: &Named, draw: &mut Draw) -> String {
    match named.text {
        Text::Exact(value) => value.into(),
        Text::Prefix(value) => format!("{value}{}", draw.one(&["", "x", "2"])),
        Text::Regex(value) => sample(TEXTS, value, draw),
        Text::Present => draw.one(VALUES).into(),
    }
}

fn sample(all: &[(&str, &[&str])], pattern: &str, draw: &mut Draw) -> String {
    let found = all.iter().find(|(one, _)| *one == pattern);
    found
        .map(|(_, samples)| draw.one(samples).to_owned())
        .unwrap_or_default()
}

fn other_path(target: &str, draw: &mut Draw) -> String {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (target, String::new()),
    };
    // Between two of its characters.
    let at = draw.below(path.len()).max(1);
    let (before, after) = path.split_at(at);
    let path = match draw.below(16) {
        0 => format!("{path}/"),
        1 => format!("{path}{}", joined(draw)),
        2 => path.to_uppercase(),
        3 => path.replacen('/', "//", 1),
        4 => format!(
            "{before}%{:02x}{}",
            after.as_bytes().first().unwrap_or(&b'a'),
            after.get(1..).unwrap_or_default()
        ),
        5 => format!("/x/..{path}"),
        6 => format!("{path}/."),
        7 => format!("{path}/../b"),
        8 => path.replacen("/", "/./", 1),
        9 => format!("{before}%2F{after}"),
        10 => format!("{path};p=1"),
        11 => format!(
            "{before}{}{after}",
            draw.one(&[
                "%zz", "%00", "%", "%25", "%20", "\\", "+", "*", "'", "|", "%7C", "%c3%a9"
            ])
        ),
        12 => path[..path.len() - 1].to_owned(),
        13 => joined(draw),
        14 => format!("{path}/..;x/b"),
        _ => format!("{path}/%2e%2e/b"),
    };
    let path = if path.starts_with('/') {
        path
    } else {
        format!("/{path}")
    };
    path + &query
}

fn other_query(target: &str, draw: &mut Draw) -> String {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut all: Vec<String> = query
        .split('&')
        .filter(|one| !one.is_empty())
        .map(str::to_owned)
        .collect();
    match draw.below(6) {
        0 => all.reverse(),
        1 => all.clear(),
        2 => all.insert(
            0,
            format!("{}={}", draw.one(QUERY), draw.one(&["1", "2", "one"])),
        ),
        3 => all.push(draw.one(QUERY).to_owned()),
        4 => all.push(format!(
            "{}={}",
            draw.one(QUERY),
            draw.one(&["%31", "o%6Ee", "1+1", "", "a%2Cb"])
        )),
        _ => all.push(format!(
            "{}={}",
            draw.one(&["%71", "Q", "a%2Db"]),
            draw.one(&["1", "42"])
        )),
    }
    match all.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{}", all.join("&")),
    }
}
