//! `istio.v1.auth.IstioCertificateService`: a CSR comes, a chain goes.
//!
//! 1. who calls, by a token or a certificate     [`Authenticator::caller_on`]; by a token that is good once
//!    it joins ([`Authenticator::joining`])
//! 2. for whom: itself, or a pod of its node     [`Authenticator::speak_for`]
//! 3. sign, on a thread of its own               [`Authority::sign`]
//!
//! Every refusal of 1 and of 2 has one text each, Istio's.

use std::sync::Arc;

use api::ca::istio_certificate_service_server::IstioCertificateService;
use api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use hbone::Identity;
use hbone::control_plane::MachineName;
use prost_types::value::Kind;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::{Authority, CsrError, SignError, csr};
use crate::authenticate::{Authenticator, Joining, NotEntitled, Unknown};
use crate::machine::Connection;
use crate::metrics::{Failure, Metrics};
use crate::serve::Stranger;

/// The gRPC service.
pub struct CertificateService {
    authority: Arc<Authority>,
    authenticator: Arc<Authenticator>,
    metrics: Arc<Metrics>,
    /// One signature per core at a time: an RSA-4096 signer needs milliseconds each, and a node
    /// that starts asks for a hundred at once. The rest waits in its streams, not in threads.
    turns: Arc<Semaphore>,
}

