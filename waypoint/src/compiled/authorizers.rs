//! Who is asked about requests: whether they may pass, and how many like them there were.

use std::collections::HashMap;
use std::sync::Arc;

use api::waypoint as wire;
use wire::provider::Kind as Of;
use wire::resource::Kind;

use crate::limit::Counter;
use crate::permission::Authorizer;
use crate::state::{Held, Resources};

/// By the keys under which policies and routes name them.
#[derive(Debug)]
pub struct Named<T>(HashMap<Arc<str>, Result<Arc<T>, Box<str>>>);

/// Those who say whether requests may pass.
pub type Authorizers = Named<Authorizer>;
/// Those who count requests for all proxies together.
pub type Counters = Named<Counter>;

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Named<T> {
    /// That one.
    ///
    /// # Errors
    /// It is not known, or cannot be understood: why.
    pub fn of(&self, key: &str) -> Result<&Arc<T>, &str> {
        match self.0.get(key) {
            Some(Ok(asked)) => Ok(asked),
            Some(Err(why)) => Err(why),
            None => Err("it is not known"),
        }
    }

    /// `read`: it, of a provider of that kind.
    fn compile(
        said: &Resources,
        read: impl Fn(&wire::Provider) -> Option<Result<T, String>>,
    ) -> Self {
        let compiled = said.iter().filter_map(|held| {
            let made = match &held.resource.kind {
                Some(Kind::Provider(provider)) => read(provider)?,
                _ => return None,
            };
            Some((held.key.clone(), understood(held, made)))
        });
        Self(compiled.collect())
    }
}

impl Authorizers {
    pub(super) fn of_all(said: &Resources) -> Self {
        Self::compile(said, |provider| match &provider.kind {
            Some(Of::Authorizer(it)) => Some(Authorizer::compile(it)),
            _ => None,
        })
    }
}

impl Counters {
    pub(super) fn of_all(said: &Resources) -> Self {
        Self::compile(said, |provider| match &provider.kind {
            Some(Of::RateLimiter(it)) => Some(Counter::compile(it)),
            _ => None,
        })
    }
}

fn understood<T>(held: &Held, made: Result<T, String>) -> Result<Arc<T>, Box<str>> {
    if !held.good {
        let why = held.refused.as_deref();
        return Err(why.unwrap_or("it cannot be understood").into());
    }
    Ok(Arc::new(made?))
}

/// What is wrong with it.
pub(super) fn check(provider: &wire::Provider) -> Result<(), String> {
    match &provider.kind {
        Some(Of::Authorizer(it)) => Authorizer::compile(it).map(drop),
        Some(Of::RateLimiter(it)) => Counter::compile(it).map(drop),
        _ => Ok(()),
    }
}
