//! `ambit` against a real cluster: what it changes, what it looks at, what it says when it cannot.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result, ensure};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::{
    mesh::{Part, SYSTEM},
    place::DATAPLANE_MODE,
    program::{ambit, kubectl, run},
    run::Test,
};

/// In, out, and not at all where that would break something.
pub(super) async fn enroll_takes_running_pods_in_and_unenroll_lets_them_go(
    test: &Test,
) -> Result<()> {
    let shop = test.plain("shop").await?;
    let web = shop.server("web").start().await?;
    let phone = shop.client("phone").start().await?;
    let name = shop.name.as_str();
    let label = || async {
        let namespace = test.cluster.object("", "v1", "Namespace", name).await?;
        Ok::<_, anyhow::Error>(namespace.labels().get(DATAPLANE_MODE).cloned())
    };

    let wall = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: wall}\n\
        spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080}]}]}";
    shop.apply(wall).await?;
    ambit(&["enroll", name]).await?.with(2)?.says("15008")?;
    ensure!(label().await?.is_none(), "it was labelled all the same");
    shop.remove(wall).await?;

    ambit(&["enroll", name]).await?.with(0)?.says("2 pods")?;
    ensure!(
        label().await?.as_deref() == Some("ambient"),
        "it has no label"
    );
    web.enrolled().await?;
    phone.enrolled().await?;
    phone.reaches("http://web/").await?;
    ambit(&["unenroll", name])
        .await?
        .with(0)?
        .says("out of the mesh")?;
    ensure!(label().await?.is_none(), "the label is still there");
    web.left_the_mesh().await?;
    phone.reaches("http://web/").await?;

    ambit(&["enroll", SYSTEM])
        .await?
        .with(2)?
        .says("never captured")?;
    ambit(&["enroll", "no-such-namespace"])
        .await?
        .with(2)?
        .says("there is no namespace no-such-namespace")?;
    Ok(())
}

/// A look before an installation, at a cluster that has one.
pub(super) async fn check_finds_this_cluster_fit_and_names_what_is_in_the_way(
    test: &Test,
) -> Result<()> {
    let shop = test.plain("shop").await?;
    shop.apply(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: wall}\n\
         spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 8080}]}]}",
    )
    .await?;
    let items: Vec<Value> = ambit(&["check", "-o", "json"]).await?.with(0)?.json()?;
    let found = |state: &str, words: &str| {
        let has = |item: &&Value| {
            item["state"] == state
                && item["found"]
                    .as_str()
                    .is_some_and(|text| text.contains(words))
        };
        items
            .iter()
            .find(has)
            .cloned()
            .with_context(|| format!("no {state} {words:?} in {items:?}"))
    };
    found("good", "Kubernetes 1.")?;
    found("good", "rights to install")?;
    found("good", "this mesh is installed")?;
    found("good", "kernels")?;
    let wall = found("doubt", &format!("{}/wall", shop.name))?;
    ensure!(
        wall["remedy"]
            .as_str()
            .is_some_and(|text| text.contains("15008")),
        "{wall}"
    );
    Ok(())
}

/// A folder for somebody who helps from afar.
pub(super) async fn a_dump_holds_what_helps_and_no_secret(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    let marker = format!("secret-of-{}", shop.name);
    let mut web = shop.server("web");
    web.container["env"] = json!([{ "name": "PASSWORD", "value": marker }]);
    web.start().await?;
    let folder = std::env::temp_dir().join(format!("ambit-e2e-dump-{}", shop.name));
    let _ = fs::remove_dir_all(&folder);
    let to = folder.to_str().context("a path that is no text")?;
    ambit(&["dump", "--to", to]).await?.with(0)?;
    let result = contents(test, &folder, &marker).await;
    fs::remove_dir_all(&folder)?;
    result
}

