//! Waypoints are deployed: for each Gateway of a class of ours the objects that make one run ([`crate::deploy`]).
//!
//! 1. Gateways, their classes, and what was made for them before are followed
//! 2. a Gateway is looked at when it, its class or something of its own changed, and now and then if it has parameters,
//!    which are read then and not followed: a right to follow ConfigMaps is a right to read them all
//! 3. looking: what should be there is rendered, and applied by server-side apply; what was made before and is no
//!    longer wanted is deleted ([`work`]). What somebody else made under the same name is left alone, and the status says so
//! 4. when the Gateway goes, its owner references have all of it collected

mod held;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::k8s::labels;
use api::k8s::objects::{Gateway, GatewayClass, Kind, ObjectKey};
use futures_util::stream::{FuturesUnordered, SelectAll};
use futures_util::{Stream, StreamExt as _};
use kube::Api;
use kube::core::{ApiResource, DynamicObject};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};

use self::held::Held;
use self::work::{Job, Outcome};
use super::follow::Change;
use super::queue::{Queue, until};
use super::{Ground, follow};
use crate::cluster::watch::config;
use crate::deploy::{Note, Notes, Order, Pattern, PieceKind, Reference, Role};
use crate::translate::gateway::{Class, Controller};

/// Runs while we lead. `notes` are for those who write the Gateways' statuses.
pub(super) async fn write(ground: Ground, pattern: Arc<Pattern>, notes: watch::Sender<Notes>) {
    let mut kinds = ground.kinds.clone();
    loop {
        let known = |kinds: &crate::cluster::Kinds| {
            [Kind::Gateway, Kind::GatewayClass].map(|kind| kinds.get(&kind).cloned())
        };
        let now = known(&kinds.borrow_and_update());
        let other = async {
            while kinds.changed().await.is_ok() {
                if known(&kinds.borrow()) != now {
                    return;
                }
            }
            // The source has ended, and we are about to.
            std::future::pending().await
        };
        let [Some(gateways), classes] = now.clone() else {
            other.await;
            continue;
        };
        let mut desk = Desk::new(
            ground.clone(),
            pattern.clone(),
            notes.clone(),
            classes.is_none(),
        );
        tokio::select! {
            () = desk.run(&gateways, classes.as_ref()) => {}
            () = other => {}
        }
    }
}

/// What the writer knows.
struct Desk {
    ground: Ground,
    pattern: Arc<Pattern>,
    notes: watch::Sender<Notes>,
    orders: BTreeMap<ObjectKey, Arc<Order>>,
    classes: BTreeMap<String, (Class, Option<Reference>)>,
    /// Until then nobody knows whose a Gateway is.
    classes_known: bool,
    held: Held,
    /// What the last look at each came to, if there is something to say.
    found: BTreeMap<ObjectKey, Note>,
    queue: Queue<ObjectKey>,
}

/// One of the streams said something.
enum Heard {
    Gateway(Change),
    Class(Change),
    Piece(PieceKind, Change),
}

impl Desk {
    fn new(
        ground: Ground,
        pattern: Arc<Pattern>,
        notes: watch::Sender<Notes>,
        classes_known: bool,
    ) -> Self {
        Self {
            ground,
            pattern,
            notes,
            orders: BTreeMap::new(),
            classes: BTreeMap::new(),
            classes_known,
            held: Held::default(),
            found: BTreeMap::new(),
            queue: Queue::default(),
        }
    }

