//! How an endpoint is chosen, as somebody asked for it.

use api::waypoint as wire;

use super::WarmUp;
use super::hash::HashBy;
use super::locality::Nearness;
use crate::outlier;

/// How an endpoint is chosen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policy {
    pub(super) choice: Algorithm,
    pub(super) nearness: Option<Nearness>,
    pub(super) warm_up: Option<WarmUp>,
    pub(super) outliers: Option<outlier::Settings>,
    pub(super) passes_through: bool,
    hash: Option<HashBy>,
}

/// How one of the endpoints of a level is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Algorithm {
    /// In turn.
    RoundRobin,
    /// The less busy of two at random.
    #[default]
    LeastRequest,
    /// At random.
    Random,
    /// By hash, on a ring of that many points.
    Ring(usize),
    /// By hash, in a table of that many places.
    Maglev(usize),
}

impl Policy {
    /// From the wire: load balancing and outlier detection of one BackendPolicy.
    ///
    /// # Errors
    /// What cannot be done, for the person who asked for it.
    pub fn compile(found: &wire::BackendPolicy) -> Result<Self, String> {
        let mut policy = match &found.load_balancer {
            Some(balancer) => Self::of(balancer)?,
            None => Self::default(),
        };
        policy.outliers = found.outliers.as_ref().map(outlier::Settings::compile);
        Ok(policy)
    }

    fn of(found: &wire::LoadBalancer) -> Result<Self, String> {
        use wire::consistent_hash::Algorithm as Hash;
        use wire::load_balancer::Simple;
        let simple = Simple::try_from(found.simple)
            .map_err(|_| format!("load balancing {} is not known", found.simple))?;
        let mut policy = Self {
            choice: match simple {
                Simple::RoundRobin => Algorithm::RoundRobin,
                Simple::Random => Algorithm::Random,
                Simple::Unspecified | Simple::LeastRequest | Simple::Passthrough => {
                    Algorithm::LeastRequest
                }
            },
            nearness: found.locality.as_ref().map(Nearness::compile).transpose()?,
            warm_up: WarmUp::compile(found),
            outliers: None,
            passes_through: simple == Simple::Passthrough,
            hash: None,
        };
        if let Some(hash) = &found.hash {
            let algorithm = Hash::try_from(hash.algorithm)
                .map_err(|_| format!("hash algorithm {} is not known", hash.algorithm))?;
            policy.choice = match algorithm {
                Hash::Ring => Algorithm::Ring(sized(hash.size, 1_024, RING_MOST)),
                Hash::Maglev => Algorithm::Maglev(prime(sized(hash.size, 65_537, MAGLEV_MOST))),
            };
            policy.hash = Some(HashBy::compile(hash)?);
            policy.warm_up = None; // would move keys while it lasts
        }
        Ok(policy)
    }

    /// What of a request decides, if that is asked for.
    pub fn hash(&self) -> Option<&HashBy> {
        self.hash.as_ref()
    }

    /// Whether errors leave endpoints out.
    pub fn watches(&self) -> bool {
        self.outliers.is_some()
    }
}

fn sized(asked: u64, default: usize, most: usize) -> usize {
    match usize::try_from(asked) {
        Ok(0) => default,
        Ok(size) => size.min(most),
        Err(_) => most,
    }
}

/// The smallest prime that is not smaller.
fn prime(from: usize) -> usize {
    let is_prime = |n: &usize| {
        (2..)
            .take_while(|d| d * d <= *n)
            .all(|d| !n.is_multiple_of(d))
    };
    (from.max(2)..).find(is_prime).unwrap_or(65_537)
}

/// Four megabytes of points, of which there may be twice as many as asked for.
const RING_MOST: usize = 1 << 17;
/// Four megabytes of places.
const MAGLEV_MOST: usize = 1_000_000;
