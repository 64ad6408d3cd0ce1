//! Where a rule leads, by weight.

use api::waypoint as wire;
use api::waypoint::backend::To;

use crate::filter::Filters;

/// A service, as routes and policies name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: Box<str>,
    /// Fully qualified.
    pub hostname: Box<str>,
    /// 0: the port that was asked for.
    pub port: u16,
}

/// A service that requests of a rule go to.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The service.
    pub service: ServiceName,
    /// Only these of its workloads.
    pub subset: Option<Box<str>>,
    /// What is changed of requests that go there; after the filters of the rule.
    pub filters: Filters,
}

/// All of a rule's, with their weights.
#[derive(Debug, Clone, Default)]
pub struct Backends {
    /// Up to this sum of weights (without it), this one. Those of weight 0 are left out.
    shares: Box<[(u64, Share)]>,
    named: usize,
}

#[derive(Debug, Clone)]
enum Share {
    Backend(Box<Backend>),
    Invalid(Box<str>),
}

/// What a draw said.
#[derive(Debug, Clone, Copy)]
pub enum Picked<'a> {
    /// There.
    Backend(&'a Backend),
    /// The share of a backend that is none, and why: 500.
    Invalid(&'a str),
    /// There is none, or none has a weight: 500.
    Nothing,
}

impl ServiceName {
    /// Of a message.
    pub fn compile(wire: &wire::ServiceRef) -> Result<Self, String> {
        Ok(Self {
            namespace: wire.namespace.as_str().into(),
            hostname: wire.hostname.to_ascii_lowercase().into(),
            port: u16::try_from(wire.port).map_err(|_| format!("port {}", wire.port))?,
        })
    }
}

impl Backend {
    /// Of a message; an error also where it says itself that it is invalid.
    pub fn compile(wire: &wire::Backend) -> Result<Self, String> {
        let service = match &wire.to {
            Some(To::Service(service)) => ServiceName::compile(service)?,
            Some(To::Invalid(why)) => return Err(why.clone()),
            None => return Err("a backend that is nothing".into()),
        };
        Ok(Self {
            service,
            subset: (!wire.subset.is_empty()).then(|| wire.subset.as_str().into()),
            filters: Filters::compile(&wire.filters)?,
        })
    }
}

impl Backends {
    /// Of messages. An invalid backend takes its share; a message that cannot be understood is an error.
    pub fn compile(wire: &[wire::Backend]) -> Result<Self, String> {
        let mut shares = Vec::with_capacity(wire.len());
        let mut sum = 0u64;
        for backend in wire.iter().filter(|backend| backend.weight > 0) {
            sum += u64::from(backend.weight);
            let share = match &backend.to {
                Some(To::Invalid(why)) => Share::Invalid(why.as_str().into()),
                _ => Share::Backend(Box::new(Backend::compile(backend)?)),
            };
            shares.push((sum, share));
        }
        Ok(Self {
            shares: shares.into(),
            named: wire.len(),
        })
    }

    /// One of them, each as often as its weight says. `draw` is any 64 random bits.
    pub fn pick(&self, draw: u64) -> Picked<'_> {
        let Some((sum, _)) = self.shares.last() else {
            return Picked::Nothing;
        };
        // The draw as a share of the whole: no modulo, hence no bias worth mentioning.
        let point = ((u128::from(draw) * u128::from(*sum)) >> 64) as u64;
        let at = self.shares.partition_point(|(until, _)| *until <= point);
        match self.shares.get(at) {
            Some((_, Share::Backend(backend))) => Picked::Backend(backend),
            Some((_, Share::Invalid(why))) => Picked::Invalid(why),
            None => Picked::Nothing,
        }
    }

    /// Those that can be picked.
    pub fn iter(&self) -> impl Iterator<Item = &Backend> {
        self.shares.iter().filter_map(|(_, share)| match share {
            Share::Backend(backend) => Some(&**backend),
            Share::Invalid(_) => None,
        })
    }

    /// How many the user named, with those that cannot be picked.
    pub fn named(&self) -> usize {
        self.named
    }
}
