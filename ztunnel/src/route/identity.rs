//! Who a workload must prove to be, and who else may answer where it is called.

use std::sync::Arc;

use hbone::Identity;
use mesh::{Service, Workload};

use super::Refused;

/// Who may answer: the next hop itself, and whom the service through which it was found vouches for.
pub(super) fn expected(
    next: &Workload,
    service: Option<&Service>,
) -> Result<Vec<Identity>, Refused> {
    let vouched = service.map_or(0, |service| service.subject_alt_names.len());
    let mut expected = Vec::with_capacity(1 + vouched);
    expected.push(identity(next)?);
    expected.extend(service.into_iter().flat_map(vouched_for));
    Ok(sorted(expected))
}

/// The same and, of whoever is of a mesh with several names, those whom the other names make of it. Sorted.
pub(crate) fn by_all_names(expected: Vec<Identity>, names: &[String]) -> Vec<Identity> {
    if names.is_empty() {
        return expected;
    }
    let mut all = expected;
    for at in 0..all.len() {
        let one = all[at].clone();
        if !names.iter().any(|name| **name == *one.trust_domain()) {
            continue;
        }
        let others = names.iter().filter(|name| ***name != *one.trust_domain());
        all.extend(
            others.filter_map(|name| {
                Identity::new(name, one.namespace(), one.service_account()).ok()
            }),
        );
    }
    sorted(all)
}

pub(super) fn sorted(mut identities: Vec<Identity>) -> Vec<Identity> {
    identities.sort_unstable();
    identities.dedup();
    identities
}

/// Whom a service vouches for.
pub(super) fn vouched_for(service: &Service) -> impl Iterator<Item = Identity> {
    service.subject_alt_names.iter().filter_map(|name| {
        name.parse()
            .inspect_err(|error| tracing::debug!(subject_alt_name = %name, %error, "not an identity, ignored"))
            .ok()
    })
}

/// The identity a workload must prove.
///
/// # Errors
/// When its names cannot stand in one.
pub(crate) fn identity(workload: &Workload) -> Result<Identity, Refused> {
    // Made for each connection: the workload's own texts are shared, and only a default is copied.
    let share = |own: &Arc<str>, meant: &str| match **own == *meant {
        true => own.clone(),
        false => meant.into(),
    };
    let (trust_domain, namespace, service_account) = workload.identity_parts();
    Identity::shared(
        share(&workload.trust_domain, trust_domain),
        share(&workload.namespace, namespace),
        share(&workload.service_account, service_account),
    )
    .map_err(|error| Refused::NoIdentity(workload.uid.clone(), error))
}

/// Whether a proven identity is the one that a workload must prove.
pub(crate) fn proves(identity: &Identity, workload: &Workload) -> bool {
    let proven = (
        identity.trust_domain(),
        identity.namespace(),
        identity.service_account(),
    );
    proven == workload.identity_parts()
}
