//! A lab with what is measured in it: a client and an app that speak HBONE themselves, our waypoint between them, and the peer
//! beside it where there is one. The ztunnel of the lab's node carries nothing.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use hbone::{Certificates, CertificatesConfig, Identity};
use lab::{Lab, Pod, Process, Service, Waypoint};
use tokio::runtime::Runtime;

use super::{
    APP, HBONE, app,
    ask::{Asker, Hop},
    signer::Authority,
};
use crate::process;

const DOMAIN: &str = "cluster.local";
/// For what should take a moment.
const SOON: Duration = Duration::from_secs(30);
/// How often it is looked whether something has come true.
const LOOK: Duration = Duration::from_millis(20);

/// Everything that must outlive a measurement.
pub(crate) struct Scene {
    pub(crate) runtime: Runtime,
    pub(crate) lab: Lab,
    pub(crate) asker: Asker,
    pub(crate) service: Service,
    pub(crate) waypoint: Waypoint,
    app: Pod,
    peer: Option<(Pod, Process)>,
    _signer: Authority,
}

/// A way from the client to the app.
#[derive(Clone)]
pub(crate) struct Subject {
    /// As it stands in the table.
    pub(crate) name: &'static str,
    pub(crate) hop: Hop,
    /// The process whose CPU is counted.
    pub(crate) process: Option<u32>,
}

impl Subject {
    /// CPU seconds that it has used.
    pub(crate) fn cpu(&self) -> Result<f64> {
        self.process.map_or(Ok(0.0), process::cpu_seconds)
    }
}

impl Scene {
    /// With the route and the policy of [`RULES`] in force.
    pub(crate) fn set(envoy: Option<&Path>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let signer = Authority::new()?;
        let certificates = {
            let _in = runtime.enter();
            Certificates::new(signer.clone(), CertificatesConfig::default())
        };
        let settings = signer.dir().join("mesh.yaml");
        fs::write(&settings, SETTINGS)?;
        let settings = settings.to_str().context("a path that is not UTF-8")?;
        let lab = Lab::builder().nodes(1).signer(signer.dir());
        let lab = lab.istiod_env("MESH_CONFIG", settings).start()?;
        lab.namespace("bench").behind("way")?;
        let waypoint = lab.waypoint("bench/way", 0)?;
        let client = alone(&lab, "client")?;
        let server = alone(&lab, "server")?;
        app::serve(&runtime, &server, &certificates, &identity("server")?)?;
        let service = lab.service_of("bench/server", &[("http", 80, APP)])?;
        let peer = envoy
            .map(|binary| beside(&lab, &signer, &server, binary))
            .transpose()?;
        lab.apply_yaml("rules", RULES)?;
        let scene = Self {
            asker: Asker {
                pod: client,
                identity: identity("client")?,
                certificates,
            },
            runtime,
            lab,
            service,
            waypoint,
            app: server,
            peer,
            _signer: signer,
        };
        for subject in scene.subjects()? {
            scene.until_served(&subject)?;
        }
        scene.until_denied()?;
        Ok(scene)
    }

    /// The app as it is, ours, and the peer.
    pub(crate) fn subjects(&self) -> Result<Vec<Subject>> {
        let hop = |pod: &Pod, account: &str, to| -> Result<Hop> {
            Ok(Hop {
                address: pod.at(HBONE),
                expected: identity(account)?,
                to,
            })
        };
        let (way, virtual_ip) = (self.waypoint.pod(), self.service.at(80));
        let mut subjects = vec![
            Subject {
                name: "no waypoint",
                hop: hop(&self.app, "server", self.app.at(APP))?,
                process: None,
            },
            Subject {
                name: "ours",
                hop: hop(way.pod(), "way", virtual_ip)?,
                process: Some(id(&way.component().process()?)),
            },
        ];
        if let Some((pod, process)) = &self.peer {
            subjects.push(Subject {
                name: "peer",
                hop: hop(pod, "envoy", virtual_ip)?,
                process: Some(id(process)),
            });
        }
        Ok(subjects)
    }

    /// Our waypoint.
    pub(crate) fn ours(&self) -> Result<Subject> {
        let mut subjects = self.subjects()?.into_iter();
        subjects
            .find(|subject| subject.name == "ours")
            .context("ours is a subject")
    }

