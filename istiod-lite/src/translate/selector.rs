//! Selectors by labels, as Kubernetes has them.

use std::collections::BTreeSet;

use super::Labels;

/// A selector of whoever has labels: all of its labels, and all of its expressions. An empty one selects everybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Labels,
    expressions: Vec<(String, String, BTreeSet<String>)>,
}

impl Selector {
    /// Of labels, and of expressions: key, operator, values.
    pub fn new(
        labels: Labels,
        expressions: impl IntoIterator<Item = (String, String, Vec<String>)>,
    ) -> Self {
        let expressions = expressions.into_iter();
        Self {
            labels,
            expressions: expressions
                .map(|(key, operator, values)| (key, operator, values.into_iter().collect()))
                .collect(),
        }
    }

    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.expressions.is_empty()
    }

    /// Whether it selects who has these labels. An operator that nobody knows selects nothing.
    pub fn selects(&self, labels: &Labels) -> bool {
        let holds = |(key, operator, values): &(String, String, BTreeSet<String>)| {
            let found = labels.get(key);
            match operator.as_str() {
                "In" => found.is_some_and(|it| values.contains(it)),
                "NotIn" => found.is_none_or(|it| !values.contains(it)),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        };
        let mut wanted = self.labels.iter();
        wanted.all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(holds)
    }

    /// What of its expressions an API server would not take.
    pub fn fault(&self) -> Option<String> {
        let fault = |(key, operator, values): &(String, String, BTreeSet<String>)| {
            let wrong = match (operator.as_str(), values.is_empty()) {
                _ if key.is_empty() => "without a key".to_owned(),
                ("In" | "NotIn", true) => format!("{operator} without values"),
                ("In" | "NotIn", false) | ("Exists" | "DoesNotExist", true) => return None,
                ("Exists" | "DoesNotExist", false) => format!("{operator} with values"),
                _ => format!("{operator:?} is neither In, NotIn, Exists nor DoesNotExist"),
            };
            Some(format!("expression {key:?}: {wrong}"))
        };
        self.expressions.iter().find_map(fault)
    }
}
