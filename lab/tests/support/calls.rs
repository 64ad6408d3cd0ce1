//! Calls on every way through the mesh while something changes, each on a connection of its own, and counted.

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use anyhow::{Result, ensure};
use lab::{Lab, Pod, wait};

use super::{SOON, Server, talk};

/// Callers of each kind at a time.
const CALLERS: usize = 2;

/// One way through the mesh, and how its calls went.
pub(crate) struct Way {
    name: &'static str,
    pub(crate) client: Pod,
    pub(crate) to: SocketAddr,
    /// By each caller.
    done: [AtomicUsize; CALLERS],
    lost: Mutex<Vec<String>>,
}

impl Way {
    pub(crate) fn new(name: &'static str, client: &Pod, to: SocketAddr) -> Self {
        Self {
            name,
            client: client.clone(),
            to,
            done: Default::default(),
            lost: Mutex::default(),
        }
    }

    /// Calls one after the other, each on a connection of its own.
    fn call_until(&self, caller: usize, stop: &AtomicBool) {
        while !stop.load(SeqCst) {
            match talk(&self.client, self.to, "a call in the middle of the change") {
                Ok(_) => drop(self.done[caller].fetch_add(1, SeqCst)),
                Err(why) => self.lost.lock().unwrap().push(format!("{why:#}")),
            }
        }
    }

    fn done(&self) -> [usize; CALLERS] {
        self.done.each_ref().map(|done| done.load(SeqCst))
    }
}

/// Waits until each way has been gone some more times by each of its callers: what was on its way before has come to its end.
pub(crate) fn calls_more(ways: &[Way]) -> Result<()> {
    let before: Vec<_> = ways.iter().map(Way::done).collect();
    wait::until_true("calls on every way", SOON * 2, || {
        let more = |(way, before): (&Way, &[usize; CALLERS])| {
            let mut callers = way.done().into_iter().zip(before);
            callers.all(|(now, before)| now > before + 5)
        };
        ways.iter().zip(&before).all(more)
    })
}

/// Runs `change` while every way to two servers is called all the time, and expects that no call is lost.
pub(crate) fn while_calling(lab: &Lab, change: impl FnOnce(&[Way]) -> Result<()>) -> Result<()> {
    lab.namespace("shop").ambient()?;
    lab.namespace("out").plain()?;
    let server = lab.pod("shop/web").node(0).service_account("web").start()?;
    let near = lab.pod("shop/near").node(0).start()?;
    let far = lab.pod("shop/far").node(1).start()?;
    let outsider = lab.pod("out/side").node(1).start()?;
    let _meshed = Server::echo(&server, 8080)?;
    let _unmeshed = Server::echo(&outsider, 8080)?;
    let over_ipv6 = SocketAddr::new(server.ip6()?, 8080);
    let ways = [
        Way::new("through a tunnel", &far, server.at(8080)),
        Way::new("through a tunnel, IPv6", &far, over_ipv6),
        Way::new("within the node", &near, server.at(8080)),
        Way::new("in plain text", &outsider, server.at(8080)),
        Way::new("out of the mesh", &near, outsider.at(8080)),
    ];
    calling(&ways, change)
}

/// Runs `change` while these are called all the time, and expects that no call is lost.
#[allow(clippy::print_stdout)] // the count is what the test is about
pub(crate) fn calling(ways: &[Way], change: impl FnOnce(&[Way]) -> Result<()>) -> Result<()> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for way in ways {
            for caller in 0..CALLERS {
                let stop = &stop;
                scope.spawn(move || way.call_until(caller, stop));
            }
        }
        let changed = calls_more(ways).and_then(|()| change(ways));
        stop.store(true, SeqCst);
        changed
    })?;
    for way in ways {
        let lost = way.lost.lock().unwrap();
        let done: usize = way.done().iter().sum();
        let report = format!("{}: {done} calls, {} lost", way.name, lost.len());
        println!("{report}");
        ensure!(lost.is_empty(), "{report}: {lost:#?}");
    }
    Ok(())
}
