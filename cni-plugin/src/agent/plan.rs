//! Pure: what is to be done with a pod now.
//!
//! ```text
//!            Enrol: listeners, rules, annotation
//!      ┌───────────────────────────────────────────┐
//!      │                                           v
//!     Out <──── Release or failure ──── Pending   In
//!      ^                                   ^       │
//!      └───────────────────────────────────┴───────┘
//!            Release: annotation, redirects, listeners, marks
//! ```
//!
//! A pod whose object is gone is forgotten from anywhere.

/// How far a pod is in the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing of ours is in it.
    #[default]
    Out,
    /// On its way in or out, and something went wrong or came between.
    Pending,
    /// Captured, announced, annotated.
    In,
}

/// Why a pod that is in place is gone through once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// It is not.
    #[default]
    No,
    /// Its settings changed, or the agent has just started: rules and annotation are written again.
    Refresh,
    /// The runtime asked: ztunnel is told again as well.
    Announce,
}

/// One thing to do with one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Bring it into the mesh.
    Enrol,
    /// Bring it out of the mesh, alive.
    Release,
    /// It no longer exists.
    Forget,
}

/// What the decision depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// Its object exists.
    pub(crate) present: bool,
    /// It belongs into the mesh.
    pub(crate) wanted: bool,
    pub(crate) stage: Stage,
    pub(crate) due: Due,
    /// Its namespace is known, or its processes run and can be searched for it.
    pub(crate) reachable: bool,
    /// The last attempt failed and the next has its time.
    pub(crate) waits: bool,
}

/// What to do now, if nothing is being done with the pod already.
pub(crate) fn next(facts: Facts) -> Option<Verb> {
    let Facts {
        present,
        wanted,
        stage,
        due,
        reachable,
        waits,
    } = facts;
    match (present, wanted, stage) {
        (false, ..) => Some(Verb::Forget),
        (true, true, _) if due != Due::No => Some(Verb::Enrol),
        (true, true, Stage::In) | (true, false, Stage::Out) => None,
        (true, ..) if waits => None,
        (true, true, Stage::Out | Stage::Pending) => reachable.then_some(Verb::Enrol),
        (true, false, Stage::In | Stage::Pending) => Some(Verb::Release),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        present: true,
        wanted: true,
        stage: Stage::Out,
        due: Due::No,
        reachable: true,
        waits: false,
    };

    #[test]
    fn a_pod_gets_where_it_belongs_and_stays_there() {
        let cases = [
            (FACTS, Some(Verb::Enrol)),
            (
                Facts {
                    stage: Stage::Pending,
                    ..FACTS
                },
                Some(Verb::Enrol),
            ),
            (
                Facts {
                    stage: Stage::In,
                    ..FACTS
                },
                None,
            ),
            (
                Facts {
                    wanted: false,
                    ..FACTS
                },
                None,
            ),
            (
                Facts {
                    wanted: false,
                    stage: Stage::Pending,
                    ..FACTS
                },
                Some(Verb::Release),
            ),
            (
                Facts {
                    wanted: false,
                    stage: Stage::In,
                    ..FACTS
                },
                Some(Verb::Release),
            ),
        ];
        for (facts, verb) in cases {
            assert_eq!(next(facts), verb, "{facts:?}");
        }
    }

    #[test]
    fn a_pod_without_processes_waits_for_the_runtime() {
        assert_eq!(
            next(Facts {
                reachable: false,
                ..FACTS
            }),
            None
        );
        assert_eq!(
            next(Facts {
                reachable: false,
                due: Due::Announce,
                ..FACTS
            }),
            Some(Verb::Enrol)
        );
    }

    #[test]
    fn a_failure_waits_for_its_time_but_not_when_the_runtime_asks() {
        let failed = Facts {
            stage: Stage::Pending,
            waits: true,
            ..FACTS
        };
        assert_eq!(next(failed), None);
        assert_eq!(
            next(Facts {
                wanted: false,
                ..failed
            }),
            None
        );
        assert_eq!(
            next(Facts {
                due: Due::Announce,
                ..failed
            }),
            Some(Verb::Enrol)
        );
    }

    #[test]
    fn nothing_delays_the_forgetting_of_a_pod_that_is_gone() {
        for stage in [Stage::Out, Stage::Pending, Stage::In] {
            let gone = Facts {
                present: false,
                waits: true,
                stage,
                ..FACTS
            };
            assert_eq!(next(gone), Some(Verb::Forget));
        }
    }

    #[test]
    fn a_pod_that_is_in_place_is_gone_through_again_only_when_due() {
        for due in [Due::Refresh, Due::Announce] {
            assert_eq!(
                next(Facts {
                    stage: Stage::In,
                    due,
                    ..FACTS
                }),
                Some(Verb::Enrol)
            );
            assert_eq!(
                next(Facts {
                    wanted: false,
                    stage: Stage::Out,
                    due,
                    ..FACTS
                }),
                None
            );
        }
    }
}
