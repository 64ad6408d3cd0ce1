//! gRPC as its own tools speak it (grpc-core, from Debian's package for Python) through the mesh: one answer, many, and a conversation.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    place::Place,
    pod::{Pod, Said},
    run::Test,
    wait::eventually,
};

/// Messages are bytes as they are: no schema, and so no generated code.
const SERVER: &str = r#"
import grpc
from concurrent.futures import ThreadPoolExecutor
methods = {
    "/e2e.Shop/Ask": grpc.unary_unary_rpc_method_handler(lambda one, _: b"heard " + one),
    "/e2e.Shop/List": grpc.unary_stream_rpc_method_handler(lambda one, _: (b"%d" % n for n in range(int(one)))),
    "/e2e.Shop/Sum": grpc.stream_unary_rpc_method_handler(lambda many, _: b"%d" % sum(int(one) for one in many)),
    "/e2e.Shop/Talk": grpc.stream_stream_rpc_method_handler(lambda many, _: (b"heard " + one for one in many)),
}
class Shop(grpc.GenericRpcHandler):
    def service(self, call):
        return methods.get(call.method)
server = grpc.server(ThreadPoolExecutor(8), handlers=[Shop()])
server.add_insecure_port("[::]:50051")
server.start()
server.wait_for_termination()
"#;

/// All four kinds of call on one connection; the conversation waits for each answer before it goes on.
const CLIENT: &str = r#"
import grpc, queue, sys
channel = grpc.insecure_channel("rpc:50051")
try:
    assert channel.unary_unary("/e2e.Shop/Ask")(b"one", timeout=10) == b"heard one"
    assert [int(n) for n in channel.unary_stream("/e2e.Shop/List")(b"1000", timeout=20)] == list(range(1000))
    assert channel.stream_unary("/e2e.Shop/Sum")((b"%d" % n for n in range(1000)), timeout=20) == b"499500"
    said = queue.SimpleQueue()
    heard = channel.stream_stream("/e2e.Shop/Talk")(iter(said.get, None), timeout=20)
    for n in range(100):
        said.put(b"%d" % n * 1000)
        assert next(heard) == b"heard " + b"%d" % n * 1000
    said.put(None)
    assert list(heard) == []
    print("all of it")
except grpc.RpcError as error:
    sys.exit(f"{error.code().name}: {error.details()}")
"#;

/// A conversation that goes on until it is broken; says so when it has begun, and how it ended.
const LISTENER: &str = r#"
import grpc, sys, time
def every_tenth():
    while True:
        yield b"still there"
        time.sleep(0.1)
try:
    for _ in grpc.insecure_channel("rpc:50051").stream_stream("/e2e.Shop/Talk")(every_tenth(), timeout=90):
        open("/tmp/heard", "w")
except grpc.RpcError as error:
    print(error.code().name)
"#;

async fn calls(from: &Pod) -> Result<Said> {
    from.exec(["python3", "-c", CLIENT]).await
}

async fn served(from: &Pod) -> Result<()> {
    eventually(&format!("{} is served by gRPC", from.name), || async {
        let said = calls(from).await?.success()?;
        ensure!(said.contains("all of it"), "{said}");
        Ok(())
    })
    .await
}

async fn refused(from: &Pod) -> Result<()> {
    eventually(&format!("{} is refused by gRPC", from.name), || async {
        let said = calls(from).await?;
        ensure!(!said.success, "served: {}", said.out);
        ensure!(said.err.contains("UNAVAILABLE"), "{}", said.err);
        Ok(())
    })
    .await
}

async fn start(shop: &Place, test: &Test) -> Result<[Pod; 3]> {
    let probe = json!({ "tcpSocket": { "port": 50051 }, "periodSeconds": 1 });
    let server = shop.pod("rpc", &["python3", "-c", SERVER]).readiness(probe);
    server.on(test.node(0)).start().await?;
    shop.apply(
        "apiVersion: v1\nkind: Service\nmetadata: {name: rpc}\nspec: {selector: {app: rpc}, ports: [{name: grpc, port: 50051}]}",
    )
    .await?;
    Ok([
        shop.client("friend").on(test.node(1)).start().await?,
        shop.client("near").on(test.node(0)).start().await?,
        shop.client("stranger").on(test.node(1)).start().await?,
    ])
}

/// Across nodes and on one, under STRICT and a policy by account; a refused caller is told in gRPC's own words, and a denial ends a
/// conversation that is open.
pub(super) async fn grpc_calls_and_streams_pass_by_policy_across_nodes(test: &Test) -> Result<()> {
    let shop = test.ambient("shop").await?;
    shop.apply(super::policy::STRICT).await?;
    let [friend, near, stranger] = start(&shop, test).await?;
    for pod in [&friend, &near, &stranger] {
        served(pod).await?;
    }
    let allow = |names: &[&str]| {
        let principals: Vec<String> = names
            .iter()
            .map(|name| format!("cluster.local/ns/{}/sa/{name}", shop.name))
            .collect();
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": { "name": "rule" },
            "spec": { "selector": { "matchLabels": { "app": "rpc" } }, "action": "ALLOW",
                "rules": [{ "from": [{ "source": { "principals": principals } }], "to": [{ "operation": { "ports": ["50051"] } }] }] },
        })
        .to_string()
    };
    shop.apply(&allow(&["friend", "near"])).await?;
    refused(&stranger).await?;
    served(&friend).await?;
    served(&near).await?;

    let conversation = friend.exec(["python3", "-c", LISTENER]);
    let denial = async {
        eventually("the conversation has begun", || async {
            friend.sh("test -e /tmp/heard").await?.success()
        })
        .await?;
        shop.apply(&allow(&["near"])).await
    };
    let (ended, denied) = tokio::join!(conversation, denial);
    denied?;
    let ended = ended?.success().context("the conversation")?;
    ensure!(ended.trim() == "UNAVAILABLE", "it ended with {ended:?}");
    refused(&friend).await?;
    served(&near).await
}
