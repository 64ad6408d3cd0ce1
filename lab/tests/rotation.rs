//! Keys wear out: certificates are renewed and the root of trust is changed under traffic, and nobody notices.

#![allow(clippy::unwrap_used, clippy::panic)] // in a test, that is a failed assertion

mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{Lab, Pod, wait};
use serde_json::Value;
use support::{
    SOON, Server,
    calls::{calls_more, while_calling},
    in_lab, round_trip, talk,
};

/// Life of a certificate; it is renewed at half of that. Short, so that the test sees some generations.
const LIFE: &str = "20s";

/// A self-signed signer in `dir`, under Istio's names.
fn signer(dir: &Path, name: &str) -> Result<()> {
    let (key, certificate) = (dir.join("ca-key.pem"), dir.join("ca-cert.pem"));
    let mut openssl = Command::new("openssl");
    openssl
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:P-256", "-nodes", "-days", "30"])
        .args(["-subj", &format!("/O=cluster.local/CN={name}")])
        .args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    let made = openssl.output().context("openssl")?;
    ensure!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    fs::copy(&certificate, dir.join("cert-chain.pem"))?;
    fs::copy(&certificate, dir.join("root-cert.pem"))?;
    Ok(())
}

/// Puts `files` of `from` in place of those of `to`, each at once.
fn put(from: &Path, to: &Path, files: &[&str]) -> Result<()> {
    for file in files {
        let fresh = to.join(".fresh");
        fs::copy(from.join(file), &fresh)?;
        fs::rename(&fresh, to.join(file))?;
    }
    Ok(())
}