    /// Does not end.
    async fn run(&mut self, gateways: &ApiResource, classes: Option<&ApiResource>) {
        let mut heard = self.listen(gateways, classes);
        let mut running = FuturesUnordered::new();
        let mut again = interval(PARAMETERS);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while self.classes_known
                && running.len() < AT_A_TIME
                && let Some(key) = self.queue.take(Instant::now())
            {
                match self.job(&key) {
                    Some(job) => running.push(work::put_up(
                        self.ground.connection.client.clone(),
                        self.pattern.clone(),
                        key,
                        job,
                    )),
                    None => self.queue.done(&key),
                }
            }
            tokio::select! {
                Some(heard) = heard.next() => self.hear(heard),
                Some((key, outcome)) = running.next() => self.done(&key, outcome),
                _ = again.tick() => self.look_at(|desk, order| desk.has_parameters(order)),
                () = until(self.queue.due()) => {}
            }
            self.tell();
        }
    }

    fn listen(
        &self,
        gateways: &ApiResource,
        classes: Option<&ApiResource>,
    ) -> SelectAll<std::pin::Pin<Box<dyn Stream<Item = Heard> + Send>>> {
        let (client, health) = (&self.ground.connection.watching, &self.ground.health);
        let follow = |resource: &ApiResource, config| {
            let name = match &*resource.group {
                "" => resource.plural.clone(),
                group => format!("{}.{group}", resource.plural),
            };
            let objects: Api<DynamicObject> = Api::all_with(client.clone(), resource);
            follow::all(objects, config, health, &name)
        };
        let mut all = SelectAll::new();
        all.push(follow(gateways, config()).map(Heard::Gateway).boxed());
        if let Some(classes) = classes {
            all.push(follow(classes, config()).map(Heard::Class).boxed());
        }
        let managed = labels::managed();
        for kind in PieceKind::ALL {
            let pieces = follow(&kind.resource(), config().labels(&managed));
            all.push(pieces.map(move |it| Heard::Piece(kind, it)).boxed());
        }
        all
    }

    fn hear(&mut self, heard: Heard) {
        let now = Instant::now();
        match heard {
            Heard::Gateway(Change::Is(object)) => {
                let Some(gateway) = read::<Gateway>(*object) else {
                    return;
                };
                let order = Arc::new(Order::read(&gateway));
                let key = ObjectKey::new(Kind::Gateway, &order.namespace, &order.name);
                // A status that was written is no reason to look.
                if self.orders.get(&key) != Some(&order) {
                    self.orders.insert(key.clone(), order);
                    self.queue.add(key, now);
                }
            }
            Heard::Gateway(Change::Gone(namespace, name)) => {
                let key = ObjectKey::new(Kind::Gateway, &namespace, &name);
                self.orders.remove(&key);
                self.found.remove(&key);
                self.queue.forget(&key);
            }
            Heard::Class(Change::Is(object)) => {
                let Some(class) = read::<GatewayClass>(*object) else {
                    return;
                };
                let name = class.metadata.name.clone().unwrap_or_default();
                let fresh = (Class::read(&class), Reference::of_class(&class));
                if self.classes.get(&name) != Some(&fresh) {
                    self.classes.insert(name.clone(), fresh);
                    self.look_at(|_, order| order.class == name);
                }
            }
            Heard::Class(Change::Gone(_, name)) => {
                self.classes.remove(&name);
                self.look_at(|_, order| order.class == name);
            }
            Heard::Class(Change::Listed) => self.classes_known = true,
            Heard::Piece(kind, change) => {
                for gateway in self.held.hear(kind, change) {
                    self.queue.add(gateway, now);
                }
            }
            Heard::Gateway(Change::Listed) => {}
        }
    }

    fn look_at(&mut self, which: impl Fn(&Self, &Order) -> bool) {
        let now = Instant::now();
        let all = self.orders.iter().filter(|(_, order)| which(self, order));
        let all: Vec<ObjectKey> = all.map(|(key, _)| key.clone()).collect();
        for key in all {
            self.queue.add(key, now);
        }
    }

    fn controller(&self, order: &Order) -> Controller {
        let class = self.classes.get(&order.class).map(|(class, _)| class);
        Controller::of(&order.class, class)
    }

    fn is_ours(&self, order: &Order) -> bool {
        self.controller(order).deploys()
    }

    fn has_parameters(&self, order: &Order) -> bool {
        self.is_ours(order) && !self.references(order).is_empty()
    }

    /// Of the class first: the Gateway's own are laid over them.
    fn references(&self, order: &Order) -> Vec<Reference> {
        let class = self.classes.get(&order.class);
        let class = class.and_then(|(_, parameters)| parameters.clone());
        class.into_iter().chain(order.parameters.clone()).collect()
    }

    /// What is to be done about a Gateway; none if there is nothing.
    fn job(&mut self, key: &ObjectKey) -> Option<Job> {
        let order = self.orders.get(key)?.clone();
        let ours = self.is_ours(&order);
        let revision = &self.pattern.mesh.revision;
        let others = order.revision.as_ref().is_some_and(|it| it != revision);
        if ours && others {
            self.found.insert(key.clone(), Note::Elsewhere);
            return None;
        }
        let held = self.held.of(&order);
        let wanted = ours && !order.elsewhere;
        if order.going || !wanted && held.is_empty() {
            self.found.remove(key);
            return None;
        }
        let role = match self.controller(&order) {
            Controller::EastWest => Role::EastWest,
            _ => Role::Waypoint,
        };
        Some(Job {
            references: self.references(&order),
            wanted,
            held,
            order: Arc::new(order.of_role(role)),
        })
    }

    fn done(&mut self, key: &ObjectKey, outcome: Outcome) {
        let (note, again) = match outcome {
            Outcome::Right { written } => {
                if written > 0 {
                    self.ground.metrics.wrote("waypoint", true);
                    tracing::info!(gateway = %key, objects = written, "waypoint deployed");
                }
                self.found.remove(key);
                self.queue.done(key);
                return;
            }
            Outcome::Refused(note) => (note, false),
            Outcome::Failed(note) => (note, true),
        };
        self.ground.metrics.wrote("waypoint", false);
        if self.orders.contains_key(key) && self.found.get(key) != Some(&note) {
            tracing::warn!(gateway = %key, why = note.text(), "waypoint not deployed as it is asked for");
            self.found.insert(key.clone(), note);
        }
        if again {
            self.queue.failed(key, Instant::now());
        } else {
            self.queue.done(key);
        }
    }

    /// Those who write statuses, if there is news for them.
    fn tell(&self) {
        let mut notes = Notes::new();
        for (key, order) in &self.orders {
            let note = self.found.get(key).cloned();
            let note = note.or_else(|| self.held.pending(order).map(Note::Pending));
            if let Some(note) = note {
                notes.insert(key.clone(), note);
            }
        }
        self.notes.send_if_modified(|before| {
            let differs = *before != notes;
            if differs {
                *before = notes;
            }
            differs
        });
    }
}

/// None: what the API server has there is no such object; the kind's own definition would have refused it.
fn read<T: DeserializeOwned>(object: DynamicObject) -> Option<T> {
    let value = serde_json::to_value(object).ok()?;
    match serde_json::from_value(value) {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::warn!(%error, "an object of Gateway API is not as its kind is defined");
            None
        }
    }
}

/// How often parameters are read again.
const PARAMETERS: Duration = Duration::from_secs(15);
/// So many Gateways at a time.
const AT_A_TIME: usize = 4;
