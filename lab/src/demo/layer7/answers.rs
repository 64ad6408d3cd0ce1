//! What curl heard, and how often. Pure.

use std::collections::BTreeMap;

/// After each answer, curl writes this.
pub(super) const WRITTEN: &str = "\t%{http_code}\t%{time_total}\n";

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    /// Its body's last line.
    pub(super) text: String,
    pub(super) status: u16,
    pub(super) seconds: f64,
}

/// All answers of a run of curl; what is no answer is passed over.
pub(super) fn heard(output: &str) -> Vec<Answer> {
    let answer = |line: &str| {
        let mut columns = line.rsplitn(3, '\t');
        let (seconds, status, text) = (columns.next()?, columns.next()?, columns.next()?);
        Some(Answer {
            text: text.to_owned(),
            status: status.parse().ok()?,
            seconds: seconds.parse().ok()?,
        })
    };
    output.lines().filter_map(answer).collect()
}

/// `18 × v1, 2 × v2`
pub(super) fn tally(words: impl IntoIterator<Item = impl ToString>) -> String {
    let mut times = BTreeMap::<String, usize>::new();
    for word in words {
        *times.entry(word.to_string()).or_default() += 1;
    }
    let times = times
        .iter()
        .map(|(word, times)| format!("{times} × {word}"));
    times.collect::<Vec<_>>().join(", ")
}

/// Text as it may stand in a query.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/:".contains(&byte) {
            out.push(byte.into());
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_what_they_say() {
        let all = heard("v1\t200\t0.004\nno\ttea\t503\t1.5\n\t404\t0.1\ncurl: (7) no route\n");
        assert_eq!(
            tally(all.iter().map(|answer| answer.status)),
            "1 × 200, 1 × 404, 1 × 503"
        );
        assert_eq!((all[1].text.as_str(), all[1].seconds), ("no\ttea", 1.5));
        assert_eq!(tally(["b", "a", "b"]), "1 × a, 2 × b");
    }

    #[test]
    fn json_fits_into_a_query() {
        assert_eq!(escaped("{\"a\": 1}"), "%7B%22a%22:%201%7D");
        assert_eq!(escaped("spiffe://a/b&c"), "spiffe://a/b%26c");
    }
}