async fn contents(test: &Test, folder: &std::path::Path, marker: &str) -> Result<()> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        for secret in ["PRIVATE KEY", marker] {
            ensure!(!text.contains(secret), "{} holds {secret}", path.display());
        }
        files.insert(
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
        );
    }
    let mut expected: Vec<String> = [
        "pods.yaml",
        "authorizationpolicies.yaml",
        "events.yaml",
        "missing.txt",
    ]
    .map(str::to_owned)
    .into();
    for (part, page) in [
        (Part::Istiod, "debug-syncz"),
        (Part::Ztunnel, "config_dump"),
        (Part::Agent, "readyz"),
    ] {
        for pod in test.mesh().pods(part).await? {
            let pod = pod.name_any();
            expected.extend([
                format!("{pod}.log"),
                format!("{pod}.metrics"),
                format!("{pod}.{page}"),
            ]);
        }
    }
    let missing: Vec<&String> = expected
        .iter()
        .filter(|name| !files.contains(*name))
        .collect();
    ensure!(
        missing.is_empty(),
        "{missing:?} are not among {files:?}; missing.txt: {}",
        fs::read_to_string(folder.join("missing.txt"))?
    );
    let dump = files.iter().find(|name| name.ends_with(".config_dump"));
    let dump = fs::read_to_string(folder.join(dump.context("no config_dump")?))?;
    let dump: Value = serde_json::from_str(&dump)?;
    ensure!(
        dump["workloads"]
            .as_array()
            .is_some_and(|all| !all.is_empty()),
        "no workloads in it"
    );
    Ok(())
}

/// The script completes every command.
pub(super) async fn completion_is_a_script_that_bash_takes(_: &Test) -> Result<()> {
    let script = ambit(&["completion", "bash"]).await?.with(0)?.out;
    let line = format!(
        "{script}\nCOMP_WORDS=(ambit wayp) COMP_CWORD=1\n_ambit ambit wayp ambit\necho \"completed: ${{COMPREPLY[*]}}\""
    );
    run("bash".into(), &["--noprofile", "--norc", "-c", &line], "")
        .await?
        .with(0)?
        .says("completed: waypoint")?;
    Ok(())
}

/// One line that says what it was and where to look.
pub(super) async fn what_keeps_ambit_from_the_cluster_is_said_in_one_line(
    test: &Test,
) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("ambit-e2e-{}", test.plain("shop").await?.name));
    fs::create_dir_all(&folder)?;
    let result = strangers(test, &folder).await;
    fs::remove_dir_all(&folder)?;
    result
}

async fn strangers(test: &Test, folder: &std::path::Path) -> Result<()> {
    let shop = test.plain("yard").await?;
    let own = kubectl(
        &[
            "config",
            "view",
            "--raw",
            "--minify",
            "--flatten",
            "-o",
            "json",
        ],
        "",
    )
    .await?
    .with(0)?;
    let own: Value = own.json()?;
    let with = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut config = own.clone();
        change(&mut config);
        let path = folder.join(name);
        fs::write(&path, config.to_string())?;
        Ok::<_, anyhow::Error>(path.display().to_string())
    };
    shop.account("nobody").await?;
    let token = kubectl(&["create", "token", "nobody", "-n", &shop.name], "")
        .await?
        .with(0)?
        .out;
    let absent = folder.join("absent").display().to_string();
    let deaf = with("deaf", &|config| {
        config["clusters"][0]["cluster"]["server"] = json!("https://127.0.0.1:1");
    })?;
    let nobody = with("nobody", &|config| {
        config["users"][0]["user"] = json!({ "token": token.trim() });
    })?;
    for (config, words) in [
        (absent.as_str(), "absent"),
        (&deaf, "127.0.0.1:1"),
        (&nobody, "forbidden"),
    ] {
        for command in ["status", "check"] {
            // A check may look at what it is allowed to see, and says that the rest is forbidden.
            if (command, words) == ("check", "forbidden") {
                continue;
            }
            let ended = ambit(&["--kubeconfig", config, command])
                .await?
                .with(2)?
                .says(words)?;
            ensure!(
                ended.out.is_empty() && ended.err.lines().count() == 1,
                "not one line: {}{}",
                ended.out,
                ended.err
            );
        }
    }
    Ok(())
}
