//! AZ-6, AZ-7: peers with a certificate of the mesh at the waypoint's own port. What a CONNECT is for must be fronted here,
//! and that decides: neither a host within the tunnel nor what a peer says of its client changes who is asked, and who asks.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Pod};
use tokio::net::TcpStream;

use super::authority::Ca;
use super::raw::{self, DATA, HEADERS, RST_STREAM, Raw, frame};
use crate::shop::{Shop, in_shop_of};

#[test]
fn a_peer_reaches_what_is_fronted_here_as_who_it_is_and_nothing_else() {
    let ca = Ca::new().unwrap();
    in_shop_of(Lab::builder().signer(ca.dir()), |shop| {
        let lab = shop.lab;
        lab.namespace("out").plain()?;
        lab.namespace("bare").ambient()?;
        let mallory = lab.pod("out/mallory").node(1).start()?;
        // In the mesh, behind no waypoint.
        let bare = lab.pod("bare/app").node(0).label("app", "bare").start()?;
        let other = lab.service_for("bare/other", ("app", "bare"), &[("http", 80, 8080)])?;
        shop.until("the other service to be known", |shop| {
            let dump = shop.waypoint.pod().config_dump();
            dump.is_ok_and(|_| true)
        })?;
        let door = Door {
            shop,
            ca: &ca,
            from: &mallory,
        };
        shop.runtime.block_on(async {
            let web = shop.at(80).to_string();
            let host = format!("{}:80", shop.web.host);
            for to in [web.as_str(), host.as_str()] {
                let heard = door.asks(
                    "mallory",
                    to,
                    &[],
                    "GET / HTTP/1.1\r\nhost: web.shop\r\n\r\n",
                );
                let heard = heard.await.with_context(|| to.to_owned())?;
                ensure!(heard.contains(" 200 OK"), "{to}: {heard}");
            }
            // Not ours: another's service, pods by their own address, ourselves, and what is nothing.
            let own = shop.waypoint.pod().pod();
            let refused = [
                other.at(80).to_string(),
                format!("{}:80", other.host),
                bare.at(8080).to_string(),
                shop.apps[0].at(8080).to_string(),
                own.at(15008).to_string(),
                own.at(15020).to_string(),
                "127.0.0.1:15000".to_owned(),
                "[::1]:15000".to_owned(),
                "169.254.169.254:80".to_owned(),
                format!("{}:81", shop.at(80).ip()),
                format!("*.{}:80", shop.web.host),
                "*:80".to_owned(),
                "web:80".to_owned(),
                format!("{}.:80", shop.web.host),
            ];
            // Each after a while, in which we might have been told of it.
            let door = &door;
            let refused = refused.into_iter().map(|to| async move {
                let status = door.connects("mallory", &to, &[]).await;
                let status = status.with_context(|| to.clone())?;
                ensure!(
                    status.is_none_or(|status| status != 200),
                    "{to}: {status:?}"
                );
                Ok(())
            });
            futures_util::future::try_join_all(refused).await?;
            anyhow::Ok(())
        })?;
        hosts(shop, &door).context("a host within the tunnel")?;
        words(shop, &door).context("words of a peer")
    });
}

/// For one step of a peer.
const PATIENCE: Duration = Duration::from_secs(60);

struct Door<'a> {
    shop: &'a Shop<'a>,
    ca: &'a Ca,
    from: &'a Pod,
}

impl Door<'_> {
    async fn peer(&self, account: &str) -> Result<Raw> {
        let soon = SystemTime::now() + Duration::from_secs(3600);
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        let badge = raw::badge(self.ca, &[&identity], soon);
        let socket = self
            .from
            .connect(self.shop.waypoint.pod().pod().at(15008))?;
        socket.set_nonblocking(true)?;
        let socket = TcpStream::from_std(socket)?;
        let mut peer = tokio::time::timeout(
            PATIENCE,
            Raw::connect(socket, raw::tls_client(Some(badge), &["h2"])),
        )
        .await
        .context("TLS")??;
        peer.hello().await?;
        Ok(peer)
    }

    /// The status of a CONNECT; none if its stream was reset.
    async fn connects(
        &self,
        account: &str,
        to: &str,
        said: &[(&str, &str)],
    ) -> Result<Option<u16>> {
        let mut peer = self.peer(account).await?;
        Self::connect(&mut peer, to, said).await
    }

    async fn connect(peer: &mut Raw, to: &str, said: &[(&str, &str)]) -> Result<Option<u16>> {
        let head = [&[(":method", "CONNECT"), (":authority", to)], said].concat();
        peer.request(1, &head).await?;
        let answer = peer.until("an answer", |frame| {
            matches!(frame.kind, HEADERS | RST_STREAM) && frame.stream == 1
        });
        let answer = answer.await;
        Ok((answer.kind == HEADERS).then(|| answer.status()))
    }

    /// What is answered to something that is said within a tunnel.
    async fn asks(
        &self,
        account: &str,
        to: &str,
        said: &[(&str, &str)],
        request: &str,
    ) -> Result<String> {
        let mut peer = self.peer(account).await?;
        let status = Self::connect(&mut peer, to, said).await?;
        ensure!(status == Some(200), "{status:?}");
        peer.send(&frame(DATA, 0, 1, request.as_bytes())).await?;
        let mut heard = String::new();
        while !heard.contains("\r\n\r\n") {
            let data = peer.until("data", |frame| frame.kind == DATA && frame.stream == 1);
            heard += &String::from_utf8_lossy(&data.await.payload);
        }
        Ok(heard)
    }
}

