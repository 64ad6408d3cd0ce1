//! The questions: each to the proxy that decides about it, and what came of it.

use serde::Serialize;
use serde_json::Value;

use super::Explain;
use super::pods::{self, Caller};
use crate::live::{Proxies, Proxy, encoded};
use crate::proxy::Trouble;

/// All that was heard.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Asked {
    /// As it was put.
    pub(super) source: String,
    pub(super) destination: String,
    /// It is about datagrams.
    pub(super) udp: bool,
    /// What the source's ztunnel says, or, where that cannot be asked, what another one would do in its place.
    pub(super) leaving: Option<Heard>,
    pub(super) waypoint: Option<Heard>,
    pub(super) arriving: Option<Heard>,
    /// What keeps some of the caller's traffic from the mesh, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) kept_out: Vec<String>,
    /// Who could not be asked, and what is not known because of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) unreached: Vec<String>,
}

impl Asked {
    /// What is added to a question for a ztunnel. A connection is what it takes for granted, also one of an older version.
    fn spoken(&self) -> &'static str {
        if self.udp { "&protocol=udp" } else { "" }
    }
}

/// One proxy's part of an answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Heard {
    pub(super) proxy: String,
    /// It is the one that decides.
    pub(super) decides: bool,
    pub(super) answer: Value,
}

pub(super) async fn ask(what: &Explain, proxies: &Proxies) -> anyhow::Result<Asked> {
    let mut asked = Asked {
        source: what.source.clone(),
        destination: what.destination.clone(),
        udp: what.udp,
        ..Asked::default()
    };
    let is_bare = !what.source.contains('/') && what.source.parse::<std::net::IpAddr>().is_err();
    if is_bare {
        asked.source = format!("{}/{}", what.namespace, what.source);
    }
    let caller = match &proxies.cluster {
        Some(client) => pods::caller(client, &asked.source).await?,
        None => None,
    };
    leaving(&mut asked, proxies, caller).await?;
    let Some(left) = &asked.leaving else {
        return Ok(asked);
    };
    let mut next = Next::of(&left.answer, &asked.source);
    if let Some(Next::Waypoint(through)) = next {
        waypoint(&mut asked, proxies, what, &through).await;
        next = through.behind(asked.waypoint.as_ref(), asked.leaving.as_ref());
    }
    if let Some(Next::Pod(pod)) = next {
        arriving(&mut asked, proxies, &pod).await;
    }
    Ok(asked)
}

/// Asks the ztunnel of the source, and if that cannot be found, any.
async fn leaving(
    asked: &mut Asked,
    proxies: &Proxies,
    caller: Option<Caller>,
) -> anyhow::Result<()> {
    let node = caller.as_ref().map_or("", |caller| &*caller.node);
    let source = caller
        .as_ref()
        .map_or(&*asked.source, |caller| &*caller.name);
    let query = format!(
        "/explain?src={}&dst={}&side=source{}",
        encoded(source),
        encoded(&asked.destination),
        asked.spoken()
    );
    let of_node = proxies.of_node(node);
    let others = proxies.ztunnels.iter();
    let others = others.filter(|it| !of_node.iter().any(|own| own.name == it.name));
    let all: Vec<&Proxy> = of_node.iter().copied().chain(others).collect();
    let mut refusal = None;
    for (at, proxy) in all.into_iter().enumerate() {
        match proxy.json(&query).await {
            Ok(mut answer) => {
                let said = answer["source"].take();
                let decides = said["here"] == true;
                let stands_in = asked.leaving.is_none();
                if decides || stands_in {
                    asked.leaving = Some(Heard {
                        proxy: proxy.name.clone(),
                        decides,
                        answer: said,
                    });
                }
                // The one that serves it, or, of a cluster, the one of its node: there is no other to wait for.
                let is_known = !node.is_empty() || proxies.cluster.is_some();
                if decides || is_known {
                    break;
                }
            }
            Err(Trouble::Says(_, words)) => {
                let words = words.lines().next().unwrap_or_default();
                refusal.get_or_insert_with(|| format!("{}: {words}", proxy.name));
            }
            Err(why) => {
                let is_own = at < of_node.len() && !node.is_empty();
                let missing = if is_own {
                    "what it does with what leaves is what another ztunnel knows"
                } else {
                    "it may be the source's"
                };
                asked
                    .unreached
                    .push(format!("{}: {why} ({missing})", proxy.name));
            }
        }
    }
    asked.kept_out = caller.map(|caller| caller.kept_out).unwrap_or_default();
    match (&asked.leaving, refusal) {
        (None, Some(why)) => anyhow::bail!("{why}"),
        (None, None) => anyhow::bail!("no ztunnel could be asked: {}", asked.unreached.join("; ")),
        (Some(_), _) => Ok(()),
    }
}

/// Who is asked next, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// The ztunnel that stands before this pod.
    Pod(Called),
    /// The waypoint that answers.
    Waypoint(Through),
}

/// A pod at the end of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Called {
    /// Who calls it.
    pub(super) source: String,
    /// It is a waypoint that calls: by a tunnel, though nothing tunnels to it.
    pub(super) by_waypoint: bool,
    pub(super) at: String,
    pub(super) node: String,
}

/// A waypoint on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Through {
    namespace: String,
    pod: String,
    address: String,
    host: String,
    port: String,
    identity: String,
    caller: String,
}

