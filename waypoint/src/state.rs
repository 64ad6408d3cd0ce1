//! What the control plane has said, and what is made of it.
//!
//! ```text
//!  Update ─▶ Keeper ─┬─ addresses ─▶ mesh::Writer ─▶ Snapshot ─┐
//!                    └─ resources ─▶ Resources ────────────────┴─ what was touched ─▶ Compile ─▶ State
//! ```
//!
//! 1. a resource is decoded and looked at by itself: what nobody understands is refused by name, and the last good one
//!    of that name stays; a first one that is refused is kept as such, for it closes what it is for  (`Keeper::set`)
//! 2. an update may come in parts, which are seen together or not at all
//! 3. what it touched is worked out from the ties of its resources and from what changed in the mesh  ([`Touched`])
//! 4. that, and no more, is compiled anew, and published by one pointer swap  ([`State::load`])

mod closing;
mod known;
mod resources;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::waypoint as wire;
use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use mesh::{NamespacedHost, ParseError, Payload, Rejected, Snapshot, Step, Update, Writer, key_of};
use tokio::runtime::Handle;
use tokio::sync::watch;

pub use resources::{Behind, Held, Resources};

/// What requests see, and what it was made of.
#[derive(Debug)]
pub struct State<T> {
    current: ArcSwap<T>,
    said: ArcSwap<Resources>,
    changed: watch::Sender<u64>,
}

/// Makes what requests see.
pub trait Compile {
    /// What they see.
    type Config: Send + Sync + 'static;

    /// Whether a resource can be understood, by itself.
    ///
    /// # Errors
    /// Why it cannot, for whoever wrote the object.
    fn check(&mut self, resource: &wire::Resource) -> Result<(), String>;

    /// The next one. What `view.touched` does not name is as it was in `before`.
    fn compile(&mut self, before: &Self::Config, view: &View<'_>) -> Self::Config;
}

/// What there is to compile.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Everything that was said.
    pub resources: &'a Resources,
    /// The mesh.
    pub mesh: &'a Arc<Snapshot>,
    /// What of it is another than the last time.
    pub touched: &'a Touched,
}

/// What is to be made anew.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Touched {
    /// Something is another that concerns all of it: the gateway, a policy for it, a provider, a key.
    pub everything: bool,
    /// Services of whose requests something is another: a route, a policy, the service itself, how a service is called
    /// that their routes lead to.
    pub services: BTreeSet<NamespacedHost>,
    /// Of services among them, keys of rules that came, went or are others.
    pub rules: BTreeMap<NamespacedHost, BTreeSet<Arc<str>>>,
    /// Services that have other endpoints.
    pub endpoints: BTreeSet<NamespacedHost>,
    /// What the gateway stands in front of now, or no more, or not for long.
    pub behind: BTreeSet<Behind>,
}

impl Touched {
    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        let Self {
            everything,
            services,
            rules: _, // of services among them
            endpoints,
            behind,
        } = self;
        !everything && services.is_empty() && endpoints.is_empty() && behind.is_empty()
    }
}

