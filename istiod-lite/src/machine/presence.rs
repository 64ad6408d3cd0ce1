//! `ambit.machine.v1.Presence`: a machine keeps a stream open, says on it how it does, and is told how to find out.
//!
//! 1. who it is: as on every connection, by its certificate and the book; whether it may have an entry   ([`super::register`])
//! 2. what its group asks it is told, whenever that changes
//! 3. its reports go into its entry, not more than one a second; the first makes it
//! 4. every now and then it is looked for in the book, and its entry is looked at: who was taken out goes, an entry that was
//!    removed or could not be written is written again
//! 5. the stream ends, and with it its presence

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use api::k8s::istio::workload_group;
use api::k8s::objects::WorkloadGroup;
use api::machine::presence_server::Presence as Service;
use api::machine::{Exec, Header, Http, Probe, Report, Tcp, Told, probe};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::codec::Streaming;
use tonic::{Request, Response, Status};

use super::register::{NotRegistered, Presence, Registrar};
use super::shown::Shown;
use super::{Connection, Machine, Machines, Refused};
use crate::authenticate::Authenticator;
use crate::serve::{Leaving, Stranger};

/// The gRPC service.
pub struct PresenceService {
    /// Who calls.
    pub authenticator: Arc<Authenticator>,
    /// Keeps the entries.
    pub registrar: Arc<Registrar>,
}

/// What a machine is told, as a stream.
type Telling = Pin<Box<dyn futures_util::Stream<Item = Result<Told, Status>> + Send>>;

/// One stream, once it is known whose.
struct Talk {
    machines: Arc<Machines>,
    registrar: Arc<Registrar>,
    machine: Arc<Machine>,
    shown: Arc<Shown>,
    connection: Connection,
    presence: Presence,
    telling: mpsc::Sender<Result<Told, Status>>,
    leaving: CancellationToken,
}

#[tonic::async_trait]
impl Service for PresenceService {
    type KeepStream = Telling;

    async fn keep(
        &self,
        request: Request<Streaming<Report>>,
    ) -> Result<Response<Self::KeepStream>, Status> {
        let (metadata, extensions, reports) = request.into_parts();
        let connection = Connection::with(extensions.get(), extensions.get());
        let caller = self
            .authenticator
            .caller_on(&connection, metadata.as_ref())
            .await
            .map_err(|error| error.status("authentication failure"))?;
        let (Some(machine), Some(machines), Some(shown)) = (
            caller.machine,
            self.authenticator.machines.clone(),
            connection.shown.clone(),
        ) else {
            return Err(Status::permission_denied(
                "only machines that joined are present",
            ));
        };
        if let Some(stranger) = extensions.get::<Arc<Stranger>>() {
            stranger.prove();
        }
        let presence = self.registrar.arrive(machine.clone()).map_err(|error| {
            tracing::warn!(machine = machine.reference(), %error, "a machine gets no WorkloadEntry");
            Status::failed_precondition(error.to_string())
        })?;
        tracing::info!(machine = machine.reference(), "a machine is connected");
        let (telling, told) = mpsc::channel(1);
        let leaving = extensions.get::<Leaving>().cloned();
        let talk = Talk {
            machines,
            registrar: self.registrar.clone(),
            machine,
            shown,
            connection,
            presence,
            telling,
            leaving: leaving.map(|leaving| leaving.0).unwrap_or_default(),
        };
        tokio::spawn(talk.run(reports));
        let told = futures_util::stream::unfold(told, |mut told| async move {
            told.recv().await.map(|next| (next, told))
        });
        Ok(Response::new(Box::pin(told)))
    }
}

impl Talk {
    async fn run(self, mut reports: Streaming<Report>) {
        let ended = self.go_on(&mut reports).await;
        let error = ended.as_ref().err().map(Status::message);
        tracing::info!(
            machine = self.machine.reference(),
            error,
            "a machine is no longer connected"
        );
        if let Err(status) = ended {
            let _ = self.telling.try_send(Err(status));
        }
    }

