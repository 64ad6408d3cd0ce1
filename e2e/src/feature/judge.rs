//! Whether what was heard is what had to be. Pure.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use lab::AccessRecord;

use super::{Ask, Heard};

pub(super) fn judge(ask: &Ask, heard: &[Heard], log: &[AccessRecord]) -> Result<()> {
    ensure!(heard.len() == ask.times, "{} answers", heard.len());
    counted(ask, heard)?;
    for one in heard {
        answered(ask, one).with_context(|| format!("{one:?}"))?;
        logged(ask, one, log)?;
    }
    let first = heard.first().map(Heard::pod);
    let same = heard.iter().all(|one| Some(one.pod()) == first);
    ensure!(!ask.same || same, "they were answered by several");
    Ok(())
}

fn counted(ask: &Ask, heard: &[Heard]) -> Result<()> {
    let mut counts = BTreeMap::<String, usize>::new();
    for one in heard {
        *counts.entry(one.status.to_string()).or_default() += 1;
        *counts.entry(one.pod().to_owned()).or_default() += 1;
    }
    for (what, [least, most]) in &ask.counts {
        let count = counts.get(what).copied().unwrap_or_default();
        ensure!(
            (*least..=*most).contains(&count),
            "{count} by {what}, not {least} to {most}: {counts:?}"
        );
    }
    Ok(())
}

fn answered(ask: &Ask, one: &Heard) -> Result<()> {
    let is = |what: &str, wanted: Option<&String>, got: Option<&str>| {
        let good = match (wanted, got) {
            (None, got) => got.is_none(),
            (Some(wanted), Some(got)) => glob(wanted, got),
            (Some(_), None) => false,
        };
        ensure!(good, "{what} is {got:?}, not {wanted:?}");
        Ok(())
    };
    ensure!(
        !ask.around || one.at.is_some(),
        "nobody knows where the pod is"
    );
    ensure!(
        !ask.counts.is_empty() || one.status == ask.status,
        "not {}",
        ask.status
    );
    if let Some(path) = &ask.path {
        is("the path", Some(path), one.said["path"].as_str())?;
    }
    for (name, wanted) in &ask.saw {
        ensure!(one.said.is_object(), "the app said nothing");
        let got = one.said["headers"][name].as_str();
        is(name, wanted.as_ref(), got)?;
    }
    for (name, wanted) in &ask.heads {
        let got = one.heads.get(name).map(String::as_str);
        is(name, wanted.as_ref(), got)?;
    }
    if let Some(text) = &ask.text {
        is("the body", Some(text), Some(one.text.trim_end()))?;
    }
    ensure!(one.took >= ask.least, "sooner than {} ms", ask.least);
    let late = ask.most.is_some_and(|most| one.took > most);
    ensure!(!late, "later than {:?} ms", ask.most);
    Ok(())
}

fn logged(ask: &Ask, one: &Heard, log: &[AccessRecord]) -> Result<()> {
    if ask.log.is_empty() {
        return Ok(());
    }
    let mut records = log
        .iter()
        .filter(|record| record.field("request_id") == one.id);
    let record = records.next().context("it is not in the log")?;
    for (field, wanted) in &ask.log {
        let got = record.field(field);
        ensure!(glob(wanted, got), "{field} is {got:?} in {record:?}");
    }
    Ok(())
}

/// Whether `text` is `pattern`, in which a `*` stands for anything.
pub fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(text) = text.strip_prefix(first) else {
        return false;
    };
    // Each piece at its first place leaves most for those behind it; the last one must be the end.
    let mut pieces = rest.split('*').peekable();
    let mut text = text;
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            return text.ends_with(piece);
        }
        let Some(at) = text.find(piece) else {
            return false;
        };
        text = &text[at + piece.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("*", "", true),
            ("*b", "ab", true),
            ("*b*", "abc", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("a*a", "a", false),
        ] {
            assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
        }
    }

    fn heard(pod: &str, status: u16) -> Heard {
        let said = json!({"pod": pod, "path": "/x", "headers": {"a": "1"}});
        Heard {
            status,
            said,
            took: 7,
            id: "id".into(),
            ..Heard::default()
        }
    }

    #[test]
    fn each_expectation_can_be_disappointed() {
        let good = |text: &str, all: &[Heard]| {
            let ask: Ask = serde_saphyr::from_str(text).unwrap();
            let line = "t\tinfo\taccess\trequest complete\trequest_id=\"id\" flags=RL";
            judge(&ask, all, &[AccessRecord::parse(line).unwrap()]).is_ok()
        };
        let (red, blue) = (heard("red", 200), heard("blue", 200));
        assert!(good("{}", std::slice::from_ref(&red)));
        assert!(!good("{}", &[heard("red", 503)]));
        assert!(!good("{times: 2}", std::slice::from_ref(&red)));
        assert!(good("{times: 2, same: true}", &[red.clone(), red.clone()]));
        assert!(!good(
            "{times: 2, same: true}",
            &[red.clone(), blue.clone()]
        ));
        let both = "{times: 2, counts: {red: [1, 1], '200': [2, 2]}}";
        assert!(good(both, &[red.clone(), blue.clone()]));
        assert!(!good(both, &[red.clone(), red.clone()]));
        for (fine, bad) in [
            ("{path: /x}", "{path: /y}"),
            ("{saw: {a: '1'}}", "{saw: {a: '2'}}"),
            ("{saw: {b: null}}", "{saw: {a: null}}"),
            ("{heads: {b: null}}", "{heads: {b: c}}"),
            ("{log: {flags: RL}}", "{log: {flags: UH}}"),
            ("{text: ''}", "{text: a}"),
            ("{least: 7}", "{least: 8}"),
            ("{most: 7}", "{most: 6}"),
        ] {
            assert!(good(fine, std::slice::from_ref(&red)), "{fine}");
            assert!(!good(bad, std::slice::from_ref(&red)), "{bad}");
        }
        let mut at = red.clone();
        at.at = Some("10.0.0.1:8080".into());
        assert!(good("{around: true}", &[at]));
        assert!(!good("{around: true}", std::slice::from_ref(&red)));
    }
}
