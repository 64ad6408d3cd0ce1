//! The agent as its own process, with directories of its own, and the files of its pods.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use api::k8s::objects::Object;
use lab::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::net::Running;
use super::ztunnel::Ztunnel;
use super::{PATIENCE, ended, eventually};

/// An agent and everything around it. It is killed with this value.
pub struct Agent {
    pub dir: tempfile::TempDir,
    process: Option<Running>,
    node: Option<Netns>,
    more: Vec<String>,
}

/// The UID of the pod `name`: 36 bytes, as Kubernetes makes them.
pub fn uid(name: &str) -> String {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!(
        "{:08x}-0000-4000-8000-{:012x}",
        hash >> 32,
        hash & 0xffff_ffff
    )
}

impl Agent {
    /// Starts it for node `n1` with an ambient namespace `app`, and waits until it listens.
    pub fn start(more: &[&str]) -> Self {
        let agent = Self::prepare(None, more);
        agent.namespace("app", json!({ "istio.io/dataplane-mode": "ambient" }));
        agent.started()
    }

    /// The same, in a network namespace that plays the node.
    pub fn start_in(node: &Netns, more: &[&str]) -> Self {
        let agent = Self::prepare(Some(node), more);
        agent.namespace("app", json!({ "istio.io/dataplane-mode": "ambient" }));
        agent.started()
    }

    pub fn prepare(node: Option<&Netns>, more: &[&str]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("ambit-t-cni-")
            .tempdir()
            .unwrap();
        fs::create_dir(dir.path().join("config")).unwrap();
        Self {
            dir,
            process: None,
            node: node.cloned(),
            more: more.iter().map(|&arg| arg.to_owned()).collect(),
        }
    }

    pub fn started(mut self) -> Self {
        self.launch();
        self
    }

