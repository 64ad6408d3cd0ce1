//! TLS that passes through by the name it asks for, and TLS that begins at the waypoint.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lab::Pod;
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::app::{One, SOON};
use super::shop::{Shop, in_shop};

#[test]
fn tls_passes_by_its_name_or_begins_here() {
    in_shop(|shop| {
        passes(shop).context("TLSRoute")?;
        begins(shop).context("DestinationRule with TLS")
    });
}

/// A server that reads something and says its name.
fn says(pod: &Pod, port: u16, name: &'static str) -> Result<()> {
    let listener = pod.listen(port)?;
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            std::thread::spawn(move || {
                let mut hello = [0; 5];
                stream.set_read_timeout(Some(SOON))?;
                stream.read_exact(&mut hello)?;
                stream.write_all(name.as_bytes())?;
                // With bytes unread its end would be a reset, which may overtake the name.
                stream.shutdown(Shutdown::Write)?;
                std::io::copy(&mut stream, &mut std::io::sink())
            });
        }
    });
    Ok(())
}

fn hello(name: &str) -> Result<Vec<u8>> {
    let config = rustls::ClientConfig::builder_with_provider(hbone::tls::crypto_provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into()?;
    let mut client = rustls::ClientConnection::new(Arc::new(config), name)?;
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes)?;
    Ok(bytes)
}

fn passes(shop: &Shop<'_>) -> Result<()> {
    for pod in &shop.apps {
        says(pod, 8443, "red")?;
        says(pod, 9443, "blue")?;
    }
    let app = ("app", "web");
    let vault = shop
        .lab
        .service_for("shop/vault", app, &[("tls", 443, 8443)])?;
    shop.lab
        .service_for("shop/blue", app, &[("tls", 443, 9443)])?;
    let ask = |name: &str| -> Result<String> {
        let mut stream = shop.client.connect(vault.at(443))?;
        let bytes = hello(name)?;
        // In two pieces: the name comes with the second.
        stream.write_all(&bytes[..20])?;
        stream.write_all(&bytes[20..])?;
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        Ok(answer)
    };
    shop.until("the service to answer", |_| {
        ask("any.example").is_ok_and(|said| said == "red")
    })?;
    let route = "
apiVersion: gateway.networking.k8s.io/v1
kind: TLSRoute
metadata: { namespace: shop, name: vault }
spec:
  parentRefs: [{ group: '', kind: Service, name: vault, port: 443 }]
  hostnames: ['*.blue.example']
  rules:
  - backendRefs: [{ name: blue, port: 443 }]
";
    shop.lab.apply_yaml("vault", route)?;
    shop.until("the route", |_| {
        ask("a.blue.example").is_ok_and(|said| said == "blue")
    })?;
    let other = ask("a.red.example")?;
    ensure!(other.is_empty(), "nobody routes it, and {other:?} answered");
    Ok(())
}

fn begins(shop: &Shop<'_>) -> Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let certificate = rcgen::CertificateParams::new(["secure.example".to_owned()])?;
    let certificate = certificate.self_signed(&key)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = rustls::ServerConfig::builder_with_provider(hbone::tls::crypto_provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    for pod in &shop.apps {
        let listener = pod.listen(8444)?;
        listener.set_nonblocking(true)?;
        let _in = shop.runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let acceptor = acceptor.clone();
        shop.runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(tls) = acceptor.accept(tcp).await else {
                        return;
                    };
                    let name = tls.get_ref().1.server_name().unwrap_or_default().to_owned();
                    let service = service_fn(move |_| {
                        let said = http_body_util::Full::<bytes::Bytes>::from(name.clone());
                        std::future::ready(Ok::<_, std::convert::Infallible>(hyper::Response::new(
                            said,
                        )))
                    });
                    let serving = hyper::server::conn::http1::Builder::new();
                    let _ = serving.serve_connection(TokioIo::new(tls), service).await;
                });
            }
        });
    }
    let app = ("app", "web");
    let secure = shop
        .lab
        .service_for("shop/secure", app, &[("http", 80, 8444)])?;
    let rule = |skip: bool| {
        format!(
            "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ namespace: shop, name: secure }}
spec:
  host: secure.shop.svc.cluster.local
  trafficPolicy:
    tls: {{ mode: SIMPLE, sni: secure.example, insecureSkipVerify: {skip} }}
"
        )
    };
    let ask = || {
        shop.runtime.block_on(async {
            let mut client = One::to(&shop.client, secure.at(80)).await?;
            client.get("/").await
        })
    };
    shop.lab.apply_yaml("secure", &rule(true))?;
    shop.until("TLS to the app", |_| {
        ask().is_ok_and(|heard| heard.status == 200 && heard.text() == "secure.example")
    })?;
    // Nobody vouches for this certificate.
    shop.lab.apply_yaml("secure", &rule(false))?;
    shop.until("the app to be refused", |_| {
        ask().is_ok_and(|heard| heard.status == 503)
    })
}
