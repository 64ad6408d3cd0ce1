//! Which policy and which rule decide, and why: for `/explain`.

use serde::Serialize;

use super::facts::Facts;
use super::{Action, Clause, Policies, Policy, Rule, Truth, Verdict};
use crate::asked::Asked;

/// What all policies say to one request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// `allow`, `deny`, or `ask`.
    pub verdict: &'static str,
    /// Who decided, in words.
    pub because: String,
    /// Each policy.
    pub policies: Vec<Explained>,
}

/// What one policy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// `namespace/name`
    pub policy: String,
    /// What a match means.
    pub action: Action,
    /// For the log only.
    pub dry_run: bool,
    /// Why it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invalid: Option<String>,
    /// It is for other ports of the service.
    pub other_port: bool,
    /// Each rule.
    pub rules: Vec<ExplainedRule>,
}

/// What one rule says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedRule {
    /// Whether it matches.
    pub holds: Truth,
    /// Of each source, operation and `when`, each condition.
    pub conditions: Vec<ExplainedCondition>,
}

/// What one condition says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExplainedCondition {
    /// `from[0]`, `to[1]`, `when`
    pub at: String,
    /// As it was written.
    pub condition: String,
    /// Whether it holds.
    pub holds: Truth,
}

impl Policies {
    /// What each policy says to a request, and who decides.
    pub fn explain(&self, asked: &Asked<'_>) -> Explanation {
        let facts = Facts::of(asked);
        let (verdict, because) = words(&self.judge(asked));
        Explanation {
            verdict,
            because,
            policies: self
                .all
                .iter()
                .map(|policy| policy.explain(&facts))
                .collect(),
        }
    }
}

fn words(verdict: &Verdict<'_>) -> (&'static str, String) {
    match verdict {
        Verdict::Allow { by: None } => (
            "allow",
            "no allow policy applies, and none denies".to_owned(),
        ),
        Verdict::Allow { by: Some(by) } => ("allow", format!("allowed by {by}")),
        Verdict::Deny(denied) => ("deny", denied.to_string()),
        Verdict::Ask(providers) => ("ask", format!("first asked: {}", providers.join(", "))),
    }
}

impl Policy {
    fn explain(&self, facts: &Facts<'_>) -> Explained {
        Explained {
            policy: self.name.to_string(),
            action: self.action,
            dry_run: self.dry_run,
            invalid: self.invalid.as_deref().map(str::to_owned),
            other_port: !self.is_for(facts),
            rules: self.rules.iter().map(|rule| rule.explain(facts)).collect(),
        }
    }
}

impl Rule {
    fn explain(&self, facts: &Facts<'_>) -> ExplainedRule {
        let mut conditions = Vec::new();
        let mut add = |at: String, clause: &Clause| {
            conditions.extend(clause.iter().map(|condition| ExplainedCondition {
                at: at.clone(),
                condition: condition.text.to_string(),
                holds: condition.holds(facts),
            }));
        };
        for (number, clause) in self.from.iter().enumerate() {
            add(format!("from[{number}]"), clause);
        }
        for (number, clause) in self.to.iter().enumerate() {
            add(format!("to[{number}]"), clause);
        }
        add("when".to_owned(), &self.when);
        ExplainedRule {
            holds: self.holds(facts),
            conditions,
        }
    }
}
