//! Compiles the protos without protoc: protox parses, tonic-prost-build generates.

use std::path::PathBuf;

use prost::Message;

const PROTOS: [&str; 10] = [
    "proto/discovery.proto",
    "proto/workload.proto",
    "proto/authorization.proto",
    "proto/ca.proto",
    "proto/zds.proto",
    "proto/waypoint.proto",
    "proto/envoy_core.proto",
    "proto/envoy_type.proto",
    "proto/rpc_status.proto",
    "proto/ext_authz.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for proto in PROTOS {
        println!("cargo:rerun-if-changed={proto}");
    }
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".istio")
        // In the order of their keys: equal content is equal bytes.
        .btree_map(".ambit")
        .compile_fds(descriptors)?;
    Ok(())
}
