//! Weights and mirrors: which app answers is of chance, so what many requests come to is compared, not one by one; and each
//! copy with its body.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::draw::Draw;
use super::envoy::Front;
use super::ours::app;
use super::rules::Kind;

/// A service whose requests are shared out.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) name: String,
    kind: Kind,
    /// Weights of the first apps.
    shares: Vec<u32>,
    /// The last app gets a copy of so many in a hundred.
    pub(super) mirrored: Option<u32>,
}

/// The app that gets copies and nothing else.
pub(super) const MIRROR: usize = 2;

/// What became of all requests to a service.
#[derive(Debug, Default)]
pub(super) struct Came {
    pub(super) asked: usize,
    /// Answers by app and by what the rule says of its share.
    pub(super) answers: BTreeMap<(String, String), usize>,
    pub(super) copies: usize,
}

/// A service of that number.
pub(super) fn service(number: usize, draw: &mut Draw) -> Split {
    let kind = match number % 2 {
        0 => Kind::HttpRoute,
        _ => Kind::VirtualService,
    };
    let shares = [
        vec![1],
        vec![90, 10],
        vec![1, 1],
        vec![0, 5],
        vec![30, 0],
        vec![33, 67],
    ];
    Split {
        name: format!("w{number}"),
        kind,
        shares: draw.one(&shares),
        mirrored: draw.one(&[None, Some(0), Some(50), Some(100), Some(100)]),
    }
}

impl Split {
    /// What a user writes, and what Envoy is told.
    pub(super) fn front(&self) -> Front {
        let object = match self.kind {
            Kind::HttpRoute => self.route(),
            Kind::VirtualService => self.virtual_service(),
        };
        let shares = self.shares.iter().enumerate();
        let clusters = shares.map(|(number, weight)| {
            let header = json!({ "key": "x-share", "value": number.to_string() });
            json!({
                "name": app(number), "weight": weight,
                "response_headers_to_add": [{ "header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD" }],
            })
        });
        let clusters: Vec<Value> = clusters.collect();
        let mirrors = self.mirrored.map(|percent| {
            let fraction = json!({ "numerator": percent, "denominator": "HUNDRED" });
            json!({ "cluster": app(MIRROR), "runtime_fraction": { "default_value": fraction } })
        });
        let route = json!({ "match": { "prefix": "/" }, "route": {
            "weighted_clusters": { "clusters": clusters }, "timeout": "0s",
            "request_mirror_policies": mirrors.into_iter().collect::<Vec<_>>(),
        } });
        Front {
            name: self.name.clone(),
            objects: vec![object.to_string()],
            routes: vec![route],
            filters: Vec::new(),
        }
    }

    fn route(&self) -> Value {
        let shares = self.shares.iter().enumerate();
        let backends = shares.map(|(number, weight)| {
            let set = json!([{ "name": "x-share", "value": number.to_string() }]);
            let filter = json!({ "type": "ResponseHeaderModifier", "responseHeaderModifier": { "set": set } });
            json!({ "name": app(number), "port": 80, "weight": weight, "filters": [filter] })
        });
        let mirror = self.mirrored.map(|percent| {
            let backend = json!({ "name": app(MIRROR), "port": 80 });
            json!({ "type": "RequestMirror", "requestMirror": { "backendRef": backend, "percent": percent } })
        });
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "namespace": "shop", "name": self.name },
            "spec": {
                "parentRefs": [{ "group": "", "kind": "Service", "name": self.name, "port": 80 }],
                "rules": [{
                    "backendRefs": backends.collect::<Vec<_>>(), "filters": mirror.into_iter().collect::<Vec<_>>(),
                }],
            },
        })
    }

    fn virtual_service(&self) -> Value {
        let destination = |number: usize| json!({ "host": app(number), "port": { "number": 80 } });
        let shares = self.shares.iter().enumerate();
        let route = shares.map(|(number, weight)| {
            let set = json!({ "x-share": number.to_string() });
            json!({ "destination": destination(number), "weight": weight, "headers": { "response": { "set": set } } })
        });
        let mirror = self.mirrored.map(|percent| {
            json!({ "destination": destination(MIRROR), "percentage": { "value": percent } })
        });
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": { "namespace": "shop", "name": self.name },
            "spec": { "hosts": [self.name], "http": [{
                "route": route.collect::<Vec<_>>(), "mirrors": mirror.into_iter().collect::<Vec<_>>(),
            }] },
        })
    }

    /// Whether what came is what the rule says, as far as chance lets it.
    pub(super) fn judge(&self, who: &str, came: &Came) -> Result<()> {
        let all: u32 = self.shares.iter().sum();
        for (number, weight) in self.shares.iter().enumerate() {
            let key = (app(number), number.to_string());
            let had = came.answers.get(&key).copied().unwrap_or_default();
            let share = f64::from(*weight) / f64::from(all);
            near(
                had,
                came.asked,
                share,
                &format!("{who}: share {number}: {came:?}"),
            )?;
        }
        let told: usize = came.answers.values().sum();
        ensure!(told == came.asked, "{who}: {came:?}");
        let share = f64::from(self.mirrored.unwrap_or(0)) / 100.0;
        near(
            came.copies,
            came.asked,
            share,
            &format!("{who}: copies: {came:?}"),
        )
    }
}

/// Within five standard deviations, of which there is none where nothing is left to chance.
fn near(had: usize, of: usize, share: f64, what: &str) -> Result<()> {
    let (had, of) = (had as f64, of as f64);
    let deviation = (of * share * (1.0 - share)).sqrt();
    let right = (had - of * share).abs() <= 5.0 * deviation;
    ensure!(right, "{what}: {had} of {of}, and {share} was to be");
    Ok(())
}
