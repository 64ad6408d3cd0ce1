//! Every test, a sentence each. Quiet ones disturb nobody and run a few at a time; loud ones restart parts of the mesh and run alone.

use crate::run::Case;

mod identity;

macro_rules! cases {
    ($loud:literal: $($module:ident { $($name:ident)+ })+) => {
        [$($(Case {
            name: concat!(stringify!($module), "::", stringify!($name)),
            loud: $loud,
            body: |test| Box::pin($module::$name(test)),
        },)+)+]
    };
}

/// All tests in the order in which they run.
pub fn all() -> Vec<Case> {
    let quiet = cases! { false:
        identity {
            across_nodes_the_server_side_sees_the_clients_account
        }
    };
    quiet.into_iter().collect()
}
