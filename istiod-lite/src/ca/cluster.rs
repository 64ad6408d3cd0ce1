//! The signer lives in Secrets of the cluster.
//!
//! 1. Secrets and the mesh's settings are followed                            ([`Seen`])
//! 2. which of them counts: the one named, else `cacerts`, else our own root  ([`choose`], pure)
//! 3. our own root is made where there is none: who is first makes it, all others read it
//! 4. what fits is taken up, what does not is refused and the last good signer stays, and so do further roots
//! 5. every hour, our own root is looked at: in the last fifth of its life it is renewed
//!
//! Every replica does all of this by itself: it must sign also while there is no leader. Where two
//! write at the same time, the API server lets one win and the other reads.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::PostParams;
use ops::drain::Drain;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::material::{Material, MaterialError, Parts};
use super::{Abrupt, Authority, Lifetimes, root, secret};
use crate::cluster::{Connection, Health};
use crate::metrics::Metrics;
use crate::write::{ROOTS_KEY, ROOTS_NAME, follow, said};

/// Which Secrets.
#[derive(Debug, Clone)]
pub struct Place {
    /// Our own namespace.
    pub namespace: String,
    /// The only Secret to take the signer from (`--ca-secret`). By default `cacerts` if there is
    /// one, else `istio-ca-secret`, which is made when missing.
    pub secret: Option<String>,
}

/// Waits for a signer that can be used, saying what it waits for; `None` when `drain` ends first.
/// From then on it is kept current until `drain`.
pub async fn open(
    connection: &Connection,
    health: &Health,
    place: Place,
    trust_domain: Arc<str>,
    lifetimes: Lifetimes,
    metrics: Arc<Metrics>,
    drain: &Drain,
) -> Option<Arc<Authority>> {
    let (opened, first) = oneshot::channel();
    let heard = Box::pin(events(connection, health, &place));
    let keeper = Keeper {
        secrets: Api::namespaced(connection.client.clone(), &place.namespace),
        maps: Api::namespaced(connection.client.clone(), &place.namespace),
        place,
        trust_domain,
        lifetimes,
        metrics,
        seen: Seen::default(),
        authority: None,
        further: String::new(),
        opened: Some(opened),
        held_back: None,
        said: String::new(),
    };
    tokio::spawn(keeper.run(heard, drain.accepting().clone()));
    first.await.ok()
}

/// What was heard of the objects that decide; the outer `None` means nothing yet.
#[derive(Default)]
struct Seen {
    plugged: Option<Option<Secret>>,
    own: Option<Option<Secret>>,
    settings: Option<Option<ConfigMap>>,
}

/// What one of them has become.
enum Heard {
    Plugged(Option<Secret>),
    Own(Option<Secret>),
    Settings(Option<ConfigMap>),
}

fn events(
    connection: &Connection,
    health: &Health,
    place: &Place,
) -> impl Stream<Item = Heard> + Send + use<> {
    let client = || connection.watching.clone();
    let secret = |name: &str| {
        let secrets = Api::<Secret>::namespaced(client(), &place.namespace);
        follow::object(secrets, name, health, &format!("secrets {name}"))
    };
    let settings = Api::<ConfigMap>::namespaced(client(), &place.namespace);
    let settings = follow::object(settings, secret::SETTINGS, health, "configmaps istio");
    let plugged = place.secret.as_deref().unwrap_or(secret::PLUGGED);
    // Not asked for where it cannot count: no right to it is needed then.
    let own = match place.secret {
        Some(_) => futures_util::stream::pending().left_stream(),
        None => secret(secret::OWN).right_stream(),
    };
    futures_util::stream::select(
        futures_util::stream::select(secret(plugged).map(Heard::Plugged), own.map(Heard::Own)),
        settings.map(Heard::Settings),
    )
}

