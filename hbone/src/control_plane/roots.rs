//! The file of the authority's roots, as the kubelet brings it: when it says something else, certificates are asked for.
//!
//! Roots come to pods with their certificates, whose next renewal may be half a day away. A file that changed means that
//! the mesh trusts another root now, so every certificate is fetched anew, spread over half a minute, and with it the roots.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use tokio_util::sync::CancellationToken;

use crate::certs::Certificates;

/// Looks at the file until `end`. A file that is not there or holds no roots changes nothing: the old ones are trusted on.
pub async fn follow_roots(path: PathBuf, certificates: Arc<Certificates>, end: CancellationToken) {
    let mut known = Known::default();
    let mut looks = tokio::time::interval(LOOK);
    while end.run_until_cancelled(looks.tick()).await.is_some() {
        if tokio::fs::read(&path)
            .await
            .is_ok_and(|pem| known.replaced_by(&pem))
        {
            tracing::info!(path = %path.display(), "other roots: all certificates are renewed");
            certificates.renew_all();
        }
    }
}

/// The roots of the last file that had some.
#[derive(Debug, Default)]
struct Known(BTreeSet<Vec<u8>>);

impl Known {
    /// Whether these are other roots than before. Order and repetition mean nothing, and the first ever replace nothing:
    /// before them no certificate can be had.
    fn replaced_by(&mut self, pem: &[u8]) -> bool {
        let roots = CertificateDer::pem_slice_iter(pem).map(|root| Ok(root?.to_vec()));
        let roots: Result<BTreeSet<_>, pem::Error> = roots.collect();
        let Some(roots) = roots.ok().filter(|roots| !roots.is_empty()) else {
            return false;
        };
        let others = self.0 != roots;
        let first = std::mem::replace(&mut self.0, roots).is_empty();
        others && !first
    }
}

/// A file of some kilobytes, and kubelets take up to a minute to bring it.
const LOOK: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    /// PEM of certificates that hold the given bytes.
    fn bundle(roots: &[&str]) -> String {
        let one = |text: &&str| {
            format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
        };
        roots.iter().map(one).collect()
    }

    #[test]
    fn only_other_roots_are_news() {
        let mut known = Known::default();
        for (file, news) in [
            (String::new(), false),
            (bundle(&["AAAA"]), false),
            (bundle(&["AAAA"]), false),
            (bundle(&["AAAA", "BBBB"]), true),
            (bundle(&["BBBB", "AAAA", "AAAA"]), false),
            (
                format!("# with a remark\n{}", bundle(&["AAAA", "BBBB"])),
                false,
            ),
            // Not a file to go by: nothing is forgotten over it.
            (String::new(), false),
            (bundle(&["AAAA", "?"]), false),
            (bundle(&["AAAA", "BBBB"]), false),
            (bundle(&["BBBB"]), true),
        ] {
            assert_eq!(known.replaced_by(file.as_bytes()), news, "{file}");
        }
    }
}
