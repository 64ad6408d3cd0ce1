//! TLS that begins here, towards endpoints that policies ask it for (DestinationRule, BackendTLSPolicy).
//!
//! Compiled when a policy arrives. Whoever answers must prove one of the names that the policy gives, or the one that
//! the client asked for, and not be on a list of who is revoked; a key, a root or a list that is missing or cannot be read
//! refuses, and never means "anybody".

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::Arc;

use api::waypoint as wire;
use hbone::tls::Anchors;
use prost::Message;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wire::client_tls::Mode;

use super::stream::Stream;

/// How TLS is spoken to the endpoints of a service.
#[derive(Debug, Clone)]
pub struct Tls {
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    bytes: Arc<ClientConfig>,
    /// What is asked for; none: the request's host.
    name: Option<ServerName<'static>>,
    /// The same settings give the same number: connections are shared by it.
    number: u64,
}

/// What is spoken inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Inside {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Nobody knows.
    Bytes,
}

impl Tls {
    /// What is wrong with it, or how it is spoken; none if it is not.
    ///
    /// # Errors
    /// A text for the author of the policy.
    pub fn compile<'a>(
        said: &wire::ClientTls,
        secret: impl Fn(&str) -> Option<&'a wire::Secret>,
    ) -> Result<Option<Self>, String> {
        if !said.invalid.is_empty() {
            return Err(said.invalid.clone());
        }
        // ISTIO_MUTUAL is what tunnels are.
        if matches!(said.mode(), Mode::Disable | Mode::IstioMutual) {
            return Ok(None);
        }
        let find = |key: &str| secret(key).ok_or_else(|| format!("{key} is not known"));
        let mut number = DefaultHasher::new();
        said.encode_to_vec().hash(&mut number);
        let roots = match said.ca.as_str() {
            "" => anchors(system_roots()?, &[])?,
            key => {
                let wire::Secret { ca, crl, .. } = find(key)?;
                (ca, crl).hash(&mut number);
                let roots = roots(ca).and_then(|roots| anchors(roots, crl));
                roots.map_err(|why| format!("{key}: {why}"))?
            }
        };
        let own = match said.certificate.as_str() {
            "" if said.mode() == Mode::Mutual => {
                return Err("MUTUAL without a certificate".to_owned());
            }
            "" => None,
            key => {
                let own = find(key)?;
                (&own.certificate, &own.key).hash(&mut number);
                Some(pair(own).map_err(|why| format!("{key}: {why}"))?)
            }
        };
        let name = match said.sni.as_str() {
            "" => None,
            sni => Some(server_name(sni)?),
        };
        let names = said.names.iter().map(|name| server_name(name));
        let provider = hbone::tls::crypto_provider();
        let verifier = Arc::new(Verifier {
            roots,
            names: names.collect::<Result<_, _>>()?,
            insecure: said.insecure,
            algorithms: provider.signature_verification_algorithms,
        });
        let config = |protocols: &[&[u8]]| config(&provider, &verifier, own.as_ref(), protocols);
        Ok(Some(Self {
            http1: config(&[b"http/1.1"])?,
            http2: config(&[b"h2"])?,
            bytes: config(&[])?,
            name,
            number: number.finish(),
        }))
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Whether it asks for whom the client asked for.
    pub(crate) fn asks_as_client(&self) -> bool {
        self.name.is_none()
    }

    /// Shakes hands over a stream; `host`: whom the client asked for.
    pub(super) async fn begin(
        &self,
        stream: Stream,
        inside: Inside,
        host: Option<&str>,
    ) -> io::Result<TlsStream<Stream>> {
        let config = match inside {
            Inside::Http1 => &self.http1,
            Inside::Http2 => &self.http2,
            Inside::Bytes => &self.bytes,
        };
        let asked = || {
            let host = host.ok_or("no name to ask for")?;
            server_name(host)
        };
        let name = self.name.clone().map_or_else(asked, Ok);
        let name = name.map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        TlsConnector::from(config.clone())
            .connect(name, stream)
            .await
    }
}

