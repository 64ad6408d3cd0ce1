//! TLS towards endpoints by roots and keys that Secrets and ConfigMaps hold.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lab::Service;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
    KeyIdMethod, KeyPair, RevokedCertParams, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;

use super::app::One;
use super::shop::{Shop, in_shop};

#[test]
fn endpoints_are_believed_and_shown_what_secrets_hold() {
    in_shop(|shop| {
        let authority = Authority::new()?;
        serve(shop, &authority)?;
        rule(shop, &authority).context("DestinationRule")?;
        policy(shop, &authority).context("BackendTLSPolicy")
    });
}

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// Number of the apps' certificate.
const APP: u64 = 7;

/// Who signs the apps' certificates and the waypoint's.
struct Authority(Issuer);

impl Authority {
    fn new() -> Result<Self> {
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(
            root,
            KeyPair::generate()?,
        )?))
    }

    /// A certificate with that number, and its key.
    fn pair(&self, name: &str, number: u64) -> Result<(rcgen::Certificate, KeyPair)> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new([name.to_owned()])?;
        parameters.serial_number = Some(number.into());
        Ok((parameters.signed_by(&key, &self.0)?, key))
    }

    /// A list of one whom it believes no more, in PEM.
    fn revoking(&self, number: u64) -> Result<String> {
        let then = date_time_ymd(2020, 1, 1);
        let list = CertificateRevocationListParams {
            this_update: then,
            next_update: date_time_ymd(2120, 1, 1),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: number.into(),
                revocation_time: then,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.0)?.pem()?)
    }
}

/// Each app serves TLS on 8445 and answers with the name it was asked for, and whether the client showed a certificate.
fn serve(shop: &Shop<'_>, authority: &Authority) -> Result<()> {
    let (certificate, key) = authority.pair("keys.example", APP)?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone())?;
    let provider = hbone::tls::crypto_provider();
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let clients = clients.allow_unauthenticated().build()?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate.der().clone()], key)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    for pod in &shop.apps {
        let listener = pod.listen(8445)?;
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
                    let seen = tls.get_ref().1;
                    let shown = match seen.peer_certificates() {
                        Some(_) => "shown",
                        None => "nobody",
                    };
                    let said = format!("{} {shown}", seen.server_name().unwrap_or_default());
                    let service = service_fn(move |_| {
                        let said = http_body_util::Full::<bytes::Bytes>::from(said.clone());
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
    Ok(())
}

/// Status and body.
fn ask(shop: &Shop<'_>, service: &Service) -> Result<(u16, String)> {
    shop.runtime.block_on(async {
        let mut client = One::to(&shop.client, service.at(80)).await?;
        let heard = client.get("/").await?;
        Ok((heard.status, heard.text()))
    })
}

fn indented(pem: &str) -> String {
    let lines = pem.lines().map(|line| format!("    {line}\n"));
    lines.collect()
}

fn secret(ca: &str, pair: Option<(&str, &str)>, crl: &str) -> String {
    let mut text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{ namespace: shop, name: keys }}\ntype: Opaque\nstringData:\n  ca.crt: |\n{}",
        indented(ca)
    );
    if let Some((certificate, key)) = pair {
        let (certificate, key) = (indented(certificate), indented(key));
        text += &format!("  tls.crt: |\n{certificate}  tls.key: |\n{key}");
    }
    if !crl.is_empty() {
        text += &format!("  ca.crl: |\n{}", indented(crl));
    }
    text
}

fn rule(shop: &Shop<'_>, authority: &Authority) -> Result<()> {
    let app = ("app", "web");
    let service = shop
        .lab
        .service_for("shop/keys", app, &[("http", 80, 8445)])?;
    let destination = |mode: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{ namespace: shop, name: keys }}\nspec:\n  host: keys.shop.svc.cluster.local\n  trafficPolicy:\n    tls: {{ mode: {mode}, sni: keys.example, credentialName: keys }}\n"
        )
    };
    let until = |what: &str, expected: (u16, &str)| {
        shop.until(what, |shop| {
            ask(shop, &service).is_ok_and(|(status, text)| {
                status == expected.0 && (expected.1.is_empty() || text == expected.1)
            })
        })
    };
    shop.lab.apply_yaml("keys", &destination("SIMPLE"))?;
    until("a Secret that is not there to refuse", (503, ""))?;
    let ca = authority.0.pem();
    shop.lab.apply_yaml("keys-secret", &secret(&ca, None, ""))?;
    until("the roots of the Secret", (200, "keys.example nobody"))?;
    shop.lab.apply_yaml("keys", &destination("MUTUAL"))?;
    until("a Secret without a key to refuse", (503, ""))?;
    let (certificate, key) = authority.pair("waypoint.example", 1)?;
    let (certificate, key) = (certificate.pem(), key.serialize_pem());
    let whole = secret(&ca, Some((&certificate, &key)), "");
    shop.lab.apply_yaml("keys-secret", &whole)?;
    until("the key of the Secret", (200, "keys.example shown"))?;
    let dump = shop.waypoint.pod().ask("/config_dump")?;
    let secret_line = key.lines().nth(1).unwrap_or_default();
    ensure!(
        dump.contains("secret/shop/keys"),
        "it is shown that it is there"
    );
    ensure!(!dump.contains(secret_line), "and the key is not");
    let revoking = |list: &str| {
        let secret = secret(&ca, Some((&certificate, &key)), list);
        shop.lab.apply_yaml("keys-secret", &secret)
    };
    revoking(&authority.revoking(APP)?)?;
    until("an app that is revoked to be refused", (503, ""))?;
    revoking(&authority.revoking(APP + 1)?)?;
    until("another one to be revoked", (200, "keys.example shown"))?;
    revoking("nobody")?;
    until("a list that nobody can read to refuse", (503, ""))?;
    revoking("")?;
    until("nobody to be revoked", (200, "keys.example shown"))?;
    let other = Authority::new()?;
    let rotated = secret(&other.0.pem(), Some((&certificate, &key)), "");
    shop.lab.apply_yaml("keys-secret", &rotated)?;
    until("other roots to refuse", (503, ""))
}

fn policy(shop: &Shop<'_>, authority: &Authority) -> Result<()> {
    let app = ("app", "web");
    let service = shop
        .lab
        .service_for("shop/believed", app, &[("http", 80, 8445)])?;
    let policy = "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: { namespace: shop, name: believed }\nspec:\n  targetRefs: [{ group: '', kind: Service, name: believed }]\n  validation:\n    hostname: keys.example\n    caCertificateRefs: [{ group: '', kind: ConfigMap, name: roots }]\n";
    shop.lab.apply_yaml("believed", policy)?;
    shop.until("a ConfigMap that is not there to refuse", |shop| {
        ask(shop, &service).is_ok_and(|(status, _)| status == 503)
    })?;
    let map = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{ namespace: shop, name: roots }}\ndata:\n  ca.crt: |\n{}",
        indented(&authority.0.pem())
    );
    shop.lab.apply_yaml("believed-roots", &map)?;
    shop.until("the roots of the ConfigMap", |shop| {
        let heard = ask(shop, &service);
        heard.is_ok_and(|heard| heard == (200, "keys.example nobody".to_owned()))
    })
}
