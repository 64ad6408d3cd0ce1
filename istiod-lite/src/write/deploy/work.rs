//! One Gateway is looked at: what should be there is put there.
//!
//! 1. its parameters are read
//! 2. what it consists of is made of them, purely               ([`crate::deploy::made`])
//! 3. a piece that we do not know as this Gateway's own is asked for: somebody else's is left alone
//! 4. all are applied; fields of others stay theirs
//! 5. what is held and no longer wanted goes

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::k8s::objects::ObjectKey;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::core::DynamicObject;
use kube::{Api, Client};

use super::held::PieceName;
use crate::deploy::{Note, Order, Parameters, Pattern, Piece, PieceKind, Reference, made};
use crate::write::said;

/// What is to be done about one Gateway.
pub(super) struct Job {
    pub(super) order: Arc<Order>,
    /// Parameters, the last last.
    pub(super) references: Vec<Reference>,
    /// Whether it is to run at all.
    pub(super) wanted: bool,
    /// What there is of it.
    pub(super) held: BTreeSet<PieceName>,
}

/// What came of it.
pub(super) enum Outcome {
    /// All is as it should be; so many objects were made that were not there.
    Right { written: usize },
    /// It cannot be done as things are; a change of them is heard of.
    Refused(Note),
    /// To be tried again.
    Failed(Note),
}

/// Does the job.
pub(super) async fn put_up(
    client: Client,
    pattern: Arc<Pattern>,
    key: ObjectKey,
    job: Job,
) -> (ObjectKey, Outcome) {
    let outcome = try_to(&client, &pattern, &job).await;
    (key, outcome.unwrap_or_else(|outcome| outcome))
}

async fn try_to(client: &Client, pattern: &Pattern, job: &Job) -> Result<Outcome, Outcome> {
    let order = &*job.order;
    let mut pieces = Vec::new();
    if job.wanted {
        let wishes = parameters(client, &job.references).await?;
        pieces = made(order, pattern, &wishes)
            .map_err(|why| Outcome::Refused(Note::Invalid(format!("the parameters' {why}"))))?;
    }
    let mut fresh = Vec::new();
    let mut theirs = BTreeSet::new();
    for piece in &pieces {
        let name = (piece.kind, piece.name().to_owned());
        if job.held.contains(&name) {
            continue;
        }
        match whose(client, order, piece).await? {
            Whose::Nobodys => fresh.push(name),
            Whose::This => {}
            // An account may serve many; what it may do is not changed by our using it.
            Whose::Others if piece.kind == PieceKind::ServiceAccount => drop(theirs.insert(name)),
            Whose::Others => return Err(in_the_way(order, piece)),
        }
    }
    for piece in &pieces {
        let name = (piece.kind, piece.name().to_owned());
        if !theirs.contains(&name) {
            apply(client, order, piece, !fresh.contains(&name)).await?;
        }
    }
    let kept = |(kind, name): &PieceName| {
        let mut all = pieces.iter();
        all.any(|piece| piece.kind == *kind && piece.name() == name)
    };
    for piece in job.held.iter().filter(|it| !kept(it)) {
        delete(client, order, piece).await?;
    }
    Ok(Outcome::Right {
        written: fresh.len(),
    })
}

async fn parameters(client: &Client, from: &[Reference]) -> Result<Vec<Parameters>, Outcome> {
    let mut all = Vec::new();
    for reference in from {
        reference
            .check()
            .map_err(|why| Outcome::Refused(Note::Invalid(why)))?;
        let (namespace, name) = (&reference.namespace, &reference.name);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let map = maps.get_opt(name).await.map_err(|error| {
            let why = format!(
                "ConfigMap {namespace}/{name} cannot be read: {}",
                said(&error)
            );
            Outcome::Failed(Note::Blocked(why))
        })?;
        let invalid = |why: String| {
            let why = format!("parameters in ConfigMap {namespace}/{name}: {why}");
            Outcome::Refused(Note::Invalid(why))
        };
        let map = map.ok_or_else(|| invalid("there is no such ConfigMap".to_owned()))?;
        let data: BTreeMap<String, String> = map.data.unwrap_or_default();
        all.push(Parameters::read(&data).map_err(invalid)?);
    }
    Ok(all)
}

/// Whose an object of that name is.
enum Whose {
    Nobodys,
    This,
    Others,
}

async fn whose(client: &Client, order: &Order, piece: &Piece) -> Result<Whose, Outcome> {
    let objects = api(client, order, piece.kind);
    let found = objects.get_opt(piece.name()).await;
    let Some(object) =
        found.map_err(|error| blocked("read", order, piece.kind, piece.name(), &error))?
    else {
        return Ok(Whose::Nobodys);
    };
    let owners = object.metadata.owner_references.iter().flatten();
    let owner = owners.into_iter().find(|it| it.controller == Some(true));
    // Of a Gateway of the same name that went: what it left is collected first, and we come back.
    Ok(match owner.is_some_and(|it| it.uid == order.uid) {
        true => Whose::This,
        false => Whose::Others,
    })
}

fn in_the_way(order: &Order, piece: &Piece) -> Outcome {
    let (kind, name) = (piece.kind.name(), piece.name());
    Outcome::Failed(Note::Blocked(format!(
        "there is a {kind} {}/{name} already that was not made for this Gateway, and it is left alone; delete it, or have the waypoint's objects named otherwise by annotation {}, or give the Gateway spec.addresses if you run it yourself",
        order.namespace,
        api::k8s::labels::GATEWAY_NAME_OVERRIDE,
    )))
}

/// `known`: it was ours before, so what somebody else wrote over our fields goes.
async fn apply(client: &Client, order: &Order, piece: &Piece, known: bool) -> Result<(), Outcome> {
    let params = PatchParams {
        force: known,
        ..PatchParams::apply(MANAGER)
    };
    let objects = api(client, order, piece.kind);
    let applied = objects
        .patch(piece.name(), &params, &Patch::Apply(&piece.object))
        .await;
    applied
        .map(drop)
        .map_err(|error| blocked("apply", order, piece.kind, piece.name(), &error))
}

async fn delete(client: &Client, order: &Order, piece: &PieceName) -> Result<(), Outcome> {
    let (kind, name) = piece;
    match api(client, order, *kind)
        .delete(name, &DeleteParams::background())
        .await
    {
        Ok(_) => {
            tracing::info!(
                kind = kind.name(),
                namespace = order.namespace,
                name,
                "no longer part of its waypoint; deleted"
            );
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(blocked("delete", order, *kind, name, &error)),
    }
}

fn blocked(verb: &str, order: &Order, kind: PieceKind, name: &str, error: &kube::Error) -> Outcome {
    let (kind, namespace) = (kind.name(), &order.namespace);
    let why = format!("cannot {verb} {kind} {namespace}/{name}: {}", said(error));
    Outcome::Failed(Note::Blocked(why))
}

fn api(client: &Client, order: &Order, kind: PieceKind) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), &order.namespace, &kind.resource())
}

const MANAGER: &str = "ambit-deploy";
