//! Asks a certificate authority over gRPC (`istio.v1.auth.IstioCertificateService`).
//!
//! A channel and a source of tokens enter once; then each identity and certificate request becomes
//! one `CreateCertificate` call that impersonates the identity, and a chain leaves. How the channel
//! reaches the authority (TLS, which root, which address) is the caller's business.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use api::ca::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use prost_types::{Struct, Value, value::Kind};
use tonic::{
    Code, Request, Status,
    metadata::{AsciiMetadataKey, AsciiMetadataValue},
    transport::Channel,
};

use crate::{
    certs::{SignError, Signer},
    control_plane::{WORKLOAD, usable},
    identity::Identity,
};

/// Gives the bearer token for a call. Called for every call, because tokens on disk are rotated.
pub type TokenSource = Arc<dyn Fn() -> io::Result<String> + Send + Sync>;

/// A [`Signer`] that is a client of the mesh's certificate authority.
#[derive(Clone)]
pub struct CaClient {
    client: IstioCertificateServiceClient<Channel>,
    cluster: AsciiMetadataValue,
    token: TokenSource,
    lifetime: Duration,
    itself: bool,
    workload: Option<AsciiMetadataValue>,
    headers: Arc<Vec<(AsciiMetadataKey, AsciiMetadataValue)>>,
}

impl CaClient {
    /// `cluster` is our cluster's name (`CLUSTER_ID`); `lifetime` is what is asked for (`SECRET_TTL`).
    ///
    /// # Errors
    /// When the cluster's name cannot stand in a gRPC header.
    pub fn new(
        channel: Channel,
        cluster: &str,
        token: TokenSource,
        lifetime: Duration,
    ) -> Result<Self, SignError> {
        let cluster = cluster
            .parse()
            .map_err(|_| SignError::Local(format!("cluster name {cluster:?} is not ASCII")))?;
        Ok(Self {
            client: IstioCertificateServiceClient::new(channel),
            cluster,
            token,
            lifetime,
            itself: false,
            workload: None,
            headers: Arc::default(),
        })
    }

    /// One whose calls carry headers that an operator asked for; one that no header can be is left out.
    pub fn with_headers(mut self, headers: &[(String, String)]) -> Self {
        self.headers = Arc::new(usable(headers));
        self
    }

    /// One that asks for nobody's identity but its own, that of its token, as any workload may.
    pub fn for_itself(mut self) -> Self {
        self.itself = true;
        self
    }

    /// One that says which workload it is (`namespace/name`): a machine that shows a certificate.
    ///
    /// # Errors
    /// When the name cannot stand in a gRPC header.
    pub fn for_workload(mut self, workload: &str) -> Result<Self, SignError> {
        let value = workload
            .parse()
            .map_err(|_| SignError::Local(format!("workload {workload:?} is not ASCII")))?;
        self.workload = Some(value);
        Ok(self)
    }

    fn request(
        &self,
        identity: &Identity,
        csr: String,
    ) -> Result<Request<IstioCertificateRequest>, SignError> {
        let local = |what: String| SignError::Local(what);
        let token = (self.token)().map_err(|e| local(format!("token: {e}")))?;
        let token = token.trim();
        let bearer = match token {
            "" => None,
            token => {
                let bearer = format!("Bearer {token}").parse::<AsciiMetadataValue>();
                let mut bearer =
                    bearer.map_err(|_| local("the token has characters no token has".into()))?;
                bearer.set_sensitive(true);
                Some(bearer)
            }
        };
        let impersonated = Value {
            kind: Some(Kind::StringValue(identity.to_string())),
        };
        let fields = BTreeMap::from([("ImpersonatedIdentity".to_owned(), impersonated)]);
        let metadata = (!self.itself).then_some(Struct { fields });
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata,
        });
        if let Some(bearer) = bearer {
            request.metadata_mut().insert("authorization", bearer);
        }
        for (name, value) in self.headers.iter() {
            request.metadata_mut().insert(name.clone(), value.clone());
        }
        request
            .metadata_mut()
            .insert("clusterid", self.cluster.clone());
        if let Some(workload) = &self.workload {
            request.metadata_mut().insert(WORKLOAD, workload.clone());
        }
        Ok(request)
    }
}

impl Signer for CaClient {
    async fn sign(&self, identity: &Identity, csr_pem: String) -> Result<Vec<String>, SignError> {
        let request = self.request(identity, csr_pem)?;
        let answer = self
            .client
            .clone()
            .create_certificate(request)
            .await
            .map_err(refused)?;
        Ok(answer.into_inner().cert_chain)
    }
}

impl std::fmt::Debug for CaClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaClient")
            .field("cluster", &self.cluster)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

fn refused(status: Status) -> SignError {
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => SignError::Refused(text),
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
            SignError::Unavailable(text)
        }
        _ => SignError::Failed(text),
    }
}
