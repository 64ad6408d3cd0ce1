//! What connections leave behind in a ztunnel: asked when it has come to rest.

use anyhow::{Result, ensure};
use lab::{Lab, wait};

use super::SOON;

/// What connections might leave in a ztunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) fds: u64,
    pub(crate) tasks: u64,
    pub(crate) sockets: u64,
    pub(crate) memory: u64,
}

impl Left {
    pub(crate) fn of(lab: &Lab, node: usize) -> Result<Self> {
        let metrics = lab.metrics(node)?;
        let value = |name: &str| -> Result<u64> {
            let found = metrics.select(name, &[]).count();
            ensure!(found > 0, "no metric {name}");
            Ok(metrics.sum(name, &[]) as u64)
        };
        Ok(Self {
            fds: value("process_open_fds")?,
            tasks: value("tokio_num_alive_tasks")?,
            sockets: value("istio_tcp_sockets_open")?,
            memory: value("process_resident_memory_bytes")?,
        })
    }

    pub(crate) fn open(&self) -> [u64; 3] {
        [self.fds, self.tasks, self.sockets]
    }
}

/// The state once no application socket is open and nothing changes any more: the same in ten looks.
pub(crate) fn quiet(lab: &Lab, node: usize) -> Result<Left> {
    let (mut last, mut same) = (None, 0);
    wait::until(&format!("node {node} to come to rest"), SOON, || {
        let now = Left::of(lab, node)?;
        let open = Some(now.open());
        same = if open == last { same + 1 } else { 0 };
        last = open;
        Ok(if now.sockets == 0 && same == 9 {
            wait::Probe::Ready(now)
        } else {
            wait::Probe::NotYet(format!("{now:?}"))
        })
    })
}

/// The state once everything but the memory is as it was, exactly.
pub(crate) fn back_to(lab: &Lab, node: usize, before: &Left) -> Result<Left> {
    wait::until(&format!("node {node} to be as before"), SOON, || {
        let now = Left::of(lab, node)?;
        Ok(if now.open() == before.open() {
            wait::Probe::Ready(now)
        } else {
            wait::Probe::NotYet(format!("before {before:?}, now {now:?}"))
        })
    })
}

/// The state once there is no more of anything but memory than there was.
pub(crate) fn down_to(lab: &Lab, node: usize, before: &Left) -> Result<Left> {
    wait::until(&format!("node {node} to let go"), SOON, || {
        let now = Left::of(lab, node)?;
        let less = now
            .open()
            .iter()
            .zip(before.open())
            .all(|(now, most)| *now <= most);
        Ok(if less {
            wait::Probe::Ready(now)
        } else {
            wait::Probe::NotYet(format!("before {before:?}, now {now:?}"))
        })
    })
}
