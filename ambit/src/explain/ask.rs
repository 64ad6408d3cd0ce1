//! The questions: each to the proxy that decides about it, and what came of it.

use serde::Serialize;
use serde_json::Value;

use super::Explain;
use super::pods::{self, Caller};
use crate::live::own::Own;
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
    /// The proxy that a pod brings itself, `namespace/name`, if it can be asked; if not, that is noted.
    fn brought(&mut self, proxies: &Proxies, pod: &str, own: Own) -> Option<Proxy> {
        match own {
            Own::Runs => {
                let (namespace, name) = pod.split_once('/')?;
                proxies.own_of(namespace, name)
            }
            Own::Rests(why) => {
                self.unreached.push(format!(
                    "ztunnel in pod {pod}, which brings its own: {why}; until it runs, all that would pass it is refused"
                ));
                None
            }
        }
    }

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
    let own = caller.as_ref().and_then(|it| Some((&*it.name, it.own?)));
    let own = own.and_then(|(pod, own)| asked.brought(proxies, pod, own));
    leaving(&mut asked, proxies, caller, own.as_ref()).await?;
    let Some(left) = &asked.leaving else {
        return Ok(asked);
    };
    let mut next = Next::of(&left.answer, &asked.source);
    if let Some(Next::Waypoint(through)) = next {
        waypoint(&mut asked, proxies, what, &through).await;
        next = through.behind(asked.waypoint.as_ref(), asked.leaving.as_ref());
    }
    if let Some(Next::Pod(pod)) = next {
        let own = before(&mut asked, proxies, &pod).await;
        arriving(&mut asked, proxies, &pod, own.as_ref()).await;
    }
    Ok(asked)
}

/// The proxy that the pod at the end of the way brings itself, if it does.
async fn before(asked: &mut Asked, proxies: &Proxies, called: &Called) -> Option<Proxy> {
    match pods::called(proxies.cluster.as_ref()?, &called.uid, &called.at).await {
        Ok(found) => {
            let (pod, own) = found?;
            asked.brought(proxies, &pod, own)
        }
        Err(error) => {
            let why = crate::cluster::innermost(&error);
            asked.unreached.push(format!(
                "the pod {}: {why} (whether it brings its own proxy is not known)",
                called.uid
            ));
            None
        }
    }
}

/// Asks the ztunnel of the source, its `own` or that of its node, and if that cannot be found, any.
async fn leaving(
    asked: &mut Asked,
    proxies: &Proxies,
    caller: Option<Caller>,
    own: Option<&Proxy>,
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
    let mut refusal = None;
    let nearest = proxies.nearest(own, node);
    for proxy in nearest {
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
                let missing = if own.is_some() || !node.is_empty() {
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
        (None, None) if asked.unreached.is_empty() => anyhow::bail!(proxies.nobody()),
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
    pub(super) uid: String,
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
            uid: text(&workload["uid"]),
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
            uid: text(&endpoint["uid"]),
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

/// Asks the ztunnel that stands before the pod, its `own` or that of its node, and if that is not to be had, any, which knows
/// the same policies but does not decide.
async fn arriving(asked: &mut Asked, proxies: &Proxies, called: &Called, own: Option<&Proxy>) {
    let query = format!(
        "/explain?src={}&dst={}&side=destination{}{}",
        encoded(&called.source),
        encoded(&called.at),
        if called.by_waypoint { "&by=tunnel" } else { "" },
        asked.spoken()
    );
    for proxy in proxies.nearest(own, &called.node) {
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;
    use crate::cluster::Access;
    use crate::live::Reach;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        access: Access,
        #[command(flatten)]
        reach: Reach,
    }

    /// A proxy by this name that has one answer to whatever it is asked, as it is told of to `ambit`.
    async fn answering(name: &str, answer: Value) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let told = format!("--proxy={name}={}", listener.local_addr().unwrap());
        let body = answer.to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut question = [0; 4096];
                let _ = stream.read(&mut question).await;
                let _ = stream.write_all((head.clone() + &body).as_bytes()).await;
            }
        });
        told
    }

    /// One that has gone. Its port stays its own: nobody else who asks for one is given it.
    fn gone(name: &str) -> String {
        let socket = Box::leak(Box::new(TcpSocket::new_v4().unwrap()));
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        format!("--proxy={name}={}", socket.local_addr().unwrap())
    }

    async fn proxies(told: &[&str]) -> Proxies {
        let line = Line::parse_from([&["ambit"][..], told].concat());
        line.reach.proxies(&line.access).await.unwrap()
    }

    async fn one(told: &str) -> Proxy {
        proxies(&[told]).await.ztunnels.remove(0)
    }

    fn caller(own: Own) -> Option<Caller> {
        Some(Caller {
            name: "shop/own".into(),
            node: "a".into(),
            own: Some(own),
            kept_out: Vec::new(),
        })
    }

    fn called() -> Called {
        Called {
            uid: "c//Pod/shop/own".into(),
            source: "10.0.0.1".into(),
            by_waypoint: false,
            at: "10.0.0.9:80".into(),
            node: "a".into(),
        }
    }

    #[tokio::test]
    async fn a_pod_that_brings_its_own_proxy_is_decided_about_by_that_and_not_by_its_nodes() {
        let said = |here| json!({ "source": { "here": here }, "destination": { "here": here } });
        let own = one(&answering("own", said(true)).await).await;
        let nodes = proxies(&[&answering("a", said(false)).await]).await;
        let mut asked = Asked::default();
        leaving(&mut asked, &nodes, caller(Own::Runs), Some(&own))
            .await
            .unwrap();
        arriving(&mut asked, &nodes, &called(), Some(&own)).await;
        for heard in [asked.leaving, asked.arriving] {
            let heard = heard.unwrap();
            assert_eq!((&*heard.proxy, heard.decides), ("own", true));
        }
        assert!(asked.unreached.is_empty(), "{:?}", asked.unreached);
    }

    #[tokio::test]
    async fn if_it_cannot_be_asked_another_stands_in_and_that_is_said() {
        let said = json!({ "source": { "here": false }, "destination": { "here": false } });
        let own = one(&gone("own")).await;
        let nodes = proxies(&[&answering("a", said).await]).await;
        let mut asked = Asked::default();
        leaving(&mut asked, &nodes, caller(Own::Runs), Some(&own))
            .await
            .unwrap();
        arriving(&mut asked, &nodes, &called(), Some(&own)).await;
        assert_eq!(asked.unreached.len(), 2, "{:?}", asked.unreached);
        for (words, missing) in asked
            .unreached
            .iter()
            .zip(["leaves", "the destination's end"])
        {
            assert!(
                words.starts_with("own: ") && words.contains(missing),
                "{words}"
            );
        }
        for heard in [asked.leaving, asked.arriving] {
            let heard = heard.unwrap();
            assert_eq!((&*heard.proxy, heard.decides), ("a", false));
        }
    }

    #[tokio::test]
    async fn one_that_does_not_run_is_named_with_what_becomes_of_its_pods_connections() {
        let nodes = proxies(&[&gone("a")]).await;
        let mut asked = Asked::default();
        let rests = Own::Rests("it has not started");
        assert!(asked.brought(&nodes, "shop/own", rests).is_none());
        let words = &asked.unreached[0];
        assert!(
            words.contains("shop/own")
                && words.contains("has not started")
                && words.contains("refused"),
            "{words}"
        );
    }
}