/// Every certificate of every node: who signed it, its number, and the roots that came with it. One that was asked for and has
/// not come yet (a newcomer's, at the other proxy) is waited for.
fn certificates(lab: &Lab) -> Result<BTreeMap<(usize, String), Seen>> {
    wait::until("every certificate that was asked for", SOON, || {
        let mut all = BTreeMap::new();
        for node in lab.nodes() {
            let dump = node.config_dump()?;
            for certificate in dump["certificates"].as_array().context("no certificates")? {
                if certificate["certChain"][0]["pem"].is_null() {
                    return Ok(wait::Probe::NotYet(certificate.to_string()));
                }
                let identity = certificate["identity"].to_string();
                all.insert((node.index(), identity), Seen::of(certificate)?);
            }
        }
        Ok(wait::Probe::Ready(all))
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    issuer: String,
    serial: String,
    roots: usize,
}

impl Seen {
    fn of(certificate: &Value) -> Result<Self> {
        let leaf = &certificate["certChain"][0];
        let roots = certificate["rootCerts"].as_array();
        Ok(Self {
            issuer: issuer(leaf["pem"].as_str().context("no leaf")?)?,
            serial: leaf["serialNumber"].to_string(),
            roots: roots.context("no roots")?.len(),
        })
    }
}

/// The issuer's common name of a certificate, PEM in base64.
fn issuer(pem: &str) -> Result<String> {
    let mut openssl = Command::new("sh");
    openssl.args([
        "-c",
        "base64 -d | openssl x509 -noout -issuer -nameopt multiline",
    ]);
    let mut child = openssl
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("a pipe")?;
    input.write_all(pem.as_bytes())?;
    drop(input);
    let said = String::from_utf8(child.wait_with_output()?.stdout)?;
    let name = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("commonName"));
    Ok(name
        .context(said.clone())?
        .trim_matches([' ', '='])
        .to_owned())
}

/// Waits until each certificate is as `fits` wants it.
fn until_all(lab: &Lab, what: &str, fits: impl Fn(&Seen) -> bool) -> Result<()> {
    until(lab, what, |all| all.values().all(&fits))
}

/// Waits until one certificate is as `fits` wants it.
fn until_some(lab: &Lab, what: &str, fits: impl Fn(&Seen) -> bool) -> Result<()> {
    until(lab, what, |all| all.values().any(&fits))
}

fn until(
    lab: &Lab,
    what: &str,
    fits: impl Fn(&BTreeMap<(usize, String), Seen>) -> bool,
) -> Result<()> {
    wait::until(what, Duration::from_secs(120), || {
        let all = certificates(lab)?;
        Ok(if fits(&all) {
            wait::Probe::Ready(())
        } else {
            wait::Probe::NotYet(format!("{all:#?}"))
        })
    })
}

/// A pod of node 1 with a certificate of its own, made now. It calls `at` and is called by `peer`, both of node 0:
/// handshakes of new and of older certificates, both ways.
fn newcomer(lab: &Lab, name: &str, peer: &Pod, at: SocketAddr) -> Result<()> {
    let pod = lab
        .pod(&format!("shop/{name}"))
        .node(0)
        .service_account(name);
    let pod = pod.start()?;
    let _echo = Server::echo(&pod, 8080)?;
    talk(&pod, at, "from a newcomer")?;
    talk(peer, pod.at(8080), "to a newcomer").map(drop)
}

#[test]
fn certificates_are_renewed_and_the_root_changed_by_overlap_without_a_lost_connection() {
    let [first, second] = ["first", "second"].map(|name| {
        let dir = tempfile::tempdir().unwrap();
        signer(dir.path(), name).unwrap();
        dir
    });
    let in_use = first.path();
    let builder = Lab::builder()
        .ztunnel_env("SECRET_TTL", LIFE)
        .signer(in_use);
    in_lab(builder, |lab| {
        while_calling(lab, |ways| {
            // As `while_calling` has them.
            let (far, near, to) = (&ways[0].client, &ways[2].client, ways[0].to);
            ensure!(far.node() == 1 && near.node() == 0);
            let mut open = talk(far, to, "before it all")?;
            let before = certificates(lab)?;
            ensure!(before.len() >= 3, "{before:#?}");
            ensure!(
                before
                    .values()
                    .all(|seen| seen.roots == 1 && seen.issuer == "first")
            );

            // 1. Both roots are trusted, the old one signs.
            let root = |dir: &Path| fs::read_to_string(dir.join("root-cert.pem"));
            let (old, new) = (root(first.path())?, root(second.path())?);
            fs::write(second.path().join("root-cert.pem"), old + &new)?;
            put(second.path(), in_use, &["root-cert.pem"])?;
            lab.project_roots()?;
            until_all(lab, "both roots to be trusted", |seen| seen.roots == 2)?;
            calls_more(ways)?;
            newcomer(lab, "early", near, to)?;
            round_trip(&mut open, "both roots")?;

            // 2. The new one signs. A newcomer has a certificate of it and meets one of the old.
            put(
                second.path(),
                in_use,
                &["ca-key.pem", "ca-cert.pem", "cert-chain.pem"],
            )?;
            until_some(lab, "a certificate of the new signer", |seen| {
                seen.issuer == "second"
            })?;
            newcomer(lab, "between", near, to)?;
            until_all(lab, "the new signer", |seen| seen.issuer == "second")?;
            calls_more(ways)?;
            round_trip(&mut open, "the new signer")?;

            // 3. The old root goes.
            fs::write(second.path().join("root-cert.pem"), new)?;
            put(second.path(), in_use, &["root-cert.pem"])?;
            lab.project_roots()?;
            until_all(lab, "the old root to be forgotten", |seen| seen.roots == 1)?;
            calls_more(ways)?;
            newcomer(lab, "late", near, to)?;
            round_trip(&mut open, "the old root is gone")?;

            // Nobody was restarted, and a control plane that comes back is recognised.
            lab.control_plane()?.restart()?;
            let now = certificates(lab)?;
            until_all(lab, "another renewal", |seen| {
                now.values().all(|then| then.serial != seen.serial)
            })?;
            calls_more(ways)
        })
    });
}

/// Certificates that live for a day would be renewed tonight: a root that the kubelet brings is trusted long before.
#[test]
fn a_root_that_is_brought_is_trusted_long_before_certificates_are_due() {
    let [first, second] = ["first", "second"].map(|name| {
        let dir = tempfile::tempdir().unwrap();
        signer(dir.path(), name).unwrap();
        dir
    });
    let in_use = first.path();
    in_lab(Lab::builder().signer(in_use), |lab| {
        while_calling(lab, |ways| {
            let (far, near, to) = (&ways[0].client, &ways[2].client, ways[0].to);
            let mut open = talk(far, to, "before it all")?;
            let before = certificates(lab)?;

            let roots = [&first, &second].map(|dir| fs::read(dir.path().join("root-cert.pem")));
            let [old, new] = roots;
            fs::write(second.path().join("root-cert.pem"), [old?, new?].concat())?;
            put(second.path(), in_use, &["root-cert.pem"])?;
            // As in a cluster, where the signer itself writes the roots that proxies read: it knows them first.
            let said = lab.control_plane()?.log_path().to_owned();
            wait::until_true("the signer to have both roots", SOON, || {
                fs::read_to_string(&said)
                    .is_ok_and(|log| log.contains("signing certificate changed"))
            })?;
            lab.project_roots()?;
            until(lab, "new certificates, with both roots", |now| {
                before.iter().all(|(of, then)| {
                    let seen = now.get(of);
                    seen.is_some_and(|seen| seen.roots == 2 && seen.serial != then.serial)
                })
            })?;
            calls_more(ways)?;

            // Certificates of the new signer meet those of the old one.
            put(
                second.path(),
                in_use,
                &["ca-key.pem", "ca-cert.pem", "cert-chain.pem"],
            )?;
            // The control plane takes it up in its own time; whose certificate is older does not matter.
            for attempt in 0.. {
                ensure!(attempt < 100, "the new signer never signed");
                newcomer(lab, &format!("n{attempt}"), near, to)?;
                let seen = certificates(lab)?;
                if seen.values().any(|seen| seen.issuer == "second") {
                    break;
                }
            }
            ensure!(
                before.keys().all(|of| certificates(lab)
                    .is_ok_and(|now| now.get(of).is_none_or(|seen| seen.issuer == "first"))),
                "nobody had to ask again for it"
            );
            calls_more(ways)?;
            round_trip(&mut open, "with both signers")
        })
    });
}
