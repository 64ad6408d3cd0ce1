//! Pure: whether an agent that is told to stop leaves everything as it is, or takes the mesh off
//! its node.
//!
//! Most stops are upgrades, evictions and restarts: then plugin, rules and annotations stay, so that no pod
//! starts unmeshed before the next agent is here. Only when the agent's DaemonSet is being deleted is the
//! mesh on its way out. What cannot be found out counts as an upgrade: a plugin that stays stops pods, one
//! that goes lets them out unprotected.

/// What becomes of the DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It stays.
    Stays,
    /// It is being deleted.
    Ending,
    /// There is none.
    Gone,
}

impl Fate {
    /// Of an object with or without a time of deletion.
    pub(crate) fn of(deleting: bool) -> Self {
        if deleting { Self::Ending } else { Self::Stays }
    }
}

/// What the API server says when it is asked at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Is(Fate),
    /// No answer, for this reason.
    None(String),
}

/// How the agent goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Departure {
    /// Everything stays for the next agent.
    Stay(String),
    /// The node is left clean.
    Clean(&'static str),
}

/// What was known of the DaemonSet before the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// It existed while this agent ran.
    pub(crate) existed: bool,
    /// What a watch told last.
    pub(crate) last: Option<Fate>,
}

pub(crate) fn decide(known: Known, answer: Answer) -> Departure {
    let deleted = "the agent's DaemonSet is being deleted";
    match (answer, known.last) {
        (Answer::Is(Fate::Stays), _) => Departure::Stay("the agent's DaemonSet stays".to_owned()),
        (Answer::Is(Fate::Ending), _) => Departure::Clean(deleted),
        // Never there: it has another name than we think, and its absence says nothing.
        (Answer::Is(Fate::Gone), _) if !known.existed => {
            Departure::Stay("no such DaemonSet was ever there: see DAEMONSET_NAME".to_owned())
        }
        (Answer::Is(Fate::Gone), _) => Departure::Clean(deleted),
        // With the mesh goes the right to ask.
        (Answer::None(_), Some(Fate::Ending | Fate::Gone)) if known.existed => {
            Departure::Clean(deleted)
        }
        (Answer::None(why), _) => Departure::Stay(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_deletion_that_is_known_cleans_the_node() {
        use Fate::*;
        let silent = || Answer::None("403".to_owned());
        let cases = [
            (true, None, Answer::Is(Stays), false),
            (true, Some(Stays), Answer::Is(Stays), false),
            // It was made again with another selector; its pods are being replaced.
            (true, Some(Gone), Answer::Is(Stays), false),
            (true, Some(Stays), Answer::Is(Ending), true),
            (false, None, Answer::Is(Ending), true),
            (true, Some(Stays), Answer::Is(Gone), true),
            // The agent was told a wrong name.
            (false, None, Answer::Is(Gone), false),
            (false, Some(Gone), Answer::Is(Gone), false),
            (false, Some(Gone), silent(), false),
            (false, None, silent(), false),
            (true, Some(Stays), silent(), false),
            (true, Some(Ending), silent(), true),
            (true, Some(Gone), silent(), true),
        ];
        for (existed, last, answer, clean) in cases {
            let departure = decide(Known { existed, last }, answer.clone());
            let cleans = matches!(departure, Departure::Clean(_));
            assert_eq!(cleans, clean, "{existed} {last:?} {answer:?}");
        }
    }

    #[test]
    fn an_agent_that_stays_for_want_of_an_answer_says_why() {
        assert_eq!(
            decide(Known::default(), Answer::None("403".to_owned())),
            Departure::Stay("403".to_owned())
        );
    }
}
