//! What a machine is known by that joined the mesh by a token: a key of its own, and the certificate over it.
//!
//! Both lie in a folder that only root may read, so that the machine comes back after a restart as who it was; tokens are
//! good once. The key is made before it is needed and never replaced by itself: an answer of the authority that was lost
//! on its way is asked for again with the same key, to which the token is bound by then. The certificate opens
//! connections to the control plane ([`super::Dialler`]) and nothing else: it names a machine ([`MachineName`]) and no identity, so no
//! peer of the mesh believes it. Tunnels have certificates over keys that never touch a disk.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::certs::SignError;
use crate::disk;
use crate::tls::{self, ChainError};

/// A machine's key and certificate, on disk.
pub struct Membership {
    folder: PathBuf,
    key: KeyPair,
    shown: Mutex<Option<Arc<Shown>>>,
}

/// What a machine's own certificate says: `spiffe://<trust domain>/machine/<namespace>/<name of its workload>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineName {
    /// Of the mesh.
    pub trust_domain: String,
    /// Of its workload.
    pub namespace: String,
    /// Of its workload.
    pub name: String,
}

impl MachineName {
    /// Of a certificate that names one, and nobody else.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let names = parsed.subject_alternative_name().ok()??;
        let [GeneralName::URI(uri)] = names.value.general_names[..] else {
            return None;
        };
        let (trust_domain, path) = uri.strip_prefix("spiffe://")?.split_once('/')?;
        let (namespace, name) = path.strip_prefix("machine/")?.split_once('/')?;
        let is_plain = |part: &str| !part.is_empty() && !part.contains('/');
        [trust_domain, namespace, name]
            .iter()
            .all(|part| is_plain(part))
            .then(|| Self {
                trust_domain: trust_domain.to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            })
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            trust_domain,
            namespace,
            name,
        } = self;
        write!(f, "spiffe://{trust_domain}/machine/{namespace}/{name}")
    }
}

/// A certificate that was obtained.
struct Shown {
    machine: MachineName,
    certified: Arc<CertifiedKey>,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// The folder of a membership is of no use.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// Reading or writing failed.
    #[error("{0}: {1}")]
    File(PathBuf, io::Error),
    /// Who can read the key can be this machine.
    #[error("{0} can be read by others than its owner (mode {1:o}); give it mode 600")]
    Readable(PathBuf, u32),
    /// The file is not a P-256 key in PKCS #8.
    #[error("{0}: not a private key: {1}")]
    Key(PathBuf, rcgen::Error),
}

