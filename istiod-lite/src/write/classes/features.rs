//! `status.supportedFeatures` of the class of waypoints: from it people and Gateway API's conformance suite learn what
//! they can do.
//!
//! It is applied apart from all else that is said there, because not every cluster takes it: older definitions have no
//! such field, or one of another form. Who does not take it is left alone for an hour, so that a definition that is
//! brought up to date is found, and until then nothing of the rest of the status fails because of it.

use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::queue::Queue;
use super::super::{Ground, said};
use crate::status::gateway::FEATURES;
use crate::translate::gateway::MESH_CONTROLLER;

const MANAGER: &str = "ambit-features";
const REST: Duration = Duration::from_secs(3600);

/// What is still to be said of one class.
#[derive(Default)]
pub(super) struct Features {
    queue: Queue<()>,
    /// It was not taken: not again before.
    rests: Option<Instant>,
}

/// What the API server made of it.
enum Answer {
    Taken,
    /// The definition has no such field, or another form of it.
    Unknown,
}

impl Features {
    /// The class as it is now.
    pub(super) fn hear(&mut self, class: &DynamicObject) {
        let ours = class.data["spec"]["controllerName"] == MESH_CONTROLLER;
        let now = Instant::now();
        if ours && !says(class) && self.rests.is_none_or(|it| it <= now) {
            self.queue.add((), now);
        } else {
            self.queue.forget(&());
        }
    }

    /// There is no such class.
    pub(super) fn gone(&mut self) {
        self.queue.forget(&());
    }

    /// When there is something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.queue.due()
    }

    /// Says it, if it is time to.
    pub(super) async fn tell(&mut self, ground: &Ground, resource: &ApiResource, name: &str) {
        let now = Instant::now();
        if self.queue.take(now).is_none() {
            return;
        }
        match apply(ground, resource, name).await {
            Ok(Answer::Taken) => {
                ground.metrics.wrote("gatewayclass", true);
                self.queue.done(&());
            }
            Ok(Answer::Unknown) => {
                tracing::info!(
                    name,
                    "GatewayClass: this cluster's definition has no place for supportedFeatures"
                );
                self.rests = Some(now + REST);
                self.queue.done(&());
            }
            Err(error) => {
                ground.metrics.wrote("gatewayclass", false);
                let error = said(&error);
                tracing::warn!(name, error, "supportedFeatures not written; tried again");
                self.queue.failed(&(), now);
            }
        }
    }
}

async fn apply(ground: &Ground, resource: &ApiResource, name: &str) -> Result<Answer, kube::Error> {
    let all: Api<DynamicObject> = Api::all_with(ground.connection.client.clone(), resource);
    let status = json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "status": {"supportedFeatures": written()},
    });
    let ours = PatchParams::apply(MANAGER).force();
    match all.patch_status(name, &ours, &Patch::Apply(&status)).await {
        Ok(class) if says(&class) => Ok(Answer::Taken),
        // It was pruned.
        Ok(_) => Ok(Answer::Unknown),
        Err(kube::Error::Api(refused)) if is_about_form(refused.code, &refused.message) => {
            Ok(Answer::Unknown)
        }
        Err(error) => Err(error),
    }
}

/// A field that is not in the schema is an error of the server's own (500) where something is applied.
fn is_about_form(code: u16, message: &str) -> bool {
    matches!(code, 400 | 422) || code == 500 && message.contains("supportedFeatures")
}

fn written() -> Value {
    FEATURES.iter().map(|name| json!({"name": name})).collect()
}

fn says(class: &DynamicObject) -> bool {
    class.data["status"]["supportedFeatures"] == written()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_conformance_is_run_with() {
        let run = include_str!("../../../../e2e/conformance/run");
        let lines = run
            .lines()
            .filter_map(|it| it.trim().strip_prefix("features"));
        let lists = lines.filter_map(|it| it.strip_prefix("+=,").or(it.strip_prefix('=')));
        let mut asked: Vec<&str> = lists.flat_map(|it| it.split(',')).collect();
        asked.sort_unstable();
        assert_eq!(asked, FEATURES);
    }

    #[test]
    fn a_field_that_a_definition_lacks_is_told_from_a_server_that_fails() {
        let missing = "failed to create typed patch object: .status.supportedFeatures: field not declared in schema";
        for (code, message, expected) in [
            (500, missing, true),
            (422, "Invalid value", true),
            (500, "etcdserver: request timed out", false),
            (403, "forbidden: supportedFeatures", false),
        ] {
            assert_eq!(is_about_form(code, message), expected, "{code} {message}");
        }
    }
}
