//! `ambit-cni`, installed on hosts as `istio-cni`: the CNI plugin. Environment and stdin enter,
//! JSON on stdout and an exit code leave; everything between is [`cni_plugin::plugin`].

use std::io;
use std::process::ExitCode;

fn main() -> ExitCode {
    let env = |name: &str| std::env::var(name).ok();
    match cni_plugin::plugin::run(env, io::stdin().lock(), io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_already_on_stdout) => ExitCode::FAILURE,
    }
}
