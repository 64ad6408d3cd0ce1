//! Names of the labels and annotations that mean something in ambient mode.
//!
//! They are Istio's, so that existing YAML works unchanged (`docs/wire.md`, "Labels and
//! annotations"). `(L)` marks a label, `(A)` an annotation.

/// (L) on Namespace and Pod: [`AMBIENT`] enrols, [`DEDICATED`] has new pods given a proxy of their own, [`NONE`] keeps out.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Value of [`DATAPLANE_MODE`] that enrols.
pub const AMBIENT: &str = "ambient";
/// Value of [`DATAPLANE_MODE`] by which pods bring their own proxy, where no node proxy may run. Ours.
pub const DEDICATED: &str = "dedicated";
/// Value that opts out, of [`DATAPLANE_MODE`] as of [`USE_WAYPOINT`].
pub const NONE: &str = "none";

/// (A) on Pod, written by the node agent: whether its traffic is captured.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Value of [`REDIRECTION`]: the pod is captured and speaks HBONE.
pub const REDIRECTION_ENABLED: &str = "enabled";
/// Value of [`REDIRECTION`]: the agent is at work on it.
pub const REDIRECTION_PENDING: &str = "pending";

/// (A) on Pod: `true` leaves inbound connections alone.
pub const BYPASS_INBOUND_CAPTURE: &str = "ambient.istio.io/bypass-inbound-capture";
/// (A) on Pod: `true` or `false` overrides the node's setting for DNS capture.
pub const DNS_CAPTURE: &str = "ambient.istio.io/dns-capture";
/// (A) on Pod: comma-separated ports; what the pod calls there is not captured.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeOutboundPorts";
/// (A) on Pod: comma-separated ranges of addresses; what the pod calls there is not captured.
pub const EXCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
/// (A) on Pod: comma-separated ranges of addresses, or `*`; only what the pod calls there is captured.
pub const INCLUDE_OUTBOUND_RANGES: &str = "traffic.sidecar.istio.io/includeOutboundIPRanges";
/// (A) on Pod: comma-separated ports; who calls the pod there is not captured.
pub const EXCLUDE_INBOUND_PORTS: &str = "traffic.sidecar.istio.io/excludeInboundPorts";
/// (A) on Pod: comma-separated interfaces whose traffic is captured as if it came from the pod.
pub const REROUTE_VIRTUAL_INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
/// (A) on Pod, written by the injector: the pod carries a sidecar.
pub const SIDECAR_STATUS: &str = "sidecar.istio.io/status";

