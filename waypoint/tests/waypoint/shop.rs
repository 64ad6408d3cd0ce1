//! A shop behind a waypoint: a client on one node, apps on the other, the waypoint between.

use std::fs::File;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::{Builder, Lab, Pod, Service, Waypoint};
use tokio::runtime::Runtime;

use super::app::{App, One};

/// Everything there is.
pub(crate) struct Shop<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) runtime: Runtime,
    pub(crate) waypoint: Waypoint,
    pub(crate) client: Pod,
    pub(crate) apps: Vec<Pod>,
    pub(crate) web: Service,
    _served: Vec<App>,
}

/// Runs `test` in a shop of its own: service `shop/web` (http 80, grpc 90, raw 99 of which nothing is said, tcp 70),
/// two apps on port 8080, a client.
pub(crate) fn in_shop(test: impl FnOnce(&Shop<'_>) -> Result<()>) {
    in_shop_of(Lab::builder(), test);
}

/// The same in another lab.
pub(crate) fn in_shop_of(lab: Builder, test: impl FnOnce(&Shop<'_>) -> Result<()>) {
    let _turn = turn();
    let lab = lab.start().unwrap_or_else(|error| panic!("{error:#}"));
    let ran = Shop::open(&lab).and_then(|shop| test(&shop));
    if let Err(error) = ran {
        // The panic keeps the logs.
        panic!("{error:?}\nlogs: {}", lab.dir().display());
    }
    lab.stop().unwrap_or_else(|error| panic!("{error:#}"));
}

impl<'a> Shop<'a> {
    fn open(lab: &'a Lab) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        lab.namespace("shop").behind("way")?;
        let waypoint = lab.waypoint("shop/way", 0)?;
        let client = lab
            .pod("shop/client")
            .node(1)
            .service_account("client")
            .start()?;
        let mut apps = Vec::new();
        let mut served = Vec::new();
        for name in ["one", "two"] {
            let pod = lab.pod(&format!("shop/{name}")).node(0);
            let pod = pod.service_account("web").label("app", "web").start()?;
            served.push(App::start(&runtime, &pod, 8080)?);
            apps.push(pod);
        }
        let web = lab.service_of(
            "shop/web",
            &[
                ("http", 80, 8080),
                ("grpc", 90, 8080),
                ("tcp", 70, 7070),
                ("raw", 99, 8080),
            ],
        )?;
        lab.until_all_dumps("the service behind its waypoint", |dump| {
            let services = dump["services"].as_array();
            services.is_some_and(|all| {
                all.iter().any(|service| {
                    service["hostname"] == web.host.as_str() && !service["waypoint"].is_null()
                })
            })
        })?;
        let shop = Self {
            lab,
            runtime,
            waypoint,
            client,
            apps,
            web,
            _served: served,
        };
        shop.until("the waypoint to serve it", |shop| {
            let got = shop.runtime.block_on(shop.get("/"));
            got.is_ok_and(|heard| heard.status == 200)
        })?;
        Ok(shop)
    }

    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        self.web.at(port)
    }

    /// One GET on a connection of its own.
    pub(crate) async fn get(&self, path: &str) -> Result<super::app::Heard> {
        One::to(&self.client, self.at(80)).await?.get(path).await
    }

    /// How often somebody was asked about requests with that outcome.
    pub(crate) fn asked(&self, kind: &str, provider: &str, outcome: &str) -> Result<f64> {
        let labels = [("kind", kind), ("provider", provider), ("outcome", outcome)];
        Ok(self
            .waypoint
            .pod()
            .metrics()?
            .sum("ambit_asked_total", &labels))
    }

    /// Each of these was asked at least once with that outcome, and took some time. It may be counted after the answer.
    pub(crate) fn each_asked(&self, kind: &str, all: &[(&str, &str)]) -> Result<()> {
        for (provider, outcome) in all {
            let counts = |shop: &Self| -> Result<(f64, f64, f64)> {
                let metrics = shop.waypoint.pod().metrics()?;
                let labels = [("kind", kind), ("provider", *provider)];
                let so = [
                    ("kind", kind),
                    ("provider", *provider),
                    ("outcome", *outcome),
                ];
                let took = "ambit_asked_duration_milliseconds_count";
                Ok((
                    metrics.sum("ambit_asked_total", &so),
                    metrics.sum(took, &labels),
                    metrics.sum("ambit_asked_total", &labels),
                ))
            };
            let what = format!("{kind} {provider} {outcome}, and the time of each");
            let counted = self.until(&what, |shop| {
                counts(shop).is_ok_and(|(so, took, all)| so >= 1.0 && (took - all).abs() < 0.5)
            });
            counted.with_context(|| format!("so often, with times, of all: {:?}", counts(self)))?;
        }
        Ok(())
    }

    /// Waits until something holds.
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) -> Result<()> {
        let begun = Instant::now();
        while !holds(self) {
            if begun.elapsed() > Duration::from_secs(60) {
                bail!("waited in vain for {what}");
            }
            #[allow(clippy::disallowed_methods)] // a test's own thread
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Applies YAML and waits until `path` is answered with `status`.
    pub(crate) fn apply_until(
        &self,
        name: &str,
        yaml: &str,
        path: &str,
        status: u16,
    ) -> Result<()> {
        self.lab.apply_yaml(name, yaml)?;
        self.until(&format!("{name}: {path} to be answered {status}"), |shop| {
            let got = shop.runtime.block_on(shop.get(path));
            got.is_ok_and(|heard| heard.status == status)
        })
    }
}

/// A lock between all test threads and all test programs of this machine: two cores carry only one lab well.
pub(crate) fn turn() -> File {
    let lock = File::create("/run/ambit-lab-tests.lock").expect("tests of the lab run as root");
    lock.lock().expect("a lock file");
    lock
}