fn config(
    provider: &Arc<CryptoProvider>,
    verifier: &Arc<Verifier>,
    own: Option<&Own>,
    protocols: &[&[u8]],
) -> Result<Arc<ClientConfig>, String> {
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone());
    let mut config = match own {
        None => config.with_no_client_auth(),
        Some((chain, key)) => config
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(|error| error.to_string())?,
    };
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

type Own = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn pair(own: &wire::Secret) -> Result<Own, String> {
    let chain = CertificateDer::pem_slice_iter(&own.certificate);
    let chain = chain.collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| format!("certificate: {error}"))?;
    if chain.is_empty() {
        return Err("no certificate in it".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(&own.key).map_err(|error| format!("key: {error}"))?;
    Ok((chain, key))
}

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        store.add(certificate).map_err(|error| error.to_string())?;
    }
    match store.is_empty() {
        true => Err("no root certificate in it".to_owned()),
        false => Ok(store),
    }
}

fn anchors(roots: RootCertStore, lists: &[u8]) -> Result<Anchors, String> {
    Anchors::new(roots, lists).map_err(|error| error.to_string())
}

fn system_roots() -> Result<RootCertStore, String> {
    let pem = std::fs::read(SYSTEM_ROOTS);
    let pem = pem.map_err(|error| format!("the system's roots, {SYSTEM_ROOTS}: {error}"))?;
    let mut store = RootCertStore::empty();
    // Some of a system's roots may be of a kind that nobody reads any more.
    store.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    Ok(store)
}

fn server_name(name: &str) -> Result<ServerName<'static>, String> {
    let bare = name.rsplit_once(':').map_or(name, |(host, port)| {
        match port.bytes().all(|byte| byte.is_ascii_digit()) && !host.contains(':') {
            true => host,
            false => name,
        }
    });
    ServerName::try_from(bare.to_owned())
        .map_err(|_| format!("{name:?} is no name that a certificate of a server can carry"))
}

