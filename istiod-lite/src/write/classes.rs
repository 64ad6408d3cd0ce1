//! The GatewayClasses that are ours: made where they are missing, as soon as the cluster knows the kind.
//!
//! 1. it is waited until GatewayClasses are defined, and begun anew when their definition changes
//! 2. each is followed by its name
//! 3. while there is none it is created; one that is there stays as its owner wrote it
//! 4. that of waypoints says in its status what they can do                          (`features`)
//!
//! That they are accepted is the status writer's to say. Class `istio` is not made: no ingress gateway
//! runs yet, and a class that is there promises that somebody looks after its Gateways.

mod features;

use std::pin::pin;

use api::k8s::objects::Kind;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use kube::Api;
use kube::api::{DynamicObject, PostParams};
use kube::core::ApiResource;
use serde_json::json;
use tokio::time::Instant;

use super::queue::{Queue, until};
use super::{Ground, follow, said};
use crate::translate::gateway::BUILT_IN;

const MANAGER: &str = "ambit-classes";

/// Runs while we lead.
pub(super) async fn write(ground: Ground) {
    let mut kinds = ground.kinds.clone();
    loop {
        let known = kinds.borrow_and_update().get(&Kind::GatewayClass).cloned();
        let other = async {
            while kinds.changed().await.is_ok() {
                if kinds.borrow().get(&Kind::GatewayClass) != known.as_ref() {
                    return;
                }
            }
            // The source has ended, and we are about to.
            std::future::pending().await
        };
        let Some(resource) = &known else {
            other.await;
            continue;
        };
        let all = BUILT_IN
            .iter()
            .map(|(name, controller)| keep(&ground, resource, name, controller));
        tokio::select! {
            _ = join_all(all) => {}
            () = other => {}
        }
    }
}

/// Sees to it that one class is there; does not end.
async fn keep(ground: &Ground, resource: &ApiResource, name: &str, controller: &str) {
    let watched: Api<DynamicObject> = Api::all_with(ground.connection.watching.clone(), resource);
    let kind = "gatewayclasses.gateway.networking.k8s.io";
    let mut versions = pin!(follow::object(watched, name, &ground.health, kind));
    let mut queue = Queue::default();
    let mut features = features::Features::default();
    loop {
        let now = Instant::now();
        if queue.take(now).is_some() {
            match create(ground, resource, name, controller).await {
                Ok(()) => queue.done(&()),
                Err(error) => {
                    ground.metrics.wrote("gatewayclass", false);
                    let error = said(&error);
                    tracing::warn!(name, error, "GatewayClass not created; tried again");
                    queue.failed(&(), now);
                }
            }
        }
        features.tell(ground, resource, name).await;
        tokio::select! {
            Some(version) = versions.next() => match version {
                None => {
                    queue.add((), Instant::now());
                    features.gone();
                }
                Some(class) => {
                    queue.forget(&());
                    features.hear(&class);
                }
            },
            () = until(queue.due()) => {}
            () = until(features.due()) => {}
        }
    }
}

/// The API takes 64 bytes.
const DESCRIPTION: &str = "Gateways of this class are looked after by Ambit";

async fn create(
    ground: &Ground,
    resource: &ApiResource,
    name: &str,
    controller: &str,
) -> Result<(), kube::Error> {
    let mut class = DynamicObject::new(name, resource);
    class.data = json!({"spec": {
        "controllerName": controller,
        "description": DESCRIPTION,
    }});
    let ours = PostParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PostParams::default()
    };
    let all: Api<DynamicObject> = Api::all_with(ground.connection.client.clone(), resource);
    match all.create(&ours, &class).await {
        Ok(_) => {
            ground.metrics.wrote("gatewayclass", true);
            tracing::info!(name, "GatewayClass created");
            Ok(())
        }
        // Somebody was faster; the watch will tell.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error),
    }
}