    async fn go_on(&self, reports: &mut Streaming<Report>) -> Result<(), Status> {
        let mut groups = self.registrar.changes();
        let (mut asked, mut made_of) = (None, None);
        // What it said last, once it has said anything; and whether its entry may say something else.
        let (mut said, mut is_due) = (None::<Option<String>>, false);
        let mut look = tokio::time::interval(LOOK);
        loop {
            let group = self.group()?;
            let probe = group.as_deref().and_then(asks);
            if asked.as_ref() != Some(&probe) {
                asked = Some(probe.clone());
                let told = Told { probe };
                if self.telling.send(Ok(told)).await.is_err() {
                    return Ok(());
                }
            }
            // Of its labels and ports its entry is made: by labels policies choose whom they are for.
            let spec = group.map(|group| group.spec.clone());
            if made_of.as_ref() != Some(&spec) {
                made_of = Some(spec);
                is_due = self.write(said.as_ref()).await?;
            }
            tokio::select! {
                () = self.leaving.cancelled() => return Ok(()),
                () = self.telling.closed() => return Ok(()),
                changed = groups.changed() => if changed.is_err() { return Ok(()) },
                _ = look.tick() => {
                    self.still_known().await?;
                    if !self.presence.stands() {
                        is_due = self.write(said.as_ref()).await?;
                    }
                }
                () = tokio::time::sleep(RETRY), if is_due => is_due = self.write(said.as_ref()).await?,
                report = reports.message() => {
                    let Some(report) = report? else { return Ok(()) };
                    let mut unhealthy = report.unhealthy;
                    unhealthy.truncate(unhealthy.floor_char_boundary(LONGEST_REPORT));
                    let unhealthy = Some(unhealthy).filter(|why| !why.is_empty());
                    if said.as_ref() != Some(&unhealthy) {
                        let why = unhealthy.as_deref();
                        tracing::info!(machine = self.machine.reference(), unhealthy = why, "a machine says how it does");
                        said = Some(unhealthy);
                        is_due = self.write(said.as_ref()).await?;
                        // Reports that come faster wait in the connection.
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    /// Writes what it said; whether that is still due, for now it cannot be written.
    async fn write(&self, said: Option<&Option<String>>) -> Result<bool, Status> {
        // Who has not said how it does gets no connections.
        let Some(said) = said else { return Ok(false) };
        match self.presence.report(said.as_deref()).await {
            Ok(()) => Ok(false),
            Err(error) if error.passes() => {
                tracing::warn!(machine = self.machine.reference(), %error, "a machine's WorkloadEntry is tried again");
                Ok(true)
            }
            Err(error) => Err(self.lost(&error)),
        }
    }

    fn lost(&self, error: &NotRegistered) -> Status {
        tracing::warn!(machine = self.machine.reference(), %error, "a machine loses its WorkloadEntry");
        match error {
            // If it is still there it comes again.
            NotRegistered::Moved(_) => Status::unavailable(error.to_string()),
            _ => Status::failed_precondition(error.to_string()),
        }
    }

    fn group(&self) -> Result<Option<Arc<WorkloadGroup>>, Status> {
        let group = self.registrar.group(&self.machine);
        group.map_err(|error| self.lost(&error))
    }

    async fn still_known(&self) -> Result<(), Status> {
        let reference = self.machine.reference();
        let known = self
            .machines
            .known(&reference, &self.shown, &self.connection);
        let known = match known.await {
            // For a while nobody can say.
            Err(Refused::Store(_)) => return Ok(()),
            known => known.map_err(|gone| {
                self.presence.taken_out();
                Status::unauthenticated(gone.advice())
            })?,
        };
        if *known != *self.machine {
            // Joined anew, as something else: it comes again as that.
            return Err(Status::unavailable("the machine has joined anew"));
        }
        Ok(())
    }
}

/// How a machine does by what it says on its discovery stream (`istio.v1.HealthInformation`), noted on its entry: the last word,
/// however fast they come.
pub(crate) struct Health {
    said: watch::Sender<Option<Option<String>>>,
    _noting: AbortOnDropHandle<()>,
}

impl Health {
    /// Of a machine that is known.
    pub(crate) fn of(machine: Arc<Machine>, registrar: Arc<Registrar>) -> Self {
        let (said, mut words) = watch::channel(None::<Option<String>>);
        let noting = async move {
            loop {
                let word = words.borrow_and_update().clone();
                let noted = match &word {
                    None => true,
                    Some(unhealthy) => {
                        let why = unhealthy.as_deref();
                        tracing::debug!(
                            machine = machine.reference(),
                            unhealthy = why,
                            "a machine says on its discovery stream how it does"
                        );
                        let noted = registrar.note(&machine, why).await;
                        noted.unwrap_or_else(|error| {
                            tracing::debug!(machine = machine.reference(), %error, "how a machine does is not noted yet");
                            false
                        })
                    }
                };
                tokio::time::sleep(PAUSE).await;
                // Its entry is not there, or cannot be written.
                let again = async {
                    match noted {
                        true => std::future::pending().await,
                        false => tokio::time::sleep(LOOK).await,
                    }
                };
                tokio::select! {
                    changed = words.changed() => if changed.is_err() { return },
                    () = again => {}
                }
            }
        };
        Self {
            said,
            _noting: AbortOnDropHandle::new(tokio::spawn(noting)),
        }
    }

    /// It is well, or why not.
    pub(crate) fn say(&self, unhealthy: Option<String>) {
        self.said.send_if_modified(|last| {
            let differs = last.as_ref() != Some(&unhealthy);
            *last = Some(unhealthy);
            differs
        });
    }
}

/// What a group asks its machines.
fn asks(group: &WorkloadGroup) -> Option<Probe> {
    group.spec.probe.as_ref().and_then(said)
}

/// A probe with its defaults filled in.
fn said(probe: &workload_group::Probe) -> Option<Probe> {
    let or = |given: u32, default: u32| if given == 0 { default } else { given };
    let http = probe.http_get.as_ref().map(|it| {
        let path = match &*it.path {
            "" => "/",
            path => path,
        };
        probe::Check::Http(Http {
            port: it.port,
            path: path.into(),
            host: it.host.clone(),
            headers: it
                .http_headers
                .iter()
                .map(|header| Header {
                    name: header.name.clone(),
                    value: header.value.clone(),
                })
                .collect(),
        })
    });
    let tcp = probe.tcp_socket.as_ref().map(|it| {
        probe::Check::Tcp(Tcp {
            port: it.port,
            host: it.host.clone(),
        })
    });
    let exec = probe.exec.as_ref().map(|it| {
        probe::Check::Exec(Exec {
            command: it.command.clone(),
        })
    });
    Some(Probe {
        initial_delay_seconds: probe.initial_delay_seconds,
        timeout_seconds: or(probe.timeout_seconds, 1),
        period_seconds: or(probe.period_seconds, 10),
        success_threshold: or(probe.success_threshold, 1),
        failure_threshold: or(probe.failure_threshold, 3),
        check: Some(http.or(tcp).or(exec)?),
    })
}

/// How often it is looked whether a machine was taken out.
const LOOK: Duration = Duration::from_secs(10);
/// After an entry could not be written.
const RETRY: Duration = Duration::from_secs(2);
/// Of what a machine says, in bytes: it is logged, and kept.
const LONGEST_REPORT: usize = 4 << 10;
/// Between two reports that are heeded.
const PAUSE: Duration = Duration::from_secs(1);