impl CertificateService {
    /// The service over an authority.
    pub fn new(
        authority: Arc<Authority>,
        authenticator: Arc<Authenticator>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            authority,
            authenticator,
            metrics,
            turns: Arc::new(Semaphore::new(cores)),
        }
    }

    /// The identity to certify, or the refusal that the caller sees.
    async fn authorise(
        &self,
        connection: &Connection,
        metadata: &http::HeaderMap,
        csr: &str,
        wanted: Wanted,
    ) -> Result<Granted, Status> {
        let unknown = |error: Unknown| {
            self.metrics.authentication_failures.increment();
            tracing::info!(%error, "certificate refused: caller unknown");
            error.status("request authenticate failure")
        };
        let key = || csr::fingerprint(csr);
        let joining = self.authenticator.joining(connection, metadata, key).await;
        let joining = joining.map_err(|error| match error {
            Joining::Key(error) => self.refuse(None, &error.into()),
            Joining::Unknown(error) => unknown(error),
        })?;
        let caller = match joining {
            Some(caller) => caller,
            None => {
                let caller = self.authenticator.caller_on(connection, metadata).await;
                caller.map_err(unknown)?
            }
        };
        let granted = match wanted {
            Wanted::Own => Ok(caller.identity.clone()),
            Wanted::Other(wanted) => self.authenticator.speak_for(&caller, &wanted).await,
            Wanted::Odd => Err(NotEntitled::Malformed("not a text".into())),
        };
        let identity = granted.map_err(|error| {
            self.metrics.authentication_failures.increment();
            if matches!(error, NotEntitled::Malformed(_)) {
                self.metrics.identity_errors.increment();
            }
            if let (NotEntitled::Machine(lie), Some(machines), Some(machine)) =
                (&error, &self.authenticator.machines, &caller.machine)
            {
                machines.lied(lie, machine, connection);
            }
            tracing::info!(caller = %caller.identity, %error, "certificate refused: not entitled");
            Status::unauthenticated("request impersonation authentication failure")
        })?;
        let Some(machine) = caller.machine else {
            return Ok(Granted::Identity(identity));
        };
        let own =
            csr::fingerprint(csr).map_err(|error| self.refuse(Some(&identity), &error.into()))?;
        // The key on its disk makes it known to us; its tunnels have others.
        Ok(match own == machine.key {
            true => Granted::Machine(identity, machine.certified(self.authority.trust_domain())),
            false => Granted::OfMachine(identity),
        })
    }

    fn refuse(&self, identity: Option<&Identity>, error: &SignError) -> Status {
        let identity = identity.map(tracing::field::display);
        let name = match error {
            SignError::Csr(csr) => {
                if matches!(csr, CsrError::NotPem | CsrError::NotCsr) {
                    self.metrics.csr_parse_errors.increment();
                }
                "CSR_ERROR"
            }
            SignError::TooLong { .. } => "TTL_ERROR",
            SignError::SignerExpired => "CA_NOT_READY",
            SignError::Signer(_) => "CERT_GEN_ERROR",
        };
        self.metrics
            .sign_errors
            .get_or_create(&Failure { error: name })
            .increment();
        let text = error.to_string();
        match error {
            SignError::Csr(_) | SignError::TooLong { .. } => {
                tracing::info!(identity, error = text, "certificate refused");
                Status::invalid_argument(text)
            }
            SignError::SignerExpired => {
                tracing::error!(identity, error = text, "certificate refused");
                Status::unavailable(text)
            }
            SignError::Signer(cause) => {
                tracing::error!(identity, error = text, %cause, "certificate refused");
                Status::internal(text)
            }
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.csrs.increment();
        let (metadata, extensions, request) = request.into_parts();
        let connection = Connection::with(extensions.get(), extensions.get());
        let wanted = Wanted::of(&request);
        let granted = self
            .authorise(&connection, metadata.as_ref(), &request.csr, wanted)
            .await?;
        if let Some(stranger) = extensions.get::<Arc<Stranger>>() {
            stranger.prove();
        }
        let turn = self.turns.clone().acquire_owned().await;
        let authority = self.authority.clone();
        let seconds = request.validity_duration;
        let identity = granted.identity().clone();
        let signed = tokio::task::spawn_blocking(move || {
            // Also when the caller has gone: the thread is busy until here.
            let _turn = turn;
            granted.sign(&authority, &request.csr, seconds)
        });
        let signed = signed.await;
        let signed = signed.map_err(|_| Status::internal("CSR signing error (signer failure)"))?;
        let cert_chain = signed.map_err(|error| self.refuse(Some(&identity), &error))?;
        self.metrics.issued.increment();
        tracing::debug!(%identity, "certificate issued");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// What is certified.
enum Granted {
    /// An identity, for as long as was asked for.
    Identity(Identity),
    /// A machine's, no longer than the default: who takes it out of the book must not wait for months.
    OfMachine(Identity),
    /// The machine itself, which has that identity.
    Machine(Identity, MachineName),
}

impl Granted {
    fn identity(&self) -> &Identity {
        match self {
            Self::Identity(identity) | Self::OfMachine(identity) | Self::Machine(identity, _) => {
                identity
            }
        }
    }

    fn sign(&self, by: &Authority, csr: &str, seconds: i64) -> Result<Vec<String>, SignError> {
        match self {
            Self::Identity(identity) => by.sign(identity, csr, seconds),
            Self::OfMachine(identity) => {
                let most = by.no_longer(seconds).as_secs();
                by.sign(identity, csr, i64::try_from(most).unwrap_or_default())
            }
            Self::Machine(_, machine) => by.sign_machine(machine, csr, seconds),
        }
    }
}

/// Whose certificate the caller asks for.
enum Wanted {
    Own,
    Other(String),
    Odd,
}

impl Wanted {
    /// Missing and empty mean the caller's own, as at Istio's; other keys do not concern a CA that
    /// signs by itself.
    fn of(request: &IstioCertificateRequest) -> Self {
        let fields = request.metadata.as_ref().map(|metadata| &metadata.fields);
        let value = fields.and_then(|fields| fields.get("ImpersonatedIdentity"));
        match value.and_then(|value| value.kind.as_ref()) {
            None | Some(Kind::NullValue(_)) => Self::Own,
            Some(Kind::StringValue(text)) if text.is_empty() => Self::Own,
            Some(Kind::StringValue(text)) => Self::Other(text.clone()),
            Some(_) => Self::Odd,
        }
    }
}
