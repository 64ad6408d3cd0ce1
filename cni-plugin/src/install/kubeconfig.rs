//! The kubeconfig with which plugins on the host may ask the API server: the agent's own token, in the
//! run directory, for root only.
//!
//! Our plugin asks the agent instead. Istio's, which can stand in for it, reads this file.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{InstallError, absent, at, replace};

/// What is needed to write the file.
#[derive(Clone, Debug)]
pub struct Kubeconfig {
    /// The file.
    pub path: PathBuf,
    /// `https://host:port` of the API server.
    pub server: String,
    /// Where the kubelet keeps `token` and `ca.crt` fresh.
    pub account: PathBuf,
}

impl Kubeconfig {
    /// Of a process in a pod; `None` outside of one, where there is no token to share.
    pub fn of_this_pod(run_dir: &Path) -> Option<Self> {
        let host = std::env::var("KUBERNETES_SERVICE_HOST").ok()?;
        let port = std::env::var("KUBERNETES_SERVICE_PORT").ok()?;
        let account = PathBuf::from(ACCOUNT);
        account.join("token").exists().then(|| Self {
            path: run_dir.join(NAME),
            server: server(&host, &port),
            account,
        })
    }

    /// Writes the file if it is not as it should be; says whether it was not.
    ///
    /// # Errors
    /// The file that could not be read or written.
    pub fn apply(&self) -> Result<bool, InstallError> {
        let read = |name: &str| {
            let path = self.account.join(name);
            fs::read(&path).map_err(at(&path))
        };
        let token = read("token")?;
        let token = String::from_utf8_lossy(&token);
        let wanted = content(&self.server, &read("ca.crt")?, token.trim());
        let wanted = format!("{wanted:#}\n");
        if self.is(&wanted) {
            return Ok(false);
        }
        replace(&self.path, wanted.as_bytes(), MODE).map(|()| true)
    }

    /// Takes the file away.
    ///
    /// # Errors
    /// When it is there and stays there.
    pub fn remove(&self) -> Result<(), InstallError> {
        absent(fs::remove_file(&self.path)).map_err(at(&self.path))
    }

    fn is(&self, wanted: &str) -> bool {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(&self.path).map(|metadata| metadata.permissions().mode() & 0o777);
        mode.is_ok_and(|mode| mode == MODE)
            && fs::read(&self.path).is_ok_and(|present| present == wanted.as_bytes())
    }
}

/// JSON is YAML, and a token in it needs no quoting of ours.
fn content(server: &str, authority: &[u8], token: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "local", "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(authority),
        }}],
        "users": [{ "name": "istio-cni", "user": { "token": token } }],
        "contexts": [{ "name": "istio-cni-context", "context": { "cluster": "local", "user": "istio-cni" } }],
        "current-context": "istio-cni-context",
    })
}

fn server(host: &str, port: &str) -> String {
    match host.contains(':') {
        true => format!("https://[{host}]:{port}"),
        false => format!("https://{host}:{port}"),
    }
}

const NAME: &str = "istio-cni-kubeconfig";
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const MODE: u32 = 0o600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_istios_says() {
        let golden = include_str!("../../testdata/istio-cni-kubeconfig.yaml");
        let golden: Value = serde_saphyr::from_str(golden).unwrap();
        let mut ours = content("https://127.0.0.1:6443", b"a root", "<token>");
        let data = &mut ours["clusters"][0]["cluster"]["certificate-authority-data"];
        assert_eq!(*data, json!("YSByb290"));
        *data = json!("<base64 of the CA>");
        assert_eq!(ours, golden);
    }

    #[test]
    fn an_address_of_ipv6_stands_in_brackets() {
        assert_eq!(server("10.96.0.1", "443"), "https://10.96.0.1:443");
        assert_eq!(server("fd00::1", "443"), "https://[fd00::1]:443");
    }

    #[test]
    fn it_follows_the_token_and_is_for_root_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        fs::write(file("ca.crt"), "root").unwrap();
        let kubeconfig = Kubeconfig {
            path: file(NAME),
            server: "https://x:1".into(),
            account: dir.path().to_owned(),
        };
        let error = kubeconfig.apply().unwrap_err().to_string();
        assert!(error.contains("token"), "{error}");
        for token in ["first\n", "second"] {
            fs::write(file("token"), token).unwrap();
            assert!(kubeconfig.apply().unwrap());
            assert!(!kubeconfig.apply().unwrap(), "nothing to do any more");
            let text = fs::read_to_string(file(NAME)).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value["users"][0]["user"]["token"], token.trim());
        }
        fs::set_permissions(file(NAME), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(
            kubeconfig.apply().unwrap(),
            "readable by others is not as it should be"
        );
        let mode = fs::metadata(file(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        kubeconfig.remove().unwrap();
        kubeconfig.remove().unwrap();
        assert!(!file(NAME).exists());
    }
}
