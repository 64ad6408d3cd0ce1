//! gRPC's own interop cases (`google.golang.org/grpc/interop`), client and server of its Go module, through a waypoint.
//! `GRPC_INTEROP_CLIENT=path GRPC_INTEROP_SERVER=path cargo test --workspace --test waypoint interop -- --ignored`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::shop::{Shop, in_shop};

/// All that need neither TLS of their own nor an account at Google.
const CASES: &[(&str, &[&str])] = &[
    ("empty_unary", &[]),
    ("large_unary", &[]),
    ("client_streaming", &[]),
    ("server_streaming", &[]),
    ("ping_pong", &[]),
    ("empty_stream", &[]),
    ("timeout_on_sleeping_server", &[]),
    ("cancel_after_begin", &[]),
    ("cancel_after_first_response", &[]),
    ("status_code_and_message", &[]),
    ("special_status_message", &[]),
    ("custom_metadata", &[]),
    ("unimplemented_method", &[]),
    ("unimplemented_service", &[]),
    ("orca_per_rpc", &[ORCA]),
    (
        "rpc_soak",
        &["--soak_iterations=300", "--soak_max_failures=0", PATIENT],
    ),
    (
        "channel_soak",
        &["--soak_iterations=60", "--soak_max_failures=0", PATIENT],
    ),
];
/// Those that look at what one server says from call to call: several would be asked in turn.
const OF_ONE_SERVER: &[(&str, &[&str])] = &[("orca_oob", &[ORCA])];
const ORCA: &str =
    "--service_config_json={\"loadBalancingConfig\":[{\"test_backend_metrics_load_balancer\":{}}]}";
/// On a busy machine, of debug builds.
const PATIENT: &str = "--soak_per_iteration_max_acceptable_latency_ms=20000";

#[test]
#[ignore = "needs gRPC's interop programs: GRPC_INTEROP_CLIENT=path GRPC_INTEROP_SERVER=path"]
fn every_interop_case_of_grpc_passes_through_a_waypoint() {
    in_shop(|shop| {
        let server = std::env::var("GRPC_INTEROP_SERVER").context("GRPC_INTEROP_SERVER")?;
        for app in &shop.apps {
            let running = app.spawn("interop", [&*server, "--port=9090"])?;
            app.until_listening(&running, 9090)?;
        }
        let lone = shop.lab.pod("shop/lone").node(0).label("app", "lone");
        let lone = lone.start()?;
        let running = lone.spawn("interop", [&*server, "--port=9090"])?;
        lone.until_listening(&running, 9090)?;
        let ports = [("grpc", 9090, 9090)];
        let mut failed = Vec::new();
        for (name, app, cases) in [("both", "web", CASES), ("alone", "lone", OF_ONE_SERVER)] {
            let service = format!("shop/{name}");
            let service = shop.lab.service_for(&service, ("app", app), &ports)?;
            let at = service.at(9090);
            let (host, port) = (
                format!("--server_host={}", at.ip()),
                format!("--server_port={}", at.port()),
            );
            shop.until("the waypoint to serve it", |shop| {
                run(shop, &host, &port, "empty_unary", &[]).is_ok()
            })?;
            for (case, words) in cases {
                match run(shop, &host, &port, case, words) {
                    Ok(()) => eprintln!("{case}: passed"),
                    Err(error) => failed.push(format!("{case}: {error:#}")),
                }
            }
        }
        ensure!(failed.is_empty(), "{}", failed.join("\n"));
        // They went through the waypoint, which saw what they are.
        let metrics = shop.waypoint.pod().metrics()?;
        let seen = metrics.sum("istio_requests_total", &[("request_protocol", "grpc")]);
        ensure!(seen >= 375.0, "only {seen} requests were seen");
        Ok(())
    });
}

fn run(shop: &Shop<'_>, host: &str, port: &str, case: &str, words: &[&str]) -> Result<()> {
    let client = std::env::var("GRPC_INTEROP_CLIENT").context("GRPC_INTEROP_CLIENT")?;
    let case = format!("--test_case={case}");
    let mut all = vec![&*client, host, port, &case];
    all.extend(words);
    let ran = shop.client.command(all)?.within(LONG).run()?;
    ran.success().map(drop)
}

const LONG: Duration = Duration::from_secs(180);