/// Whoever proves one of the names, under one of the roots.
#[derive(Debug)]
struct Verifier {
    roots: Anchors,
    /// None: the one that was asked for.
    names: Vec<ServerName<'static>>,
    insecure: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        asked: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.insecure {
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            self.roots.roots(),
            intermediates,
            now,
            self.algorithms.all,
        )?;
        self.roots.check_server(end_entity, intermediates, now)?;
        let mut failed = Error::InvalidCertificate(CertificateError::NotValidForName);
        let asked = self.names.is_empty().then_some(asked);
        for name in self.names.iter().chain(asked) {
            match verify_server_name(&certificate, name) {
                Ok(()) => return Ok(ServerCertVerified::assertion()),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

#[cfg(test)]
mod tests {
    use super::*;

    type Issuer = rcgen::CertifiedIssuer<'static, rcgen::KeyPair>;

    fn issuer() -> Issuer {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut root = rcgen::CertificateParams::default();
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        rcgen::CertifiedIssuer::self_signed(root, key).unwrap()
    }

    /// A certificate for `name`, with that number.
    fn leaf(issuer: &Issuer, name: &str, number: u64) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut leaf = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        leaf.serial_number = Some(number.into());
        leaf.signed_by(&key, issuer).unwrap().der().to_vec()
    }

    /// A root and a certificate of it for `name`.
    fn signed(name: &str) -> (String, Vec<u8>) {
        let root = issuer();
        let leaf = leaf(&root, name, 1);
        (root.pem(), leaf)
    }

    /// A list of who is revoked, by their numbers; another one was due long ago.
    fn list(issuer: &Issuer, numbers: &[u64]) -> String {
        let then = rcgen::date_time_ymd(2020, 1, 1);
        let revoked = numbers.iter().map(|number| rcgen::RevokedCertParams {
            serial_number: (*number).into(),
            revocation_time: then,
            reason_code: None,
            invalidity_date: None,
        });
        let list = rcgen::CertificateRevocationListParams {
            this_update: then,
            next_update: rcgen::date_time_ymd(2020, 2, 1),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(issuer).unwrap().pem().unwrap()
    }

    fn verifier(pem: &str, names: &[&str]) -> Verifier {
        Verifier {
            roots: anchors(roots(pem.as_bytes()).unwrap(), &[]).unwrap(),
            names: names
                .iter()
                .map(|name| server_name(name).unwrap())
                .collect(),
            insecure: false,
            algorithms: hbone::tls::crypto_provider().signature_verification_algorithms,
        }
    }

    #[test]
    fn whoever_answers_proves_a_name_under_a_root() {
        let (root, leaf) = signed("a.example");
        let (other, _) = signed("a.example");
        for (root, names, asked, good) in [
            (&root, &[][..], "a.example", true),
            (&root, &[], "b.example", false),
            // Names that are given count, and not the one that was asked for.
            (&root, &["a.example"], "b.example", true),
            (&root, &["c.example", "a.example"], "b.example", true),
            (&root, &["c.example"], "a.example", false),
            (&other, &[], "a.example", false),
        ] {
            let verified = verifier(root, names).verify_server_cert(
                &CertificateDer::from(leaf.clone()),
                &[],
                &server_name(asked).unwrap(),
                &[],
                UnixTime::now(),
            );
            assert_eq!(verified.is_ok(), good, "{names:?}, asked {asked}");
        }
    }

    #[test]
    fn whoever_is_on_a_list_of_the_roots_is_refused() {
        let (root, other) = (issuer(), issuer());
        let [good, bad] = [leaf(&root, "a.example", 2), leaf(&root, "a.example", 3)];
        let judged = |lists: &str, leaf: &[u8]| {
            let mut verifier = verifier(&root.pem(), &[]);
            let store = roots(root.pem().as_bytes()).unwrap();
            verifier.roots = anchors(store, lists.as_bytes()).unwrap();
            let leaf = CertificateDer::from(leaf.to_vec());
            let name = server_name("a.example").unwrap();
            let verified = verifier.verify_server_cert(&leaf, &[], &name, &[], UnixTime::now());
            verified.map(drop)
        };
        let revoked = Err(Error::InvalidCertificate(CertificateError::Revoked));
        let ours = list(&root, &[1, 3]);
        assert_eq!(judged("", &bad), Ok(()));
        assert_eq!(judged(&ours, &bad), revoked);
        assert_eq!(judged(&ours, &good), Ok(()));
        // It speaks for who signed it, beside whatever other list.
        let theirs = list(&other, &[2, 3]);
        assert_eq!(judged(&theirs, &bad), Ok(()));
        assert_eq!(judged(&(theirs + &ours), &bad), revoked);
    }

    #[test]
    fn a_list_that_cannot_be_read_refuses_and_another_one_makes_other_connections() {
        let root = issuer();
        let compiled = |crl: &str| {
            let secret = wire::Secret {
                ca: root.pem().into_bytes(),
                crl: crl.as_bytes().to_vec(),
                ..Default::default()
            };
            let said = wire::ClientTls {
                mode: Mode::Simple.into(),
                ca: "secret/shop/ca".to_owned(),
                ..Default::default()
            };
            Tls::compile(&said, |_| Some(&secret)).map(|tls| tls.unwrap().number())
        };
        assert!(compiled("nobody").is_err_and(|why| why.contains("cannot be read")));
        let numbers = [
            compiled(""),
            compiled(&list(&root, &[1])),
            compiled(&list(&root, &[2])),
        ];
        let [none, one, two] = numbers.map(Result::unwrap);
        assert!(none != one && one != two && none == compiled("").unwrap());
    }

    #[test]
    fn what_is_missing_refuses_and_means_nobody() {
        let said = |mode: Mode| wire::ClientTls {
            mode: mode.into(),
            ca: "secret/shop/ca".to_owned(),
            ..Default::default()
        };
        let none = |_: &str| None;
        assert!(Tls::compile(&said(Mode::Simple), none).is_err());
        let empty = wire::Secret::default();
        assert!(Tls::compile(&said(Mode::Simple), |_| Some(&empty)).is_err());
        let (root, _) = signed("a.example");
        let ca = wire::Secret {
            ca: root.into_bytes(),
            ..Default::default()
        };
        assert!(Tls::compile(&said(Mode::Simple), |_| Some(&ca)).is_ok_and(|tls| tls.is_some()));
        assert!(Tls::compile(&said(Mode::Mutual), |_| Some(&ca)).is_err());
        assert!(Tls::compile(&said(Mode::Disable), none).is_ok_and(|tls| tls.is_none()));
    }
}