impl<T> State<T> {
    /// Nothing was said yet.
    pub fn new(first: T) -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::from_pointee(first),
            said: ArcSwap::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// What a request sees: one atomic load. Load once per request; what is kept across an await is
    /// [`State::load_full`].
    pub fn load(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// The same, to be kept across an await.
    pub fn load_full(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// What it was made of, for those who show it.
    pub fn said(&self) -> Arc<Resources> {
        self.said.load_full()
    }

    /// Counts what was published.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// The one who writes a state and its mesh.
#[derive(Debug)]
pub struct Keeper<C: Compile> {
    /// `namespace/name`; what is for another is not ours.
    gateway: Arc<str>,
    state: Arc<State<C::Config>>,
    mesh: Writer,
    compiler: C,
    next: Resources,
    touched: Touched,
    /// The mesh that the state was made of.
    seen: Arc<Snapshot>,
}

impl<C: Compile> Keeper<C> {
    /// Of the gateway `namespace/name`.
    pub fn new(gateway: &str, state: Arc<State<C::Config>>, mesh: Writer, compiler: C) -> Self {
        Self {
            gateway: gateway.into(),
            state,
            seen: mesh.mesh().load_full(),
            mesh,
            compiler,
            next: Resources::default(),
            touched: Touched::default(),
        }
    }

    /// Applies an update as one step: readers see all of it or nothing. Returns what was refused.
    pub fn apply(&mut self, mut update: Update) -> Vec<Rejected> {
        let step = update.step;
        let resources = std::mem::take(&mut update.resources);
        let mut rejected = self.mesh.apply(update);
        if step == Step::Withdrawn {
            self.next = Resources::clone(&self.state.said.load());
            self.touched = Touched::default();
            return rejected;
        }
        for (name, payload) in resources.set {
            if let Err(reason) = self.set(&name, payload) {
                rejected.push(Rejected { name, reason });
            }
        }
        for name in resources.removed {
            if let Some(key) = key_of(&name, &self.gateway) {
                self.next.remove(key, &mut self.touched);
            }
        }
        if step == Step::Complete {
            self.publish();
        }
        rejected
    }

    fn set(&mut self, name: &str, payload: Payload<wire::Resource>) -> Result<(), ParseError> {
        let foreign =
            || ParseError::Meaningless(format!("for another gateway than {}", self.gateway));
        let key = key_of(name, &self.gateway).ok_or_else(foreign)?;
        let encoded = match &payload {
            Payload::Bytes(encoded) => encoded.clone(),
            Payload::Message(_) => Bytes::new(),
        };
        let unknown = known::unknown_field(&encoded);
        let resource = match payload.decode() {
            Ok(resource) => resource,
            Err(reason) => {
                let closed = closing::closing(key, &encoded, &reason.to_string());
                self.next.refuse(key, closed, &reason, &mut self.touched);
                return Err(reason);
            }
        };
        if *resource.key != *key {
            return Err(ParseError::NameMismatch(resource.key));
        }
        let understood = match unknown {
            Some(field) => Err(format!("{field} is not known to this version of the proxy")),
            None if resource.kind.is_none() => {
                Err("a kind of resource that is not known to this version of the proxy".to_owned())
            }
            None => self.compiler.check(&resource),
        };
        match understood {
            Ok(()) => self.next.set(key, resource, &mut self.touched),
            Err(reason) => {
                let reason = ParseError::Meaningless(reason);
                self.next.refuse(key, resource, &reason, &mut self.touched);
                return Err(reason);
            }
        }
        Ok(())
    }

    fn publish(&mut self) {
        let mesh = self.mesh.mesh().load_full();
        for changed in mesh.services_since(&self.seen) {
            if changed.itself {
                self.next.touch_service(&changed.service, &mut self.touched);
            }
            if changed.endpoints {
                self.touched.endpoints.insert(changed.service);
            }
        }
        self.seen = mesh;
        let touched = std::mem::take(&mut self.touched);
        // What is shown is in force: it is told of when it is.
        let said = Arc::new(self.next.clone());
        if touched.is_empty() {
            self.state.said.store(said);
            return;
        }
        let view = View {
            resources: &self.next,
            mesh: &self.seen,
            touched: &touched,
        };
        let before = self.state.current.load_full();
        let next = self.compiler.compile(&before, &view);
        self.state.current.store(Arc::new(next));
        self.state.said.store(said);
        self.state.changed.send_modify(|count| *count += 1);
        if touched.everything {
            retire(before);
        }
    }
}

/// Lets go of what was seen until now once no request holds it any more: whoever is last takes it apart, which for a large
/// one is work, and should not be a thread that carries requests.
fn retire(before: impl Send + 'static) {
    if let Ok(runtime) = Handle::try_current() {
        runtime.spawn(async move {
            tokio::time::sleep(HELD).await;
            drop(before);
        });
    }
}

/// How long a request may hold what it saw: nearly all are answered sooner.
const HELD: Duration = Duration::from_secs(1);
