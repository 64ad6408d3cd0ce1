//! What this proxy stands in front of, and what goes away from it.
//!
//! ```text
//!            told of it             it goes, for so long yet        taken back, or its time is over
//!  (nothing) ───────────▶ stays ───────────────────────▶ leaving ──────────────▶ (nothing)
//!                           └──────────────── taken back ────────────────────────────▲
//! ```
//! The word that it stands in front of a service comes with the service's policies, and goes with them: what it does not
//! stand in front of is served to nobody, also not over a connection that was let in before. Whose time is over is
//! forgotten here whatever the control plane says, or cannot say.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use api::waypoint as wire;
use mesh::NamespacedHost;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::state::{Behind, View};

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Fronts {
    services: imbl::HashMap<NamespacedHost, Front>,
    workloads: imbl::HashMap<Arc<str>, Front>,
}

/// One of those it stands in front of. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Front(Arc<Standing>);

#[derive(Debug, Default)]
struct Standing {
    /// When it is over, once it goes.
    until: OnceLock<Instant>,
    goes: CancellationToken,
}

impl Fronts {
    /// A service, unless it does not stand there, or no more.
    pub fn service(&self, service: &NamespacedHost) -> Option<&Front> {
        self.services.get(service).filter(|front| !front.is_over())
    }

    /// The same of a workload, by its uid.
    pub fn workload(&self, uid: &str) -> Option<&Front> {
        self.workloads.get(uid).filter(|front| !front.is_over())
    }

    /// The next ones. Who waits for one to go hears of it here.
    pub(super) fn next(&self, view: &View<'_>) -> Self {
        let mut next = self.clone();
        for behind in &view.touched.behind {
            let said = view.resources.fronted(behind);
            match behind {
                Behind::Service(service) => {
                    let before = next.services.remove(service);
                    let after = front(before, said).map(|it| (service.clone(), it));
                    next.services.extend(after);
                }
                Behind::Workload(uid) => {
                    let before = next.workloads.remove(uid);
                    let after = front(before, said).map(|it| (uid.clone(), it));
                    next.workloads.extend(after);
                }
            }
        }
        next
    }
}

fn front(before: Option<Front>, said: Option<&wire::Fronted>) -> Option<Front> {
    let Some(said) = said else {
        before.unwrap_or_default().leave(LEAVING);
        return None;
    };
    if said.leaving == 0 {
        // Who was told to go may come back, as a client like any other.
        return Some(before.filter(|it| !it.is_leaving()).unwrap_or_default());
    }
    let front = before.unwrap_or_default();
    front.leave(Duration::from_millis(said.leaving).min(LONGEST));
    Some(front)
}

impl Front {
    /// Whether it goes, or has gone.
    pub fn is_leaving(&self) -> bool {
        self.0.until.get().is_some()
    }

    /// Waits until it goes; returns when that is over.
    pub async fn leaving(&self) -> Instant {
        self.0.goes.cancelled().await;
        *self.0.until.get_or_init(Instant::now)
    }

    fn is_over(&self) -> bool {
        let until = self.0.until.get();
        until.is_some_and(|until| Instant::now() >= *until)
    }

    /// It goes; of two times the first counts.
    fn leave(&self, within: Duration) {
        self.0.until.get_or_init(|| Instant::now() + within);
        self.0.goes.cancel();
    }
}

/// What was begun may end, where a service is taken back that was not said to go: one that was deleted.
const LEAVING: Duration = Duration::from_secs(10);
/// Whatever is asked for.
const LONGEST: Duration = Duration::from_secs(3600);
