//! Who is asked whether requests may pass.

use std::collections::HashMap;
use std::sync::Arc;

use api::waypoint as wire;
use wire::provider::Kind as Of;
use wire::resource::Kind;

use crate::permission::Authorizer;
use crate::state::{Held, Resources};

/// By the keys under which policies and routes name them.
#[derive(Debug, Default)]
pub struct Authorizers(HashMap<Arc<str>, Result<Arc<Authorizer>, Box<str>>>);

impl Authorizers {
    /// That one.
    ///
    /// # Errors
    /// It is not known, or cannot be understood: why.
    pub fn of(&self, key: &str) -> Result<&Arc<Authorizer>, &str> {
        match self.0.get(key) {
            Some(Ok(authorizer)) => Ok(authorizer),
            Some(Err(why)) => Err(why),
            None => Err("it is not known"),
        }
    }

    pub(super) fn compile(said: &Resources) -> Self {
        let compiled = said.iter().filter_map(|held| {
            let authorizer = authorizer(&held.resource)?;
            Some((held.key.clone(), understood(held, authorizer)))
        });
        Self(compiled.collect())
    }
}

fn understood(held: &Held, authorizer: &wire::Authorizer) -> Result<Arc<Authorizer>, Box<str>> {
    if !held.good {
        let why = held.refused.as_deref();
        return Err(why.unwrap_or("it cannot be understood").into());
    }
    Ok(Arc::new(Authorizer::compile(authorizer)?))
}

fn authorizer(resource: &wire::Resource) -> Option<&wire::Authorizer> {
    match &resource.kind {
        Some(Kind::Provider(provider)) => of(provider),
        _ => None,
    }
}

fn of(provider: &wire::Provider) -> Option<&wire::Authorizer> {
    match &provider.kind {
        Some(Of::Authorizer(authorizer)) => Some(authorizer),
        _ => None,
    }
}

/// What is wrong with it.
pub(super) fn check(provider: &wire::Provider) -> Result<(), String> {
    of(provider).map_or(Ok(()), |it| Authorizer::compile(it).map(drop))
}