/// What counts.
#[derive(Debug, PartialEq)]
enum Choice<'a> {
    /// Not everything was heard of yet.
    Unknown,
    /// This Secret.
    Use(&'a Secret),
    /// The Secret that was named is not there.
    Wait(&'a str),
    /// There is none; our own is to be made.
    Make,
}

fn choose<'a>(place: &'a Place, seen: &'a Seen) -> Choice<'a> {
    if seen.settings.is_none() {
        return Choice::Unknown;
    }
    match (&seen.plugged, &seen.own, &place.secret) {
        (Some(Some(plugged)), ..) => Choice::Use(plugged),
        (Some(None), _, Some(name)) => Choice::Wait(name),
        (Some(None), Some(Some(own)), None) => Choice::Use(own),
        (Some(None), Some(None), None) => Choice::Make,
        (None, ..) | (_, None, None) => Choice::Unknown,
    }
}

/// Why there is no (new) signer.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    #[error("Secret {0}: {1}")]
    Material(String, #[source] MaterialError),
    #[error(
        "Secret {0} came before the mesh was told the root of its signer; when that root is in ConfigMap istio-ca-root-cert and every proxy has it, write the Secret again (kubectl annotate secret {0} ambit.io/swap=now --overwrite)"
    )]
    HeldBack(String),
    #[error("there is no Secret {0} (--ca-secret)")]
    Missing(String),
    #[error(
        "Secret {0}, which the signer came from, is gone; put it back, or plug in another whose roots include the present ones"
    )]
    Gone(String),
    #[error(
        "the mesh trusts the root in ConfigMap {namespace}/{ROOTS_NAME}, but neither Secret cacerts nor istio-ca-secret is there; put it back, or, to start with a new root that no running workload knows, delete that ConfigMap"
    )]
    Orphaned { namespace: String },
    #[error("Secret {0} cannot be written: {why}", why = said(.1))]
    Write(&'static str, #[source] kube::Error),
    #[error("{0} cannot be read: {why}", why = said(.1))]
    Read(&'static str, #[source] kube::Error),
}

/// The one task that owns all of this.
struct Keeper {
    secrets: Api<Secret>,
    maps: Api<ConfigMap>,
    place: Place,
    trust_domain: Arc<str>,
    lifetimes: Lifetimes,
    metrics: Arc<Metrics>,
    seen: Seen,
    authority: Option<InUse>,
    /// The further roots of the mesh's settings, when all of them could be read last.
    further: String,
    opened: Option<oneshot::Sender<Arc<Authority>>>,
    /// The Secret, by name and version, whose signer came before its root was told. It is not
    /// taken up by itself once the root is: only its writer knows when every proxy has the root.
    held_back: Option<(String, Option<String>)>,
    /// The last complaint, said once.
    said: String,
}

/// The signer, and the Secret it came from.
struct InUse {
    authority: Arc<Authority>,
    from: String,
    /// What it says, without further roots.
    bare: Parts,
}

impl InUse {
    /// The same signer, with these roots beside its own.
    fn tell(&self, further: &str, metrics: &Metrics) -> Result<(), MaterialError> {
        if self
            .authority
            .adopt(secret::with_further(self.bare.clone(), further))?
        {
            metrics.expiries(self.authority.expiries());
            tracing::info!("roots changed");
        }
        Ok(())
    }
}

impl Keeper {
    async fn run(mut self, mut events: impl Stream<Item = Heard> + Unpin, stop: CancellationToken) {
        let mut again = tokio::time::Instant::now() + hour();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                heard = events.next() => match heard {
                    Some(heard) => self.hear(heard),
                    None => return,
                },
                () = tokio::time::sleep_until(again) => {}
            }
            let pause = match self.look().await {
                Ok(()) => {
                    self.over();
                    hour()
                }
                Err(error) => {
                    self.complain(&error);
                    // Only a request that failed mends itself; for all else a change is heard of.
                    match error {
                        Unusable::Write(..) | Unusable::Read(..) | Unusable::Orphaned { .. } => {
                            RETRY
                        }
                        _ => hour(),
                    }
                }
            };
            again = tokio::time::Instant::now() + pause;
        }
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Plugged(secret) => self.seen.plugged = Some(secret),
            Heard::Own(secret) => self.seen.own = Some(secret),
            Heard::Settings(map) => self.seen.settings = Some(map),
        }
    }

    async fn look(&mut self) -> Result<(), Unusable> {
        match choose(&self.place, &self.seen) {
            Choice::Unknown => Ok(()),
            Choice::Use(secret) => {
                let secret = secret.clone();
                self.take(&secret).await?;
                self.renew(&secret).await
            }
            Choice::Wait(name) => Err(match &self.authority {
                Some(_) => Unusable::Gone(name.to_owned()),
                None => Unusable::Missing(name.to_owned()),
            }),
            Choice::Make => self.make().await,
        }
    }

    /// Takes up what a Secret says, if it is good.
    async fn take(&mut self, secret: &Secret) -> Result<(), Unusable> {
        let name = secret.metadata.name.clone().unwrap_or_default();
        let refused = |error| Unusable::Material(name.clone(), error);
        let settings = self.seen.settings.as_ref().and_then(Option::as_ref);
        let (mut further, unread) = secret::further_roots(settings);
        match unread {
            None => self.further.clone_from(&further),
            // Whoever made a typing error there did not mean to cut off those who were certified under one of them.
            Some(error) => {
                tracing::warn!(%error, "roots of ConfigMap istio cannot be read; those that were told before stay");
                further.push_str(&self.further);
            }
        }
        let bare = secret::parts(secret).map_err(refused)?;
        let parts = secret::with_further(bare.clone(), &further);
        let version = (name.clone(), secret.metadata.resource_version.clone());
        if let Some(in_use) = &mut self.authority {
            if self.held_back.as_ref() == Some(&version) {
                in_use.tell(&further, &self.metrics).map_err(refused)?;
                return Err(Unusable::HeldBack(name));
            }
            match in_use.authority.adopt(parts) {
                Ok(changed) => {
                    self.held_back = None;
                    in_use.from.clone_from(&name);
                    in_use.bare = bare;
                    if changed {
                        self.metrics.expiries(in_use.authority.expiries());
                        tracing::info!(secret = name, "signing certificate or roots changed");
                    }
                    return Ok(());
                }
                Err(error) => {
                    if matches!(error, MaterialError::Abrupt(Abrupt::Untold { .. })) {
                        self.held_back = Some(version);
                    }
                    // Further roots are told whatever becomes of the signer.
                    in_use.tell(&further, &self.metrics).map_err(refused)?;
                    return Err(refused(error));
                }
            }
        }
        let material = Material::check(parts).map_err(refused)?;
        self.compare_with_told(&material).await;
        let (trust_domain, lifetimes) = (self.trust_domain.clone(), self.lifetimes);
        let authority = Arc::new(Authority::new(None, material, trust_domain, lifetimes));
        self.metrics.expiries(authority.expiries());
        tracing::info!(secret = name, "signing certificate");
        if let Some(opened) = self.opened.take() {
            let _ = opened.send(authority.clone());
        }
        self.authority = Some(InUse {
            authority,
            from: name,
            bare,
        });
        Ok(())
    }

    /// A start has no signer before to compare with, but what the mesh was told is there to read.
    async fn compare_with_told(&self, material: &Material) {
        let told = self.told().await.unwrap_or_default();
        let Ok(told) = super::material::anchors(ROOTS_KEY, &told) else {
            return;
        };
        if !told.is_empty() && !told.contains(&material.anchor) {
            tracing::error!(
                root = material.anchor.name,
                "the signer's root is not the one that workloads trust: they are cut off until they have new certificates"
            );
        }
    }

    /// The roots that were told the mesh last.
    async fn told(&self) -> Result<String, kube::Error> {
        let map = self.maps.get_opt(ROOTS_NAME).await?;
        let roots = map.and_then(|map| map.data?.remove(ROOTS_KEY));
        Ok(roots.unwrap_or_default())
    }

    /// Puts our own root into the cluster: the one in use, or a new one if the mesh has none.
    async fn make(&mut self) -> Result<(), Unusable> {
        let parts = match &self.authority {
            Some(in_use) if in_use.from == secret::OWN => {
                tracing::warn!("Secret istio-ca-secret is gone; put back");
                in_use.bare.clone()
            }
            Some(in_use) => return Err(Unusable::Gone(in_use.from.clone())),
            None => {
                let told = self.told().await;
                let told =
                    told.map_err(|error| Unusable::Read("ConfigMap istio-ca-root-cert", error))?;
                if !told.is_empty() {
                    let namespace = self.place.namespace.clone();
                    return Err(Unusable::Orphaned { namespace });
                }
                let made = root::fresh(&self.trust_domain);
                made.map_err(|error| Unusable::Material(secret::OWN.to_owned(), error))?
            }
        };
        let fresh = secret::own(&parts, &self.place.namespace, None);
        match self.secrets.create(&PostParams::default(), &fresh).await {
            Ok(_) => tracing::info!("Secret istio-ca-secret made"),
            // Another replica was first: its root will be heard of.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(Unusable::Write(secret::OWN, error)),
        }
        Ok(())
    }

    /// Renews our own root where it is time.
    async fn renew(&self, secret: &Secret) -> Result<(), Unusable> {
        if secret.metadata.name.as_deref() != Some(secret::OWN) {
            return Ok(());
        }
        let refused = |error| Unusable::Material(secret::OWN.to_owned(), error);
        let parts = secret::parts(secret).map_err(refused)?;
        let Some(fresh) = root::renewed(&parts, &self.trust_domain).map_err(refused)? else {
            return Ok(());
        };
        let fresh = secret::own(&fresh, &self.place.namespace, Some(secret));
        let ours = PostParams::default();
        match self.secrets.replace(secret::OWN, &ours, &fresh).await {
            Ok(_) => tracing::info!("our own root is renewed, with its key"),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(Unusable::Write(secret::OWN, error)),
        }
        Ok(())
    }

    fn complain(&mut self, error: &Unusable) {
        let text = error.to_string();
        self.metrics.signer_refused.set(1);
        if text == self.said {
            return;
        }
        match &self.authority {
            Some(_) => tracing::error!(error = text, "new signer refused, the last good one stays"),
            None => tracing::error!(
                error = text,
                "no signer: nothing is served until this is mended"
            ),
        }
        self.said = text;
    }

    fn over(&mut self) {
        self.metrics.signer_refused.set(0);
        self.said.clear();
    }
}

/// An hour, a tenth more or less: replicas that started together do not all look together.
fn hour() -> Duration {
    let mut random = [0_u8; 1];
    // Without randomness it is an hour less a tenth.
    let _ = aws_lc_rs::rand::fill(&mut random);
    Duration::from_secs(3240) + Duration::from_secs(720).mul_f64(f64::from(random[0]) / 255.0)
}

/// After a request that failed.
const RETRY: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
