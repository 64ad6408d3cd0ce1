//! Server and client of the Gateway API's conformance suite for meshes, under the names by which its pods call them.
//!
//! `server`  HTTP/1 and HTTP/2 (`--port`), the same under TLS (`--tls` names which of them), gRPC (`--grpc`), TCP (`--tcp`);
//!           answers with what it was asked, a line a fact (`Hostname=`, `RequestHeader=` …)
//! `client`  `<scheme>://<host><path> [--method M] [-H k:v]… [--count N]`; prints each answer as such lines. The suite runs
//!           it in a pod and reads what it prints

mod client;
mod server;

use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Parser;

/// What gRPC carries: the lines.
#[derive(Clone, PartialEq, prost::Message)]
struct Said {
    #[prost(string, tag = "1")]
    text: String,
}

/// The one call there is.
const CALL: &str = "/ambit.e2e.Echo/Echo";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().collect();
    let called = arguments.first().context("no name")?;
    let called = Path::new(called).file_name().and_then(|name| name.to_str());
    // Under its own name it takes the other as its first word.
    let name = match called {
        Some(name @ ("server" | "client")) => name.to_owned(),
        _ if arguments.len() > 1 => arguments.remove(1),
        _ => String::new(),
    };
    match &*name {
        "server" => server::Server::parse_from(arguments).run().await,
        "client" => client::Client::parse_from(arguments).run().await,
        other => bail!("server or client, not {other:?}"),
    }
}

/// One gRPC message, uncompressed, behind its length.
fn framed(text: String) -> Vec<u8> {
    let message = prost::Message::encode_to_vec(&Said { text });
    let mut bytes = vec![0];
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend(message);
    bytes
}

/// The text of the first message.
fn unframed(bytes: &[u8]) -> Result<String> {
    let message = bytes.get(5..).context("no message")?;
    let said: Said = prost::Message::decode(message)?;
    Ok(said.text)
}
