//! What a processor is told of a request, and of its answer, beside what it is shown: what it will be shown, attributes,
//! and what others have said.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http::request::Parts as Head;
use http::{HeaderMap, Response};

use crate::process::{self, Attributes, Beside, Metadata, Processor};
use crate::report::Report;
use crate::upstream::Answer;

/// One way. Clones tell what is told once, once.
#[derive(Debug, Clone)]
pub(super) struct Telling {
    pub(super) processor: Arc<Processor>,
    pub(super) metadata: Metadata,
    /// Of the request; with the first message of all, whichever way that goes.
    first: Untold,
    /// Of the answer; with the first message about it.
    own: Untold,
    /// What of the request may be asked when there is an answer.
    kept: Arc<HeaderMap>,
    destination: SocketAddr,
}

/// None: it was told, or there is none.
type Untold = Arc<Mutex<Option<Attributes>>>;

impl Telling {
    /// Of a request that goes on.
    pub(super) fn of(
        processor: &Arc<Processor>,
        head: &Head,
        authority: &str,
        destination: SocketAddr,
        report: &mut Report,
    ) -> Self {
        let metadata = report.metadata();
        let attributes = match processor.attributes.is_empty() {
            true => Attributes::new(),
            false => {
                let subject = report.subject(head, authority, destination);
                process::attributes(&processor.attributes, &subject)
            }
        };
        let mut kept = HeaderMap::new();
        processor.keeps.keep(&head.headers, &mut kept);
        Self {
            processor: processor.clone(),
            metadata,
            first: Arc::new(Mutex::new(Some(attributes))),
            own: Arc::default(),
            kept: Arc::new(kept),
            destination,
        }
    }

    /// The same, for the other way.
    pub(super) fn other_way(&self) -> Self {
        Self {
            own: Arc::default(),
            ..self.clone()
        }
    }

    /// There is an answer.
    pub(super) fn of_answer(&self, answer: &Response<Answer>, report: &Report) {
        let wanted = &self.processor.of_answers;
        if wanted.is_empty() {
            return;
        }
        let (status, headers) = (answer.status(), answer.headers());
        let subject = report.answering_subject(status, headers, &self.kept, self.destination);
        let attributes = process::attributes(wanted, &subject);
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = Some(attributes);
    }

    /// With the next message.
    pub(super) fn beside(&self) -> Beside {
        let first = taken(&self.first);
        let modes = first.is_some().then_some(self.processor.modes);
        let own = taken(&self.own).unwrap_or_default();
        let accessible = &self.processor.accessible;
        Beside {
            modes,
            attributes: process::both(first.unwrap_or_default(), own),
            metadata: match accessible.is_empty() {
                true => Default::default(),
                false => self.metadata.of(accessible),
            },
            observed: self.processor.watches.is_some(),
        }
    }
}

fn taken(untold: &Untold) -> Option<Attributes> {
    let mut untold = untold.lock().unwrap_or_else(PoisonError::into_inner);
    untold.take()
}
