//! Metrics in the Prometheus text format: parse, select, add up. Pure.

use std::collections::BTreeMap;

/// One scrape.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    samples: Vec<Sample>,
}

/// One line of a scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name with its suffix (`_total`, `_bucket`).
    pub name: String,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
    /// The value.
    pub value: f64,
}

impl Metrics {
    /// Reads a scrape; lines that are no samples are passed over.
    pub fn parse(text: &str) -> Self {
        Self {
            samples: text
                .lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(sample)
                .collect(),
        }
    }

    /// The samples of one name whose labels include all of `labels`.
    pub fn select<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(k, v)| sample.labels.get(*k).is_some_and(|found| found == v))
        })
    }

    /// The sum of [`Metrics::select`]; 0 when there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.select(name, labels).map(|sample| sample.value).sum()
    }

    /// Every sample, in the scrape's order.
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (series, labels, rest) = match line.find('{') {
        Some(open) => {
            let (labels, rest) = labels(&line[open + 1..])?;
            (&line[..open], labels, rest)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, BTreeMap::new(), rest)
        }
    };
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Sample {
        name: series.to_owned(),
        labels,
        value,
    })
}

/// Labels up to the closing brace, and what follows it. Inside quotes `\"`, `\\` and `\n` are escapes.
fn labels(mut text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, quoted) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at + 1,
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.trim_start_matches(',').trim().to_owned(), value);
        text = &quoted[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_selected_by_labels_and_added_up() {
        let metrics = Metrics::parse(
            "# TYPE x counter\nx_total{a=\"1\",b=\"q\\\"}{\"} 3\nx_total{a=\"1\",b=\"z\"} 4\nx_total{a=\"2\"} 100\nplain 7 1234\n\nbroken{",
        );
        assert_eq!(metrics.sum("x_total", &[("a", "1")]), 7.0);
        assert_eq!(metrics.sum("x_total", &[("b", "q\"}{")]), 3.0);
        assert_eq!(metrics.sum("plain", &[]), 7.0);
        assert_eq!(metrics.sum("absent", &[]), 0.0);
        assert_eq!(metrics.samples().len(), 4);
    }
}
