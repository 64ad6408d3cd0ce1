//! Whether one signer may follow another without cutting a workload off. Pure.
//!
//! ```text
//!            bundle        signer     who would be refused if the step before were left out
//!            old           old
//!   1st      old + new     old
//!   2nd      old + new     new        new certificates, by those who have only the old bundle
//!   3rd      new           new        old certificates, by those who have the new bundle
//! ```
//!
//! Between two steps every proxy must have got a certificate, and the bundle with it. That cannot
//! be seen from here; what can is that a step was left out.

use super::material::Material;

/// A change of roots that workloads would feel.
#[derive(Debug, thiserror::Error)]
pub enum Abrupt {
    /// The signer was swapped before its root was told.
    #[error(
        "its signer leads to root {root:?}, which the mesh was never told; first put that root beside the one in use into {file} (or caCertificates of the mesh configuration), then swap the signer"
    )]
    Untold {
        /// The new root's subject.
        root: String,
        /// Where roots stand.
        file: &'static str,
    },
    /// The root of the certificates in use is not in the new bundle.
    #[error(
        "root {root:?} of the certificates in use is missing in {file}; keep it there (or in caCertificates of the mesh configuration) until every certificate was renewed"
    )]
    Dropped {
        /// The old root's subject.
        root: String,
        /// Where roots stand.
        file: &'static str,
    },
}

/// Whether `fresh` may be taken up where `current` is in use.
pub(super) fn judge(current: &Material, fresh: &Material) -> Result<(), Abrupt> {
    let file = fresh.parts.names.roots;
    if !current.anchors.contains(&fresh.anchor) {
        let root = fresh.anchor.name.clone();
        return Err(Abrupt::Untold { root, file });
    }
    if !fresh.anchors.contains(&current.anchor) {
        let root = current.anchor.name.clone();
        return Err(Abrupt::Dropped { root, file });
    }
    Ok(())
}
