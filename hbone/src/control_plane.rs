//! The way to the control plane: what discovery and the certificate authority have in common.
//!
//! An address, a root file and a token file enter. What leaves: a channel ([`channel`]) and the credentials
//! that go with each call on it ([`Credentials`], [`token_source`]).
//!
//! Roots are read for each new connection and tokens for each call, so that both may be rotated under our feet;
//! when the roots are others, certificates are fetched anew ([`follow_roots`]). `http://` addresses are spoken to
//! in the clear: for tests on loopback.
//!
//! A machine that is no pod shows a certificate instead of a token ([`Membership`], [`Dialler`]).
//!
//! Beside the roots may lie a list of those who are believed no more ([`RevocationFile`]).
//!
//! How certificates and lists stand, an operator sees in metrics ([`TrustFigures`]).

mod address;
mod channel;
mod figures;
mod membership;
mod revoked;
mod roots;

use std::io;
use std::path::Path;
use std::sync::Arc;

use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::ca::TokenSource;
pub use address::{DEFAULT_ADDRESS, address};
pub use channel::{Dialler, channel};
pub use figures::TrustFigures;
pub use membership::{MachineName, Membership, MembershipError};
pub use revoked::RevocationFile;
pub use roots::follow_roots;

/// The header by which a machine says which workload it is (`namespace/name`), beside its certificate, which says as whom.
pub const WORKLOAD: &str = "x-ambit-workload";

/// The bearer token, read from its file at each call. Empty without a file name.
pub fn token_source(path: &Path) -> TokenSource {
    let path = path.to_owned();
    Arc::new(move || {
        if path.as_os_str().is_empty() {
            Ok(String::new())
        } else {
            read_token(&path)
        }
    })
}

fn read_token(path: &Path) -> io::Result<String> {
    let token = std::fs::read_to_string(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
    Ok(token.trim().to_owned())
}

/// Puts a token and headers on every call.
#[derive(Clone)]
pub struct Credentials {
    token: TokenSource,
    headers: Arc<Vec<(AsciiMetadataKey, AsciiMetadataValue)>>,
}

impl Credentials {
    /// With the cluster's name, and headers an operator asked for; one that no header can be is left out.
    pub fn new(token: TokenSource, cluster: &str, headers: &[(String, String)]) -> Self {
        let cluster = ("clusterid".to_owned(), cluster.to_owned());
        let mut all = usable(headers);
        all.extend(usable(&[cluster]));
        Self {
            token,
            headers: Arc::new(all),
        }
    }
}

/// Those of the headers that can be one.
pub(crate) fn usable(headers: &[(String, String)]) -> Vec<(AsciiMetadataKey, AsciiMetadataValue)> {
    let parsed = headers.iter().filter_map(|(name, value)| {
        Some((
            AsciiMetadataKey::from_bytes(name.as_bytes()).ok()?,
            value.parse().ok()?,
        ))
    });
    parsed.collect()
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let token =
            (self.token)().map_err(|error| Status::unauthenticated(format!("token: {error}")))?;
        if !token.is_empty() {
            let bearer = format!("Bearer {token}").parse::<AsciiMetadataValue>();
            let mut bearer = bearer
                .map_err(|_| Status::unauthenticated("token: characters that no token has"))?;
            bearer.set_sensitive(true);
            request.metadata_mut().insert("authorization", bearer);
        }
        for (name, value) in self.headers.iter() {
            request.metadata_mut().insert(name.clone(), value.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_read_at_each_call() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let mut caller = Credentials::new(token_source(&path), "here", &[]);
        let bearer = |caller: &mut Credentials| {
            let request = caller
                .call(Request::new(()))
                .map_err(|status| status.message().to_owned())?;
            let text = |name| {
                request
                    .metadata()
                    .get(name)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            };
            assert_eq!(text("clusterid"), "here");
            Ok::<_, String>(text("authorization"))
        };
        assert!(bearer(&mut caller).unwrap_err().contains("No such file"));
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(bearer(&mut caller).unwrap(), "Bearer one");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(bearer(&mut caller).unwrap(), "Bearer two");
    }
}
