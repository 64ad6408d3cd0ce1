//! `istiod-lite run | token | vm | check`

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use api::k8s::dir;
use api::k8s::objects::{Kind, Object, ObjectKey};
use clap::Parser as _;
use istiod_lite::cluster;
use istiod_lite::config::{Book, Check, Cli, Command, JoinToken, Run, Token, Vm};
use istiod_lite::machine::{self, store::Store};
use istiod_lite::token::{Join, LONGEST_JOIN, Named, Request, Tokens};
use istiod_lite::{feed, start};
use ops::drain::{Drain, Drained};
use ops::signals::Signals;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(run) => run_until_told(&run).map(|()| ExitCode::SUCCESS),
        Command::Token(token) => print_token(&token).map(|()| ExitCode::SUCCESS),
        Command::Vm(vm) => of_machines(vm).map(|()| ExitCode::SUCCESS),
        Command::Check(check) => print_faults(&check),
    };
    // One line, whatever the environment says about backtraces.
    done.unwrap_or_else(|error| {
        eprintln!("Error: {error:#}");
        ExitCode::FAILURE
    })
}

#[tokio::main]
async fn run_until_told(run: &Run) -> anyhow::Result<()> {
    let format = run.log_format.parse().context("--log-format")?;
    let log = ops::log::init(&levels(&run.log), format).context("--log")?;
    let drain = Drain::new();
    let mut signals = Signals::listen()?;
    let mut told = pin!(signals.next());
    // An API server that cannot be reached is waited for, however long.
    let started = tokio::select! {
        started = start::start(run, &drain) => Some(started?),
        () = &mut told => None,
    };
    if let Some(running) = started {
        tracing::info!(
            grpc = %running.grpc,
            monitoring = %running.monitoring,
            webhook = running.webhook.map(tracing::field::display),
            input = ?run.input(),
            "serving"
        );
        told.await;
    }
    tracing::info!("ending");
    match drain.drain(GRACE).await {
        Drained::Quiet => tracing::info!("ended"),
        Drained::Cut(connections) => tracing::warn!(connections, "ended, connections cut"),
    }
    log.flush(Duration::from_secs(1));
    Ok(())
}

/// kube reports a failure at every attempt, beside our one line; who wants that says so.
fn levels(given: &str) -> String {
    let quiet = ["kube_runtime=error", "kube_client::client::builder=off"];
    let unsaid = quiet.into_iter().filter(|level| {
        let part = level.split([':', '=']).next().unwrap_or_default();
        !given.contains(part)
    });
    std::iter::once(given)
        .chain(unsaid)
        .collect::<Vec<_>>()
        .join(",")
}

#[allow(clippy::print_stdout)] // the token is the output
fn print_token(token: &Token) -> anyhow::Result<()> {
    let (mut pod, mut node) = (None, None);
    if let Some(name) = &token.pod {
        let found = find_pod(token, name)?;
        node = found.spec.as_ref().and_then(|spec| spec.node_name.clone());
        pod = Some(Named {
            name: name.clone(),
            uid: found.metadata.uid.clone().unwrap_or_default(),
        });
    }
    let request = Request {
        namespace: token.namespace.clone(),
        service_account: token.service_account.clone(),
        pod,
        node,
        lifetime: token.ttl,
        audience: token.audience.clone(),
    };
    println!("{}", Tokens::open(&token.places.state())?.issue(&request)?);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
#[allow(clippy::print_stdout)] // the token, or the list, is the output
async fn of_machines(vm: Vm) -> anyhow::Result<()> {
    match vm {
        Vm::Token(token) => {
            let join = join(&token)?;
            let tokens = open(&token.book).await?.tokens().await?;
            eprintln!(
                "for {}/{}, as {}",
                join.namespace, join.name, join.service_account
            );
            println!("{}", tokens.issue_join(&join, token.ttl)?);
        }
        Vm::List(book) => {
            for machine in open(&book).await?.list().await? {
                println!("{}", serde_json::to_string(&machine)?);
            }
        }
        Vm::Remove { book, machine } => {
            let (namespace, name) = machine
                .split_once('/')
                .context("namespace/name is needed")?;
            if !machine::remove(&open(&book).await?, namespace, name).await? {
                bail!("no machine {machine} has joined");
            }
        }
    }
    Ok(())
}

async fn open(book: &Book) -> anyhow::Result<Store> {
    if let Some(state) = book.state() {
        return Ok(Store::directory(&state));
    }
    let connection = cluster::connect(book.kubeconfig.as_deref()).await?;
    Ok(Store::cluster(connection.client, &book.system_namespace))
}

/// What a token is to say, if it makes sense.
fn join(token: &JoinToken) -> anyhow::Result<Join> {
    if token.ttl > LONGEST_JOIN {
        bail!("a join token is good for a day at most");
    }
    let name = match (&token.name, &token.group, token.address.first()) {
        (Some(name), _, _) => name.clone(),
        // As Istio calls the entries that it makes of a group.
        (None, Some(group), Some(address)) => {
            format!("{group}-{}", address.to_string().replace(':', "-"))
        }
        _ => {
            let mut random = [0_u8; 4];
            aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("no randomness"))?;
            let base = token.group.as_ref().unwrap_or(&token.service_account);
            format!("{base}-{:08x}", u32::from_be_bytes(random))
        }
    };
    for part in [&token.namespace, &name, &token.service_account] {
        if !machine::is_name(part) {
            bail!("{part:?} cannot be a name");
        }
    }
    Ok(Join {
        namespace: token.namespace.clone(),
        name,
        service_account: token.service_account.clone(),
        group: token.group.clone(),
        addresses: token.address.clone(),
        translated: token.translated,
    })
}

/// A token for a pod that is not there, or that runs as another account, would be refused later
/// and elsewhere: better here.
fn find_pod(token: &Token, name: &str) -> anyhow::Result<std::sync::Arc<api::k8s::objects::Pod>> {
    let directory = &token.places.config_dir;
    let (objects, _) = dir::read(directory).with_context(|| directory.display().to_string())?;
    let key = ObjectKey::new(Kind::Pod, &token.namespace, name);
    let found = objects.into_iter().find_map(|object| match object {
        Object::Pod(pod) if Object::Pod(pod.clone()).key() == key => Some(pod),
        _ => None,
    });
    let pod = found.with_context(|| format!("{} has no {key}", directory.display()))?;
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref());
    let account = account
        .filter(|account| !account.is_empty())
        .unwrap_or("default");
    if account != token.service_account {
        bail!(
            "{key} runs as service account {account:?}, not {:?}",
            token.service_account
        );
    }
    Ok(pod)
}

#[allow(clippy::print_stdout)] // the faults are the output
fn print_faults(check: &Check) -> anyhow::Result<ExitCode> {
    let directory = &check.config_dir;
    let (objects, faults) =
        dir::read(directory).with_context(|| directory.display().to_string())?;
    for fault in &faults {
        println!("{}", feed::line(fault));
    }
    println!("{} objects, {} refused", objects.len(), faults.len());
    Ok(if faults.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// For streams to be told and certificates to be signed to the end.
const GRACE: Duration = Duration::from_secs(10);
