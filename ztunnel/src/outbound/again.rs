//! One endpoint after the other, for a connection as for datagrams: how long one is waited for, who is tried next, and what is
//! remembered of those that were tried.

use std::pin::Pin;

use hbone::{First, OpenError};
use tokio::time::timeout;

use super::{Failed, Leaving};
use crate::report::Report;
use crate::retry::{Retried, SILENT, Target, Tries};
use crate::route::Decision;

/// The endpoints of one connection, or flow, so far.
pub(crate) struct Again<'a> {
    leaving: &'a Leaving<'a>,
    /// What the app has said: whether it may be said to another.
    first: &'a First,
    tries: Tries,
    /// What became of the last.
    before: Option<String>,
}

/// One that is tried.
pub(crate) struct Try {
    target: Option<Target>,
    leads_on: bool,
    may_be_left: bool,
}

impl Try {
    pub(crate) fn of(decision: &Decision) -> Self {
        Self {
            target: decision.target(),
            leads_on: decision.leads_on(),
            // A pod of this node says itself what is wrong with it, and writes its own line: it is heard out.
            may_be_left: !matches!(decision, Decision::Local(_)),
        }
    }
}

impl<'a> Again<'a> {
    pub(crate) fn new(leaving: &'a Leaving<'a>, first: &'a First) -> Self {
        leaving.node.retries.budget.earn();
        Self {
            leaving,
            first,
            tries: Tries::new(),
            before: None,
        }
    }

    /// What came of it, or who is to be tried instead: whoever says nothing for a while is left, if there is another.
    pub(crate) async fn outcome<T>(
        &self,
        at: &Try,
        mut trying: Pin<&mut impl Future<Output = T>>,
    ) -> Result<T, Decision> {
        match timeout(SILENT, &mut trying).await {
            Ok(outcome) => Ok(outcome),
            Err(_) => match at.may_be_left.then(|| self.other(at)).flatten() {
                Some(next) => Err(next),
                None => Ok(trying.await),
            },
        }
    }

    /// It has got through.
    pub(crate) fn reached(self, at: &Try, report: &mut Report) {
        let retries = &self.leaving.node.retries;
        if let Some(target) = &at.target {
            retries.troubled.recovered(target, self.leaving.original);
        }
        self.over(Retried::REACHED, report);
    }

    /// Who is tried next, if anybody is: `instead` where that is known already.
    pub(crate) fn next(
        &mut self,
        at: Try,
        failed: &Failed,
        instead: Option<Decision>,
        report: &mut Report,
    ) -> Option<Decision> {
        let of_it = failed.is_of_the_endpoint();
        let next = instead.or_else(|| of_it.then(|| self.other(&at)).flatten());
        let its_own = of_it && self.first.may_be_repeated();
        if let Some(target) = at.target.as_ref().filter(|_| its_own) {
            let led_nowhere = at.leads_on && matches!(failed, Failed::Open(OpenError::Refused(_)));
            let calls = led_nowhere.then_some(self.leaving.original);
            let troubled = &self.leaving.node.retries.troubled;
            troubled.failed(target.clone(), calls);
            self.tries.fails(target.clone());
        }
        if next.is_some() {
            report.another(failed);
            let who = at.target.map(|(uid, _)| uid).unwrap_or_default();
            self.before = Some(format!("tried before: {who}: {failed}"));
        }
        next
    }

    /// Nobody else is tried.
    pub(crate) fn failed(self, report: &mut Report) {
        self.over(Retried::FAILED, report);
    }

    fn over(self, outcome: Retried, report: &mut Report) {
        if let Some(before) = self.before {
            self.leaving.node.traffic.retried(outcome);
            report.note(before);
        }
    }

    /// Somebody else, if there is one and not too much is being tried again.
    fn other(&self, at: &Try) -> Option<Decision> {
        let node = self.leaving.node;
        let other = self
            .leaving
            .other(&self.tries, at.target.as_ref(), self.first)?;
        if !node.retries.budget.spend() {
            node.traffic.retried(Retried::OVER_BUDGET);
            return None;
        }
        Some(other)
    }
}