/// (L) on Namespace, Service, ServiceEntry, WorkloadEntry, Pod: name of the waypoint, or [`NONE`].
pub const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// (L) beside [`USE_WAYPOINT`]: namespace of that waypoint.
pub const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// (L) on Service and ServiceEntry, or on their Namespace: gateways go through the waypoint too.
pub const INGRESS_USE_WAYPOINT: &str = "istio.io/ingress-use-waypoint";
/// (L) beside [`USE_WAYPOINT`]: name of a second waypoint, tried on a share of the connections.
pub const USE_WAYPOINT_CANARY: &str = "istio.io/use-waypoint-canary";
/// (L) beside [`USE_WAYPOINT_CANARY`]: namespace of that waypoint.
pub const USE_WAYPOINT_CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
/// (A) beside [`USE_WAYPOINT_CANARY`]: its share, 0 to 100; 0 if left out.
pub const USE_WAYPOINT_CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
/// (L) on Gateway, or on its GatewayClass: `service` (default), `workload`, `all` or `none`.
pub const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// (A) on Gateway, or on its GatewayClass: `PROXY`, `PROXY/<port>` or `NONE`: how connections to
/// a waypoint's pod are handed to it.
pub const WAYPOINT_INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
/// (L) on Namespace: `pass` or `refuse`, what becomes of traffic to whom names a waypoint that is
/// missing or not ready. Ours.
pub const WAYPOINT_UNREADY: &str = "ambit.io/waypoint-unready";
/// Value of [`WAYPOINT_UNREADY`]: without the waypoint, as under Istio.
pub const WAYPOINT_UNREADY_PASS: &str = "pass";
/// (L) on Namespace, Service, ServiceEntry, WorkloadEntry, Pod: `true` refuses what comes around the
/// waypoint. Ours.
pub const WAYPOINT_ONLY: &str = "ambit.io/waypoint-only";
/// (L) on Namespace, Pod, WorkloadEntry: `allow`, `log` or `refuse`, what becomes of connections to destinations that the mesh
/// does not know. Ours.
pub const EGRESS: &str = "ambit.io/egress";
/// (A) on WorkloadEntry: why its machine is not well; it gets no new connections. Ours.
pub const UNHEALTHY: &str = "ambit.io/unhealthy";
/// (A) on WorkloadEntry: `true`: it gets new connections only while its condition [`HEALTHY`] is True. Istio's.
pub const HEALTH_CHECKS: &str = "proxy.istio.io/health-checks-enabled";
/// Condition of a WorkloadEntry: its machine says that it is well. Istio's.
pub const HEALTHY: &str = "Healthy";
/// (A) on WorkloadEntry: the machine (`namespace/name`) that it was made for. Ours.
pub const MACHINE: &str = "ambit.io/machine";
/// (A) on WorkloadEntry: the WorkloadGroup that it was made from by itself. Istio's.
pub const AUTO_REGISTRATION_GROUP: &str = "istio.io/autoRegistrationGroup";
/// (A) on WorkloadEntry: who made it and looks after it. Istio's.
pub const WORKLOAD_CONTROLLER: &str = "istio.io/workloadController";
/// (A) on WorkloadEntry: since when its machine is connected. Istio's.
pub const CONNECTED_AT: &str = "istio.io/connectedAt";
/// (A) on WorkloadEntry: since when it is not. Istio's.
pub const DISCONNECTED_AT: &str = "istio.io/disconnectedAt";
/// (L) on Namespace, Pod, WorkloadEntry: [`UDP_ENABLED`] or [`UDP_DISABLED`], whether the mesh carries their UDP. Ours.
pub const UDP: &str = "ambit.io/udp";
/// A value of [`UDP`].
pub const UDP_ENABLED: &str = "enabled";
/// A value of [`UDP`].
pub const UDP_DISABLED: &str = "disabled";
/// (A) on Gateway: `true` tells apps behind it who their client is, in `x-forwarded-client-cert`.
pub const XFCC_CLIENT_IDENTITY: &str = "ambient.istio.io/xfcc-include-client-identity";
/// (A) on Gateway: name of its Service and Deployment, if it is not that of the Gateway.
pub const GATEWAY_NAME_OVERRIDE: &str = "gateway.istio.io/name-override";
/// (A) on Gateway: account of its pods, if it has not the name of the Gateway. On one of class `istio-remote`: of the pods
/// of the gateway that it stands for, if that is not called `<name>-istio-remote`.
pub const GATEWAY_SERVICE_ACCOUNT: &str = "gateway.istio.io/service-account";
/// (L) on what was made for a Gateway: by whom.
pub const GATEWAY_MANAGED: &str = "gateway.istio.io/managed";
/// Value of [`GATEWAY_MANAGED`] on what was made for a waypoint.
pub const MANAGED_WAYPOINT: &str = "istio.io-mesh-controller";
/// Value of [`GATEWAY_MANAGED`] on what was made for an east-west gateway.
pub const MANAGED_EAST_WEST: &str = "istio.io-eastwest-controller";
/// Selects what was made for Gateways of ours.
pub fn managed() -> String {
    format!("{GATEWAY_MANAGED} in ({MANAGED_WAYPOINT},{MANAGED_EAST_WEST})")
}
/// (L) on what was made for a Gateway: which Gateway.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// (A) on AuthorizationPolicy: `true` logs the verdict instead of enforcing it.
pub const DRY_RUN: &str = "istio.io/dry-run";

/// (A) on HTTPRoute: after how long without an answer a request is made once more, beside the first.
pub const HEDGE_AFTER: &str = "ambit.io/hedge-after";
/// (A) on HTTPRoute: how often at most, 1 to 3; 1 if left out.
pub const HEDGE_AT_MOST: &str = "ambit.io/hedge-at-most";

/// (L) on Service and ServiceEntry: `true`: it is GLOBAL, other networks may call it, as far as `serviceScopeConfigs` of the
/// mesh's settings let the label count.
pub const GLOBAL: &str = "istio.io/global";

/// (L) on the root namespace: the network of every workload of the cluster.
pub const NETWORK: &str = "topology.istio.io/network";
/// (L) on Node: region.
pub const REGION: &str = "topology.kubernetes.io/region";
/// (L) on Node: zone.
pub const ZONE: &str = "topology.kubernetes.io/zone";
/// (L) on Node: sub-zone.
pub const SUBZONE: &str = "topology.istio.io/subzone";

/// (L) on Pod and WorkloadEntry: `http` means the application itself speaks HBONE.
pub const TUNNEL: &str = "networking.istio.io/tunnel";
/// Value of [`TUNNEL`].
pub const TUNNEL_HTTP: &str = "http";
/// (A) on Service, or on its Namespace: how near an endpoint must be.
pub const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";
/// (L) on ServiceEntry: `false` declines automatic addresses.
pub const ENABLE_AUTOALLOCATE_IP: &str = "networking.istio.io/enable-autoallocate-ip";

/// (L) on Pod: name for telemetry, first choice.
pub const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
/// (L) on Pod: revision for telemetry, first choice.
pub const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
/// (L) on Pod: overrides the name of the controller that made it.
pub const WORKLOAD_NAME: &str = "service.istio.io/workload-name";
/// (L) on Pod: name for telemetry, second choice.
pub const APP_NAME: &str = "app.kubernetes.io/name";
/// (L) on Pod: name for telemetry, third choice.
pub const APP: &str = "app";
/// (L) on Pod: revision for telemetry, second choice.
pub const APP_VERSION: &str = "app.kubernetes.io/version";
/// (L) on Pod: revision for telemetry, third choice.
pub const VERSION: &str = "version";
/// (L) on Pod, written by the Deployment controller: hash at the end of the ReplicaSet's name.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// (L) on EndpointSlice: the Service it belongs to.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
