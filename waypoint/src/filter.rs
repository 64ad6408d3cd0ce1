//! What a rule changes of a request and of its answer, and what it answers itself.
//!
//! A request's head enters whose path is normalised already; what is to be done with it leaves ([`Passed`]):
//!
//! 1. filters run in the order they are written in; the first that answers ends them  ([`Filters::request`])
//! 2. those of the backend that was picked run after those of the rule               (same call, its filters)
//! 3. the answer, ours or the app's, gets what is said of answers                    ([`Filters::response`])
//!
//! Draws enter as a function, so that shares can be tested; nothing here waits.

mod address;
mod answer;
mod cors;
mod fault;
mod headers;

use std::time::Duration;

use api::waypoint as wire;
use api::waypoint::filter::Filter as Wire;
use http::{request, response};

pub use address::{PathChange, Redirect, Rewrite, set_host, set_path};
pub use answer::{Answer, Reason, grpc_code, is_grpc};
pub use cors::{Cors, Granted};
pub use fault::{Fault, Fraction};
pub use headers::HeaderChange;

use crate::route::{Backend, Matched};

/// Filters of a rule or of a backend, in the order they were written in.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    steps: Box<[Filter]>,
    changes_answers: bool,
}

/// One of them.
#[derive(Debug, Clone)]
pub enum Filter {
    /// Headers of the request.
    Request(HeaderChange),
    /// Headers of the answer.
    Response(HeaderChange),
    /// Answered with another address.
    Redirect(Redirect),
    /// Another host or path towards the app.
    Rewrite(Rewrite),
    /// A copy goes there too.
    Mirror(Mirror),
    /// Who may read answers in a browser.
    Cors(Cors),
    /// Trouble, on purpose.
    Fault(Fault),
    /// A fixed answer.
    Answer(Answer),
    /// That provider is asked whether it may pass.
    Authorizer(Box<str>),
    /// Nobody knows what it means: 500.
    Unknown(Box<str>),
}

/// A share of requests whose copies go elsewhere.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// Where to. Answers from there are dropped.
    pub backend: Backend,
    /// How many.
    pub share: Fraction,
}

/// What a filter must know of a request beside its head.
#[derive(Debug, Clone, Copy)]
pub struct About<'a> {
    /// `http` or `https`, as the client sees it.
    pub scheme: &'a str,
    /// In lower case, without port.
    pub host: &'a str,
    /// The service's port, or the listener's.
    pub port: u16,
    /// What the rule's match was about.
    pub matched: Matched,
}

/// What is to be done with a request beside the changes in its head.
#[derive(Debug, Default)]
pub struct Passed<'r> {
    /// This is the answer; nobody is asked. It gets what [`Filters::response`] says, like any answer.
    pub answer: Option<Answer>,
    /// First wait so long. Before the answer too, if there is one.
    pub delay: Option<Duration>,
    /// Copies of the request as it is now go there.
    pub mirrors: Vec<&'r Mirror>,
    /// What the answer gets so that a browser shows it.
    pub granted: Option<Granted<'r>>,
}

impl Filters {
    /// What is wrong with one of them, or all.
    pub fn compile(wire: &[wire::Filter]) -> Result<Self, String> {
        let compiled = wire.iter().map(Filter::compile);
        let steps: Box<[_]> = compiled.collect::<Result<_, _>>()?;
        Ok(Self {
            changes_answers: steps.iter().any(|one| matches!(one, Filter::Response(_))),
            steps,
        })
    }

    /// Nothing is changed and nothing answered.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Keys of providers that are asked before anything is changed.
    pub fn authorizers(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().filter_map(|step| match step {
            Filter::Authorizer(provider) => Some(&**provider),
            _ => None,
        })
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Filter> {
        self.steps.iter()
    }

    /// Runs them on a request. `parts.uri` has the normalised path; `draw` gives 64 random bits.
    pub fn request<'r>(
        &'r self,
        parts: &mut request::Parts,
        about: &About<'_>,
        mut draw: impl FnMut() -> u64,
    ) -> Passed<'r> {
        let mut passed = Passed::default();
        for step in &self.steps {
            passed.answer = match step {
                Filter::Request(change) => {
                    change.request(parts);
                    None
                }
                Filter::Rewrite(rewrite) => rewrite.apply(parts, about),
                Filter::Redirect(redirect) => Some(redirect.answer(parts, about)),
                Filter::Mirror(mirror) => {
                    if mirror.share.holds(draw()) {
                        passed.mirrors.push(mirror);
                    }
                    None
                }
                Filter::Cors(cors) => {
                    passed.granted = cors.grant(parts);
                    cors.answer(parts, passed.granted.as_ref())
                }
                Filter::Fault(fault) => {
                    passed.delay = fault.delay(&mut draw).or(passed.delay);
                    fault.abort(&parts.headers, &mut draw)
                }
                Filter::Answer(answer) => Some(answer.clone()),
                Filter::Unknown(why) => Some(Answer::broken(why)),
                Filter::Response(_) | Filter::Authorizer(_) => None,
            };
            if passed.answer.is_some() {
                break;
            }
        }
        passed
    }

    /// Runs them on an answer.
    pub fn response(&self, parts: &mut response::Parts) {
        if !self.changes_answers {
            return;
        }
        for step in &self.steps {
            if let Filter::Response(change) = step {
                change.response(&mut parts.headers);
            }
        }
    }
}

impl Filter {
    fn compile(wire: &wire::Filter) -> Result<Self, String> {
        Ok(match &wire.filter {
            Some(Wire::RequestHeaders(change)) => Self::Request(HeaderChange::compile(change)?),
            Some(Wire::ResponseHeaders(change)) => Self::Response(HeaderChange::compile(change)?),
            Some(Wire::Redirect(redirect)) => Self::Redirect(Redirect::compile(redirect)?),
            Some(Wire::Rewrite(rewrite)) => Self::Rewrite(Rewrite::compile(rewrite)?),
            Some(Wire::Mirror(mirror)) => Self::Mirror(Mirror::compile(mirror)?),
            Some(Wire::Cors(cors)) => Self::Cors(Cors::compile(cors)?),
            Some(Wire::Fault(fault)) => Self::Fault(Fault::compile(fault)?),
            Some(Wire::DirectResponse(answer)) => Self::Answer(Answer::compile(answer)?),
            Some(Wire::Authorizer(provider)) => Self::Authorizer(provider.as_str().into()),
            Some(Wire::Unknown(why)) => Self::Unknown(why.as_str().into()),
            None => return Err("a filter that says nothing".into()),
        })
    }
}

impl Mirror {
    fn compile(wire: &wire::Mirror) -> Result<Self, String> {
        let backend = wire.backend.as_ref().ok_or("a mirror to nothing")?;
        Ok(Self {
            backend: Backend::compile(backend)?,
            share: Fraction::compile(wire.fraction.as_ref())?,
        })
    }
}
