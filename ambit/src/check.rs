//! `ambit check`: can this cluster carry the mesh? Reads, judges, changes nothing.
//!
//! 1. facts: version, nodes, rights, meshes and CNIs that are there, NetworkPolicies  [`facts`]
//!    and objects that would have no effect                                           [`idle`]
//! 2. findings                                                                       [`judge`]

mod facts;
mod idle;
mod judge;

use clap::Args;
use serde::Serialize;

use crate::Outcome;
use crate::cluster::Access;
use crate::output::{self, Format};

/// Flags of `check`.
#[derive(Debug, Args)]
pub(crate) struct Check {
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Item {
    state: State,
    /// What was looked at, and what was found.
    found: String,
    /// What to do about it; empty when nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

/// How it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be.
    Good,
    /// The mesh will run; something else may suffer, or could not be looked at.
    Doubt,
    /// The mesh will not work here.
    Bad,
}

impl Check {
    pub(crate) async fn run(&self, access: &Access) -> anyhow::Result<Outcome> {
        let client = access.connect().await?;
        let facts = facts::collect(&client, &access.system).await?;
        let items = judge::items(&facts);
        output::print(self.output, &items, |items| table(items))?;
        let bad = items.iter().any(|item| item.state == State::Bad);
        Ok(if bad { Outcome::Wrong } else { Outcome::Well })
    }
}

fn table(items: &[Item]) -> String {
    let mut text = String::new();
    for item in items {
        let mark = match item.state {
            State::Good => "ok",
            State::Doubt => "??",
            State::Bad => "NO",
        };
        text += &format!("{mark}  {}\n", item.found);
        if !item.remedy.is_empty() {
            text += &format!("    {}\n", item.remedy);
        }
    }
    text
}
