//! The features of `features/` without a cluster: the same YAML in the configuration directory, the same questions, the same answers.
//! `FEATURES=word` runs those whose name contains it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // a test fails so, and says what it did

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use e2e::feature::{
    CLIENTS, ELSEWHERE, Feature, Heard, PORTS, PROVIDERS, SERVERS, SERVICES, SHOP, all_counted,
};
use lab::{Lab, Pod, Waypoint, wait};
use serde_json::Value;

/// What runs in the pods.
const PROGRAM: &str = env!("CARGO_BIN_EXE_e2e-app");
/// On a machine busy with debug builds.
const SOON: Duration = Duration::from_secs(60);

#[test]
fn every_feature_does_in_a_directory_what_it_does_on_a_cluster() {
    let _turn = turn();
    let features = here().join("features");
    let providers = features.join("mesh/config.yaml").display().to_string();
    let lab = Lab::builder().istiod_env("MESH_CONFIG", &providers);
    // As in `cluster/kind.yaml`.
    let lab = lab.places(&["here/one", "here/two"]).start();
    let lab = lab.unwrap_or_else(|error| panic!("{error:#}"));
    let ran = Town::build(&lab).and_then(|town| town.run(&features));
    if let Err(error) = ran {
        // The panic keeps the logs.
        panic!("{error:#}\nlogs: {}", lab.dir().display());
    }
    lab.stop().unwrap_or_else(|error| panic!("{error:#}"));
}

fn here() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// What every feature finds there.
struct Town<'a> {
    lab: &'a Lab,
    waypoint: Waypoint,
    clients: Vec<Pod>,
}

impl<'a> Town<'a> {
    fn build(lab: &'a Lab) -> Result<Self> {
        for place in [ELSEWHERE, PROVIDERS] {
            lab.namespace(place).ambient()?;
        }
        lab.namespace(SHOP).behind("waypoint")?;
        let waypoint = lab.waypoint("shop/waypoint", 0)?;
        for (number, [place, name, app, version]) in SERVERS.into_iter().enumerate() {
            let pod = lab.pod(&format!("{place}/{name}")).node(number % 2);
            let pod = pod.service_account(app).label("app", app);
            let pod = pod.label("version", version).start()?;
            let server = pod.spawn("serve", [PROGRAM, "serve", "--name", name])?;
            pod.until_listening(&server, 8080)?;
            pod.until_listening(&server, 9001)?;
        }
        for (place, name, label) in SERVICES {
            lab.service_for(&format!("{place}/{name}"), label, &PORTS)?;
        }
        let mut clients = Vec::new();
        for [place, name] in CLIENTS {
            let pod = lab.pod(&format!("{place}/{name}")).node(1);
            clients.push(pod.service_account(name).start()?);
        }
        Ok(Self {
            lab,
            waypoint,
            clients,
        })
    }

    fn run(&self, features: &Path) -> Result<()> {
        let word = std::env::var("FEATURES").unwrap_or_default();
        let (mut proven, mut failed) = (Vec::new(), Vec::new());
        for feature in Feature::all(features)? {
            if !feature.name.contains(&word) {
                continue;
            }
            let began = Instant::now();
            match self.proves(&feature) {
                Ok(()) => {
                    println!("{} ({:.1} s)", feature.name, began.elapsed().as_secs_f32());
                    proven.push(feature);
                }
                Err(error) => failed.push(format!("{}: {error:#}", feature.name)),
            }
        }
        if !failed.is_empty() {
            bail!("{}", failed.join("\n\n"));
        }
        all_counted(&proven, &self.waypoint.pod().metrics()?)
    }

    fn proves(&self, feature: &Feature) -> Result<()> {
        if !feature.objects.is_empty() && self.holds(feature).is_ok() {
            bail!("it holds before anything is applied");
        }
        self.lab.apply_yaml(&feature.name, &feature.text())?;
        let held = wait::until(&feature.name, SOON, || {
            Ok(
                match self.holds(feature).and_then(|()| self.said(feature)) {
                    Ok(()) => wait::Probe::Ready(()),
                    Err(error) => wait::Probe::NotYet(format!("{error:#}")),
                },
            )
        });
        self.lab.delete_yaml(&feature.name)?;
        held
    }

    fn holds(&self, feature: &Feature) -> Result<()> {
        let mut heard: Vec<Vec<Heard>> = Vec::new();
        for (client, asks) in feature.clients() {
            let questions = serde_json::to_string(&asks)?;
            let client = self.clients.iter().find(|pod| pod.name() == client);
            let client = client.context("no such client")?;
            let words = [PROGRAM, "ask", "--namespace", SHOP, &questions];
            let told = client.exec(words)?.success()?;
            heard.extend(serde_json::from_str::<Vec<Vec<Heard>>>(&told)?);
        }
        feature.judge(&heard, &self.waypoint.pod().access_log().records())?;
        if feature.counts() {
            feature.counted(&self.waypoint.pod().metrics()?)?;
        }
        Ok(())
    }

    /// What the control plane wrote into the mirror, as it would into the API server.
    fn said(&self, feature: &Feature) -> Result<()> {
        for object in &feature.objects {
            let text = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or("");
            let file = self.lab.dir().join(format!(
                "config/.status/{}/{}/{}.yaml",
                text("/kind"),
                text("/metadata/namespace"),
                text("/metadata/name")
            ));
            let mirrored = fs::read_to_string(&file).unwrap_or_default();
            let mirrored: Value = serde_saphyr::from_str(&mirrored).unwrap_or_default();
            feature.accepted(object, &mirrored["status"])?;
        }
        Ok(())
    }
}

/// A lock between all test threads and all test programs of this machine: two cores carry only one lab well.
fn turn() -> File {
    let lock = File::create("/run/ambit-lab-tests.lock").expect("tests of the lab run as root");
    lock.lock().expect("a lock file");
    lock
}