impl Next {
    /// After the source's end.
    pub(super) fn of(left: &Value, source: &str) -> Option<Self> {
        let decision = &left["decision"];
        let workload = &decision["workload"];
        if workload.is_null() || !decision["beyond"].is_null() || decision["goes"] == "refused" {
            return None;
        }
        let caller = &left["workload"];
        if !decision["waypoint"].is_null() {
            let service = left["service"].as_str().unwrap_or_default();
            let called = left["destination"].as_str().unwrap_or_default();
            return Some(Self::Waypoint(Through {
                namespace: text(&workload["namespace"]),
                pod: text(&workload["name"]),
                address: text(&workload["addresses"][0]),
                host: service
                    .split_once('/')
                    .map_or("", |(_, host)| host)
                    .to_owned(),
                port: called
                    .rsplit_once(':')
                    .map_or("", |(_, port)| port)
                    .to_owned(),
                identity: text(&caller["identity"]),
                caller: text(&caller["addresses"][0]),
            }));
        }
        let at = match decision["goes"].as_str() {
            Some("tunnel") => &decision["asksFor"],
            _ => &decision["to"],
        };
        // By its address: a ztunnel that does not follow everybody can ask for whoever has that.
        let source = match &caller["addresses"][0] {
            Value::String(address) => address.clone(),
            _ => source.to_owned(),
        };
        Some(Self::Pod(Called {
            source,
            by_waypoint: false,
            at: at.as_str()?.to_owned(),
            node: text(&workload["node"]),
        }))
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

impl Through {
    /// An endpoint of those that the waypoint, or else the source's ztunnel, would choose from.
    pub(super) fn behind(&self, heard: Option<&Heard>, left: Option<&Heard>) -> Option<Next> {
        if heard.is_some_and(|heard| refuses(&heard.answer)) {
            return None;
        }
        let known = left?.answer["endpoints"]["shown"].as_array()?;
        let eligible = || known.iter().filter(|it| it["eligible"] == true);
        let chosen = heard.and_then(|heard| {
            let used = heard.answer["endpoints"][0]["backend"]["endpoints"].as_array()?;
            let is_used = |it: &&Value| used.iter().any(|other| other["workload"] == it["uid"]);
            eligible().find(is_used)
        });
        let endpoint = chosen.or_else(|| eligible().next())?;
        let address = endpoint["address"].as_str()?;
        let port = endpoint["port"].as_u64()?;
        let at = match address.contains(':') {
            true => format!("[{address}]:{port}"),
            false => format!("{address}:{port}"),
        };
        Some(Next::Pod(Called {
            source: self.address.clone(),
            by_waypoint: true,
            at,
            node: text(&endpoint["node"]),
        }))
    }
}

/// Whether a waypoint answers the request itself, with a refusal.
pub(super) fn refuses(answer: &Value) -> bool {
    answer["answer"] == "none"
        || answer["answer"]
            .as_u64()
            .is_some_and(|status| status >= 400)
}

async fn waypoint(asked: &mut Asked, proxies: &Proxies, what: &Explain, through: &Through) {
    let Through {
        namespace,
        pod,
        host,
        port,
        identity,
        caller,
        ..
    } = through;
    if host.is_empty() {
        let why = format!(
            "waypoint {namespace}/{pod}: it is asked for a pod, of which it cannot say what it would do"
        );
        asked.unreached.push(why);
        return;
    }
    let Some(proxy) = proxies.waypoint(namespace, pod) else {
        let why = format!(
            "waypoint {namespace}/{pod}: not told of (--proxy {namespace}/{pod}=HOST:PORT of its admin port); its policies and routes are not known"
        );
        asked.unreached.push(why);
        return;
    };
    let mut query = format!(
        "/explain?host={}&port={port}&identity={}&address={}&method={}&path={}",
        encoded(host),
        encoded(identity),
        encoded(caller),
        encoded(&what.method),
        encoded(&what.path)
    );
    for header in &what.headers {
        query.push_str("&header=");
        query.push_str(&encoded(header));
    }
    match proxy.json(&query).await {
        Ok(answer) => {
            asked.waypoint = Some(Heard {
                proxy: proxy.name,
                decides: true,
                answer,
            });
        }
        Err(why) => {
            let why = format!(
                "{}: {why} (its policies and routes are not known)",
                proxy.name
            );
            asked.unreached.push(why);
        }
    }
}

/// Asks the ztunnel that stands before the pod, and if that is not to be had, any, which knows the same policies but
/// does not decide.
async fn arriving(asked: &mut Asked, proxies: &Proxies, called: &Called) {
    let query = format!(
        "/explain?src={}&dst={}&side=destination{}{}",
        encoded(&called.source),
        encoded(&called.at),
        if called.by_waypoint { "&by=tunnel" } else { "" },
        asked.spoken()
    );
    let of_node = proxies.of_node(&called.node);
    let others = proxies.ztunnels.iter();
    let others = others.filter(|it| !of_node.iter().any(|own| own.name == it.name));
    for proxy in of_node.iter().copied().chain(others) {
        match proxy.json(&query).await {
            Ok(mut answer) => {
                let said = answer["destination"].take();
                let decides = said["here"] == true;
                if decides || asked.arriving.is_none() {
                    asked.arriving = Some(Heard {
                        proxy: proxy.name.clone(),
                        decides,
                        answer: said,
                    });
                }
                let is_all = proxies.cluster.is_some()
                    || asked
                        .arriving
                        .as_ref()
                        .is_some_and(|it| it.answer["verdict"] == "unguarded");
                if decides || is_all {
                    break;
                }
            }
            Err(why) => asked.unreached.push(format!(
                "{}: {why} (what the destination's end does is what another ztunnel knows, if any)",
                proxy.name
            )),
        }
    }
}
