//! Pure: what has been made for waypoints, as far as it was heard of.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use api::k8s::labels::GATEWAY_NAME;
use api::k8s::objects::{Kind, ObjectKey};
use kube::core::DynamicObject;
use serde_json::Value;

use super::Change;
use crate::deploy::{Order, PieceKind};

/// A piece by kind and name; its namespace is the Gateway's.
pub(super) type PieceName = (PieceKind, String);

/// What was made, by the Gateway that its label names.
#[derive(Default)]
pub(super) struct Held {
    pieces: BTreeMap<(String, PieceName), Piece>,
    of: HashMap<ObjectKey, BTreeSet<(String, PieceName)>>,
}

struct Piece {
    gateway: ObjectKey,
    /// The uid of its controlling owner.
    owner: String,
    /// Of all but its status: whether somebody changed it.
    content: u64,
    /// Of a Deployment: why it is not yet as it should be.
    pending: Option<String>,
}

impl Held {
    /// Notes a change; the Gateways to look at because of it. A status that moves is no reason to look.
    pub(super) fn hear(&mut self, kind: PieceKind, change: Change) -> Vec<ObjectKey> {
        match change {
            Change::Is(object) => self.is(kind, &object),
            Change::Gone(namespace, name) => self.gone(&(namespace, (kind, name))),
            Change::Listed => Vec::new(),
        }
    }

    fn is(&mut self, kind: PieceKind, object: &DynamicObject) -> Vec<ObjectKey> {
        let metadata = &object.metadata;
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let at = (
            namespace.clone(),
            (kind, metadata.name.clone().unwrap_or_default()),
        );
        let label = metadata.labels.as_ref().and_then(|it| it.get(GATEWAY_NAME));
        let Some(gateway) = label else {
            return self.gone(&at);
        };
        let gateway = ObjectKey::new(Kind::Gateway, &namespace, gateway);
        let owners = metadata.owner_references.iter().flatten();
        let owner = owners.into_iter().find(|it| it.controller == Some(true));
        let fresh = Piece {
            gateway: gateway.clone(),
            owner: owner.map(|it| it.uid.clone()).unwrap_or_default(),
            content: content(object),
            pending: (kind == PieceKind::Deployment)
                .then(|| pending(object))
                .flatten(),
        };
        let before = self.pieces.get(&at);
        let same = before.is_some_and(|it| {
            (&it.gateway, &it.owner, it.content) == (&fresh.gateway, &fresh.owner, fresh.content)
        });
        let mut moved = if same { Vec::new() } else { self.gone(&at) };
        self.of
            .entry(gateway.clone())
            .or_default()
            .insert(at.clone());
        self.pieces.insert(at, fresh);
        if !same && !moved.contains(&gateway) {
            moved.push(gateway);
        }
        moved
    }

    fn gone(&mut self, at: &(String, PieceName)) -> Vec<ObjectKey> {
        let Some(piece) = self.pieces.remove(at) else {
            return Vec::new();
        };
        if let Some(all) = self.of.get_mut(&piece.gateway) {
            all.remove(at);
            if all.is_empty() {
                self.of.remove(&piece.gateway);
            }
        }
        vec![piece.gateway]
    }

    /// What this very Gateway owns, not one of the same name before it.
    pub(super) fn of(&self, order: &Order) -> BTreeSet<PieceName> {
        let own = self.own(order);
        own.map(|((_, name), _)| name.clone()).collect()
    }

    /// Why its pods are not there yet, or not all.
    pub(super) fn pending(&self, order: &Order) -> Option<String> {
        let mut own = self.own(order);
        own.find_map(|(_, piece)| piece.pending.clone())
    }

    fn own<'a>(
        &'a self,
        order: &'a Order,
    ) -> impl Iterator<Item = (&'a (String, PieceName), &'a Piece)> {
        let key = ObjectKey::new(Kind::Gateway, &order.namespace, &order.name);
        let all = self.of.get(&key).into_iter().flatten();
        let all = all.filter_map(|at| self.pieces.get_key_value(at));
        all.filter(|(_, piece)| piece.owner == order.uid)
    }
}

/// Of everything that somebody could have changed.
fn content(object: &DynamicObject) -> u64 {
    let mut metadata = object.metadata.clone();
    metadata.managed_fields = None;
    metadata.resource_version = None;
    let mut data = object.data.clone();
    if let Some(fields) = data.as_object_mut() {
        fields.remove("status");
    }
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(&metadata)
        .unwrap_or_default()
        .hash(&mut hasher);
    data.to_string().hash(&mut hasher);
    hasher.finish()
}

/// What a Deployment lacks, in words for the Gateway's owner.
fn pending(object: &DynamicObject) -> Option<String> {
    let number = |at: &str| object.data.pointer(at).and_then(Value::as_u64);
    let wanted = number("/spec/replicas").unwrap_or(1);
    let ready = number("/status/availableReplicas").unwrap_or(0);
    if ready >= wanted {
        return None;
    }
    let conditions = object.data.pointer("/status/conditions");
    let conditions = conditions.and_then(Value::as_array).into_iter().flatten();
    let failed = conditions.into_iter().find(|it| {
        let failure = it["type"] == "ReplicaFailure" && it["status"] == "True";
        failure || it["type"] == "Progressing" && it["status"] == "False"
    });
    let why = failed.and_then(|it| it["message"].as_str());
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let mut text = format!("{ready} of {wanted} pods of Deployment {name} are ready");
    if let Some(why) = why {
        text += ": ";
        text.extend(why.chars().take(LONGEST));
    }
    Some(text)
}

/// Of a message that is passed on.
const LONGEST: usize = 512;