/// Whoever is asked for in the tunnel's head is asked, whatever host is named within.
fn hosts(shop: &Shop<'_>, door: &Door<'_>) -> Result<()> {
    shop.runtime.block_on(async {
        let web = shop.at(80).to_string();
        for host in [
            "other.bare",
            "other.bare.svc.cluster.local:80",
            "169.254.169.254",
            "*",
            "localhost",
        ] {
            let request = format!("GET /x HTTP/1.1\r\nhost: {host}\r\n\r\n");
            let heard = door.asks("client", &web, &[], &request).await?;
            // The one that cannot be a host is refused, the others reach who fronts the address.
            let expected = if host == "*" { " 400 " } else { " 200 OK" };
            ensure!(heard.contains(expected), "{host}: {heard}");
        }
        Ok(())
    })
}

/// What a peer says of itself or of who is behind it opens nothing.
fn words(shop: &Shop<'_>, door: &Door<'_>) -> Result<()> {
    let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { namespace: shop, name: friends }
spec:
  targetRefs: [{ group: '', kind: Service, name: web }]
  action: ALLOW
  rules:
  - from: [{ source: { principals: ['cluster.local/ns/shop/sa/client'] } }]
  - from: [{ source: { namespaces: ['admin'] } }]
  - from: [{ source: { ipBlocks: ['192.0.2.0/24'] } }]
";
    shop.lab.apply_yaml("friends", policy)?;
    let web = shop.at(80).to_string();
    let get = "GET /x HTTP/1.1\r\nhost: web.shop\r\n\r\n";
    shop.until("the policy", |_| {
        let heard = shop.runtime.block_on(door.asks("mallory", &web, &[], get));
        heard.is_ok_and(|heard| heard.contains(" 403 "))
    })?;
    shop.runtime.block_on(async {
        let heard = door.asks("client", &web, &[], get).await?;
        ensure!(heard.contains(" 200 OK"), "{heard}");
        let xfcc =
            "By=spiffe://cluster.local/ns/shop/sa/way;URI=spiffe://cluster.local/ns/shop/sa/client";
        for said in [
            &[("baggage", "k8s.namespace.name=admin,service.name=client")][..],
            &[("forwarded", "for=192.0.2.7")],
            &[("forwarded", "for=\"192.0.2.7:4000\"")],
            &[("x-forwarded-for", "192.0.2.7")],
            &[("x-istio-source", "waypoint")],
            &[("x-forwarded-client-cert", xfcc)],
        ] {
            let heard = door.asks("mallory", &web, said, get).await;
            let heard = heard.with_context(|| format!("{said:?}"))?;
            ensure!(heard.contains(" 403 "), "{said:?}: {heard}");
            // The same within the tunnel.
            let (name, value) = said[0];
            let request = format!("GET /x HTTP/1.1\r\nhost: web.shop\r\n{name}: {value}\r\n\r\n");
            let heard = door.asks("mallory", &web, &[], &request).await?;
            ensure!(heard.contains(" 403 "), "{said:?} within: {heard}");
        }
        // Nobody of the mesh, and several at once.
        for names in [
            &[][..],
            &["spiffe://other.mesh/ns/shop/sa/client"],
            &[
                "spiffe://cluster.local/ns/shop/sa/client",
                "spiffe://cluster.local/ns/shop/sa/mallory",
            ],
        ] {
            let soon = SystemTime::now() + Duration::from_secs(3600);
            let badge = raw::badge(door.ca, names, soon);
            let socket = door.from.connect(shop.waypoint.pod().pod().at(15008))?;
            socket.set_nonblocking(true)?;
            let config = raw::tls_client(Some(badge), &["h2"]);
            let tls = Raw::connect(TcpStream::from_std(socket)?, config);
            let tls = tokio::time::timeout(PATIENCE, tls).await.context("TLS")?;
            // With TLS 1.3 a client hears of it with what it reads first.
            let Ok(mut peer) = tls else { continue };
            let _ = peer.hello().await;
            let _ = peer
                .request(1, &[(":method", "CONNECT"), (":authority", &web)])
                .await;
            loop {
                let next = tokio::time::timeout(PATIENCE, peer.next()).await;
                let next = next.with_context(|| format!("{names:?}: neither served nor ended"))?;
                let Ok(Some(frame)) = next else { break };
                ensure!(frame.kind != HEADERS, "{names:?}: served");
            }
        }
        anyhow::Ok(())
    })?;
    shop.lab.delete_yaml("friends")
}
