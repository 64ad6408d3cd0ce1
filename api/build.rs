//! Compiles the protos without protoc: protox parses, tonic-prost-build generates.

use std::path::PathBuf;

use prost::Message;

const PROTOS: [&str; 22] = [
    "proto/discovery.proto",
    "proto/workload.proto",
    "proto/egress.proto",
    "proto/authorization.proto",
    "proto/ca.proto",
    "proto/zds.proto",
    "proto/machine.proto",
    "proto/waypoint.proto",
    "proto/envoy_core.proto",
    "proto/envoy_type.proto",
    "proto/rpc_status.proto",
    "proto/ext_authz.proto",
    "proto/rate_limit_descriptor.proto",
    "proto/rate_limit.proto",
    "proto/ext_proc_mode.proto",
    "proto/ext_proc.proto",
    "proto/otlp_common.proto",
    "proto/otlp_resource.proto",
    "proto/otlp_trace.proto",
    "proto/otlp_traces.proto",
    "proto/otlp_log.proto",
    "proto/otlp_logs.proto",
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
        // Key material is printed by nobody.
        .skip_debug([".ambit.waypoint.v1.Secret"])
        .compile_fds(descriptors)?;
    Ok(())
}
