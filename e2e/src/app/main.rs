//! What the tests run inside pods where no ordinary program counts exactly enough.
//!
//! `serve`   HTTP/1, HTTP/2 and gRPC health on one port, a TCP echo on another, datagrams; says who answers, who asked and what
//! `ask`     what a file of `features/` asks, and what was heard
//! `load`    a steady stream of requests on new and on kept connections, every failure counted
//! `datagram` one there and one back
//! `hold`    one TCP connection that sends and expects a number ten times a second until it is told to end
//! `pour`    one TCP connection with a bulk both ways, every byte compared, until it is told to end

mod ask;
mod datagram;
mod hold;
mod load;
mod pour;
mod provider;
mod serve;
mod tls;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
enum Verb {
    Serve(serve::Serve),
    Ask(ask::Ask),
    Datagram(datagram::Datagram),
    Load(load::Load),
    Hold(hold::Hold),
    Pour(pour::Pour),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    match Verb::parse() {
        Verb::Serve(serve) => serve.run().await,
        Verb::Ask(ask) => ask.run().await,
        Verb::Datagram(datagram) => datagram.run().await,
        Verb::Load(load) => load.run().await,
        Verb::Hold(hold) => hold.run().await,
        Verb::Pour(pour) => pour.run().await,
    }
}

/// A line on standard input, or its end: the test has seen enough. On a thread of its own: a read nobody waits for must not
/// keep the program from ending.
async fn told_to_end() {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::Read::read(&mut std::io::stdin(), &mut [0]);
        let _ = tell.send(());
    });
    let _ = told.await;
}