impl Membership {
    /// Reads the key in `folder`, or makes it, and the certificate if there is one for that key.
    ///
    /// # Errors
    /// When the folder or the key cannot be used. A certificate that cannot is passed over, with a word in the log.
    pub fn open(folder: &Path) -> Result<Arc<Self>, MembershipError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| MembershipError::File(path, error)
        };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(at(folder))?;
        let path = folder.join(KEY);
        if !path.exists() {
            let fresh = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
                .map_err(|error| MembershipError::Key(path.clone(), error))?;
            let pem = fresh.serialize_pem();
            disk::replace(&path, pem.as_bytes(), disk::SECRET).map_err(at(&path))?;
        }
        let mode = fs::metadata(&path).map_err(at(&path))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(MembershipError::Readable(path, mode & 0o777));
        }
        let pem = fs::read_to_string(&path).map_err(at(&path))?;
        let key = KeyPair::from_pem_and_sign_algo(&pem, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|error| MembershipError::Key(path, error))?;
        let membership = Self {
            folder: folder.to_owned(),
            key,
            shown: Mutex::default(),
        };
        let path = folder.join(CHAIN);
        match fs::read_to_string(&path) {
            Ok(chain) => match membership.read(&chain) {
                Ok(shown) => *membership.shown() = Some(Arc::new(shown)),
                Err(error) => {
                    tracing::warn!(file = %path.display(), error, "the kept certificate is of no use; a token is needed");
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(MembershipError::File(path, error)),
        }
        Ok(Arc::new(membership))
    }

    /// A request for a certificate over the key. It names nobody: the authority knows whose the token is.
    ///
    /// # Errors
    /// When the crypto library refuses.
    pub fn request(&self) -> Result<String, SignError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.key);
        let pem = request.and_then(|request| request.pem());
        pem.map_err(|error| SignError::Local(error.to_string()))
    }

    /// Takes the authority's answer, if it is for this key and that workload, and keeps it. (It came over a connection that was
    /// verified, and nobody but the authority is shown it.) When the disk refuses it, it is used all the same, until the end of
    /// this process.
    ///
    /// # Errors
    /// When the answer is not usable.
    pub fn keep(
        &self,
        namespace: &str,
        name: &str,
        elements: &[String],
    ) -> Result<MachineName, SignError> {
        let unreadable = |what: String| SignError::Answer(ChainError::Unreadable(what));
        let (_, chain) = elements
            .split_last()
            .ok_or_else(|| unreadable("an empty answer".into()))?;
        let chain = chain.concat();
        let shown = self.read(&chain).map_err(unreadable)?;
        let machine = shown.machine.clone();
        if machine.namespace != namespace || machine.name != name {
            let what = format!("it is for {machine}, not for {namespace}/{name}");
            return Err(unreadable(what));
        }
        let path = self.folder.join(CHAIN);
        if let Err(error) = disk::replace(&path, chain.as_bytes(), disk::PUBLIC) {
            tracing::error!(file = %path.display(), %error, "the certificate cannot be kept; after a restart this machine needs a token");
        }
        *self.shown() = Some(Arc::new(shown));
        Ok(machine)
    }

    /// Which machine this is, if it has been told.
    pub fn machine(&self) -> Option<MachineName> {
        self.shown().as_ref().map(|shown| shown.machine.clone())
    }

    /// From when to when the certificate counts.
    pub fn validity(&self) -> Option<(SystemTime, SystemTime)> {
        let shown = self.shown();
        shown
            .as_ref()
            .map(|shown| (shown.not_before, shown.not_after))
    }

    /// For the TLS of connections to the control plane: shows the certificate in force when one is asked for.
    pub(super) fn resolver(self: &Arc<Self>) -> Arc<dyn ResolvesClientCert> {
        Arc::new(Resolver(self.clone()))
    }

    fn read(&self, chain: &str) -> Result<Shown, String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain.as_bytes()).collect();
        let chain = chain.map_err(|error| error.to_string())?;
        let leaf = chain.first().ok_or("no certificate in it")?;
        let machine = MachineName::of(leaf).ok_or("it names no machine")?;
        let (_, parsed) = X509Certificate::from_der(leaf).map_err(|error| error.to_string())?;
        let validity = parsed.validity();
        let time = |seconds: i64| {
            UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
        };
        let (not_before, not_after) = (
            time(validity.not_before.timestamp()),
            time(validity.not_after.timestamp()),
        );
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let provider = tls::crypto_provider();
        let key = provider.key_provider.load_private_key(key);
        let certified = CertifiedKey::new(chain, key.map_err(|error| error.to_string())?);
        let matches = certified.keys_match();
        matches.map_err(|_| "it is for another key".to_owned())?;
        Ok(Shown {
            machine,
            certified: Arc::new(certified),
            not_before,
            not_after,
        })
    }

    fn shown(&self) -> MutexGuard<'_, Option<Arc<Shown>>> {
        // Nothing panics while it is held.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Membership")
            .field("folder", &self.folder)
            .field("machine", &self.machine())
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Resolver(Arc<Membership>);

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let shown = self.0.shown();
        shown.as_ref().map(|shown| shown.certified.clone())
    }

    fn has_certs(&self) -> bool {
        self.0.shown().is_some()
    }
}

const KEY: &str = "key.pem";
const CHAIN: &str = "cert-chain.pem";

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, SanType};

    use super::*;

    /// What an authority answers: leaf and roots.
    fn signed(membership: &Membership, identity: &str) -> Vec<String> {
        let key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(root, key).unwrap();
        let mut leaf = CertificateParams::default();
        leaf.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        leaf.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let leaf = leaf.signed_by(&membership.key, &root).unwrap();
        vec![leaf.pem(), root.pem()]
    }

    const VM: &str = "spiffe://cluster.local/machine/shop/db";

    #[test]
    fn a_machine_comes_back_as_who_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("vm");
        let membership = Membership::open(&folder).unwrap();
        assert_eq!(membership.machine(), None);
        let answer = signed(&membership, VM);
        membership.keep("shop", "db", &answer).unwrap();
        let again = Membership::open(&folder).unwrap();
        assert_eq!(again.machine().unwrap().to_string(), VM);
        assert_eq!(again.key.serialize_der(), membership.key.serialize_der());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(&folder), mode(&folder.join(KEY))),
            (0o700, 0o600),
            "of the key and its folder"
        );
    }

    #[test]
    fn an_answer_for_another_machine_or_another_key_is_not_kept() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [ours, theirs] = folders
            .each_ref()
            .map(|folder| Membership::open(folder.path()).unwrap());
        for other in [
            "spiffe://cluster.local/machine/shop/web",
            "spiffe://cluster.local/machine/shop/db/x",
            "spiffe://cluster.local/ns/shop/sa/db",
        ] {
            let refused = ours.keep("shop", "db", &signed(&ours, other));
            assert!(matches!(refused, Err(SignError::Answer(_))), "{other}");
        }
        let other_key = ours.keep("shop", "db", &signed(&theirs, VM));
        assert!(matches!(other_key, Err(SignError::Answer(_))));
        assert_eq!(ours.machine(), None);
    }

    #[test]
    fn what_names_a_machine_is_no_identity_to_anybody() {
        assert!(VM.parse::<crate::Identity>().is_err());
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(Membership::open(folder.path()).unwrap());
        let key = folder.path().join(KEY);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Membership::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("mode 600"), "{error}");
    }
}