    pub fn launch(&mut self) {
        let program = env!("CARGO_BIN_EXE_ambit-cni-agent");
        let mut command = Command::new(program);
        let path = |name: &str| self.dir.path().join(name);
        command
            .arg("--config-dir")
            .arg(path("config"))
            .args(["--node-name", "n1"])
            .arg("--cni-run-dir")
            .arg(path("run"))
            .arg("--ztunnel-socket")
            .arg(self.ztunnel_socket())
            .args([
                "--metrics-address",
                "127.0.0.1:0",
                "--readiness-address",
                "127.0.0.1:0",
            ])
            .args(["--log", "debug"])
            .env("RELEASE_PAUSE", "0.1")
            .args(&self.more);
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path("log"))
            .unwrap();
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let before = self.log().matches("the agent is ready").count();
        let process = match &self.node {
            Some(node) => node.spawn(command).unwrap(),
            None => command.spawn().unwrap(),
        };
        self.process = Some(Running(process));
        eventually("the agent is ready", || {
            self.log().matches("the agent is ready").count() > before
        });
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) {
        let mut process = self.process.take().unwrap();
        kill(
            Pid::from_raw(i32::try_from(process.0.id()).unwrap()),
            Signal::SIGTERM,
        )
        .unwrap();
        assert!(ended(&mut process.0).success());
    }

    pub fn is_running(&mut self) -> bool {
        self.process
            .as_mut()
            .unwrap()
            .0
            .try_wait()
            .unwrap()
            .is_none()
    }

    /// Whether it has the file open that is known by this device and inode.
    pub fn has_open(&self, file: (u64, u64)) -> bool {
        let process = self.process.as_ref().unwrap().0.id();
        let open = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        // One that was closed meanwhile has nothing to say.
        let mut open = open.filter_map(|fd| fs::metadata(fd.ok()?.path()).ok());
        open.any(|it| (it.dev(), it.ino()) == file)
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    pub fn ztunnel_socket(&self) -> PathBuf {
        self.dir.path().join("zds/ztunnel.sock")
    }

    pub fn ztunnel(&self) -> Ztunnel {
        Ztunnel::connect(&self.ztunnel_socket())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// What it does may be seen before what it says: lines are written beside the work.
    pub fn await_log(&self, text: &str) {
        eventually(&format!("the log says {text:?}\n{}", self.log()), || {
            self.log().contains(text)
        });
    }

    pub fn namespace(&self, name: &str, labels: Value) {
        self.write(
            &format!("ns-{name}.json"),
            &json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } }),
        );
    }

    /// Writes pod `app/NAME` of node `n1`; `metadata` and `spec` are laid over a plain one.
    pub fn pod(&self, name: &str, metadata: Value, spec: Value) {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "app", "uid": uid(name) },
            "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] },
            "status": { "phase": "Running" },
        });
        for (part, more) in [("metadata", metadata), ("spec", spec)] {
            for (key, value) in more.as_object().cloned().unwrap_or_default() {
                object[part][key] = value;
            }
        }
        self.write(&format!("pod-{name}.json"), &object);
    }

    pub fn plain_pod(&self, name: &str) {
        self.pod(name, json!({}), json!({}));
    }

    /// Its containers have run to their end.
    pub fn pod_ends(&self, name: &str) {
        let file = format!("pod-{name}.json");
        let object = fs::read_to_string(self.config().join(&file)).unwrap();
        let mut object: Value = serde_json::from_str(&object).unwrap();
        object["status"]["phase"] = "Succeeded".into();
        self.write(&file, &object);
    }

    pub fn delete_pod(&self, name: &str) {
        fs::remove_file(self.config().join(format!("pod-{name}.json"))).unwrap();
    }

    fn write(&self, file: &str, object: &Value) {
        let temporary = self.config().join(format!(".{file}.new"));
        fs::write(&temporary, object.to_string()).unwrap();
        fs::rename(&temporary, self.config().join(file)).unwrap();
    }

    /// What the agent says about a pod: annotation `ambient.istio.io/redirection`.
    pub fn redirection(&self, name: &str) -> Option<String> {
        let (objects, _) = api::k8s::dir::read(&self.config()).unwrap();
        let pod = objects.into_iter().find_map(|object| match object {
            Object::Pod(pod) if pod.metadata.name.as_deref() == Some(name) => Some(pod),
            _ => None,
        })?;
        pod.metadata
            .annotations
            .as_ref()?
            .get("ambient.istio.io/redirection")
            .cloned()
    }

    pub fn await_redirection(&self, name: &str, expected: Option<&str>) {
        eventually(
            &format!("redirection of {name} is {expected:?}\n{}", self.log()),
            || self.redirection(name).as_deref() == expected,
        );
    }

    /// What the plugin would send for a pod with these addresses.
    pub fn event(name: &str, netns: &Path, ips: &[&str]) -> Value {
        let ips: Vec<Value> = ips
            .iter()
            .map(|ip| {
                let mask = if ip.contains(':') {
                    "/////////////////////w=="
                } else {
                    "/////w=="
                };
                json!({ "Interface": null, "Address": { "IP": ip, "Mask": mask }, "Gateway": "" })
            })
            .collect();
        json!({ "Netns": netns, "PodName": name, "PodNamespace": "app", "IPs": ips })
    }

    /// Asks as the plugin does; status and text of the answer. As a runtime would, again while the agent has not heard of
    /// the pod: it waits a second for what was only just written, and a busy machine may take longer.
    pub fn cmdadd(&self, name: &str, netns: &Path, ips: &[&str]) -> (u16, String) {
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = self.cmdadd_once(name, netns, ips);
            if !answer.1.contains("no such pod of node") || Instant::now() >= end {
                return answer;
            }
        }
    }

    /// The same, and whatever is answered first.
    pub fn cmdadd_once(&self, name: &str, netns: &Path, ips: &[&str]) -> (u16, String) {
        self.request(
            "POST",
            "/cmdadd",
            &Self::event(name, netns, ips).to_string(),
        )
    }

    pub fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.run_dir().join("pluginevent.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: unix\r\nContent-Length: {}\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, text) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), text.to_owned())
    }
}