    /// The same for another address that it fronts.
    pub(crate) fn ours_at(&self, to: std::net::SocketAddr) -> Result<Subject> {
        let mut ours = self.ours()?;
        ours.hop.to = to;
        Ok(ours)
    }

    pub(crate) fn until_served(&self, subject: &Subject) -> Result<()> {
        self.until_answered(subject, PATH, 200, SOON)
    }

    fn until_denied(&self) -> Result<()> {
        self.until_answered(&self.ours()?, "/bench/denied", 403, SOON)
    }

    /// Asks until it is answered in that way.
    pub(crate) fn until_answered(
        &self,
        subject: &Subject,
        path: &str,
        status: u16,
        within: Duration,
    ) -> Result<()> {
        let asking = async {
            loop {
                let heard = match self.asker.alone(&subject.hop).await {
                    Ok(mut talk) => talk.get(path).await,
                    Err(error) => Err(error),
                };
                if heard.as_ref().is_ok_and(|heard| heard.status == status) {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let asked = async { tokio::time::timeout(within, asking).await };
        if self.runtime.block_on(asked).is_err() {
            self.lab.keep_logs();
            bail!("{}: {path} is never answered {status}", subject.name);
        }
        Ok(())
    }

    /// Removes everything.
    pub(crate) fn strike(self) -> Result<()> {
        self.runtime.shutdown_background();
        self.lab.stop()
    }
}

/// A pod that speaks HBONE for itself.
fn alone(lab: &Lab, name: &str) -> Result<Pod> {
    lab.pod(&format!("bench/{name}"))
        .node(0)
        .service_account(name)
        .label("app", name)
        .label("istio.io/dataplane-mode", "none")
        .label("networking.istio.io/tunnel", "http")
        .without_waiting()
        .start()
}

/// Envoy, in a pod of its own.
fn beside(lab: &Lab, signer: &Authority, server: &Pod, binary: &Path) -> Result<(Pod, Process)> {
    let pod = alone(lab, "envoy")?;
    signer.files(&identity("envoy")?, pod.dir())?;
    let config = include_str!("envoy.yaml").replace("SERVER", &server.ip().to_string());
    fs::write(pod.dir().join("envoy.yaml"), config)?;
    let binary = binary.to_str().context("the peer's path is not UTF-8")?;
    let words = [binary, "-c", "envoy.yaml", "--disable-hot-restart"];
    let words = words
        .into_iter()
        .chain(["--concurrency", "2", "-l", "warn"]);
    let process = pod.spawn("envoy", words)?;
    pod.until_listening(&process, HBONE)?;
    Ok((pod, process))
}

pub(crate) fn identity(account: &str) -> Result<Identity> {
    Ok(Identity::new(DOMAIN, "bench", account)?)
}

fn id(process: &Process) -> u32 {
    process.pid().unsigned_abs()
}

/// What the client asks for.
pub(crate) const PATH: &str = "/bench";

/// Of the mesh: a collector of spans, at which there is nobody. It is used where [`TRACED`] is applied.
const SETTINGS: &str = "
extensionProviders:
- name: collector
  opentelemetry: { service: server.bench.svc.cluster.local, port: 4317 }
";

/// All requests are looked at for whether they are traced, and none is.
pub(crate) const TRACED: &str = "
apiVersion: telemetry.istio.io/v1
kind: Telemetry
metadata: { namespace: bench, name: traced }
spec:
  tracing: [{ providers: [{ name: collector }], randomSamplingPercentage: 0 }]
";

/// What ours has to do beside the peer: a route, and policies about who the client is, what it asks for and how.
const RULES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: { namespace: bench, name: server }
spec:
  parentRefs: [{ group: '', kind: Service, name: server, port: 80 }]
  rules:
  - matches: [{ path: { type: PathPrefix, value: /bench } }]
    backendRefs: [{ name: server, port: 80 }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: bench, name: allowed }
spec:
  targetRefs: [{ group: '', kind: Service, name: server }]
  action: ALLOW
  rules:
  - from: [{ source: { principals: ['cluster.local/ns/bench/sa/client'] } }]
    to: [{ operation: { methods: [GET, POST], paths: ['/bench*', '/route*'] } }]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: bench, name: denied }
spec:
  targetRefs: [{ group: '', kind: Service, name: server }]
  action: DENY
  rules:
  - to: [{ operation: { paths: ['/bench/denied*'] } }]
  - when: [{ key: 'request.headers[x-denied]', values: ['*'] }]
";
