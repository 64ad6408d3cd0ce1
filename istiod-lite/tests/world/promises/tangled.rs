//! Objects that get into each other's way more than any scenario's do.

use api::k8s::objects::Object;

use super::objects;

/// How many of the pool are tangled.
pub(crate) const TANGLED: usize = 67 + 12 + 3 + 6 + 4 + 3;

/// Few names, few labels, few hosts, in the namespaces alpha, beta and the root's.
pub(crate) fn tangled() -> Vec<Object> {
    let mut text = String::new();
    for namespace in ["alpha", "beta"] {
        for (name, age, app) in [("old", 1, "web"), ("young", 2, "db")] {
            let metadata = format!(
                "metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2024-01-0{age}T00:00:00Z'}}"
            );
            for host in ["sel.example.com", "web.alpha.svc.cluster.local"] {
                text += &format!(
                    "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\n{metadata}\nspec: {{hosts: [{host}], resolution: STATIC, workloadSelector: {{labels: {{app: {app}}}}}, ports: [{{number: 80, name: http}}]}}\n---\n"
                );
            }
            for selector in ["{}", "{matchLabels: {app: web}}"] {
                for mode in ["UNSET", "STRICT"] {
                    let ports = if selector == "{}" {
                        ""
                    } else {
                        "portLevelMtls: {80: {mode: PERMISSIVE}}, "
                    };
                    text += &format!(
                        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n{metadata}\nspec: {{selector: {selector}, {ports}mtls: {{mode: {mode}}}}}\n---\n"
                    );
                }
            }
        }
    }
    for mode in ["STRICT", "PERMISSIVE"] {
        text += &format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: mesh, namespace: istio-system}}\nspec: {{mtls: {{mode: {mode}}}}}\n---\n"
        );
        text += &format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: some, namespace: istio-system}}\nspec: {{selector: {{matchLabels: {{app: ztunnel}}}}, mtls: {{mode: {mode}}}}}\n---\n"
        );
    }
    for scope in ["private", "hidden", "public"] {
        text += &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: alpha, labels: {{scope: {scope}, istio.io/use-waypoint: wp}}}}\n---\n"
        );
    }
    for (namespace, labels, class) in [
        ("alpha", "", "istio-waypoint"),
        ("alpha", "istio.io/waypoint-for: all", "istio-waypoint"),
        ("alpha", "istio.io/waypoint-for: workload", "mine"),
        ("beta", "topology.istio.io/network: net2", "istio-remote"),
        ("alpha", "topology.istio.io/network: net2", "istio-remote"),
    ] {
        for from in ["Same", "All"] {
            text += &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: {namespace}, labels: {{{labels}}}}}\n\
                 spec: {{gatewayClassName: {class}, addresses: [{{value: 198.51.100.9}}], listeners: [{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {{from: {from}}}}}}}]}}\n---\n"
            );
        }
    }
    for controller in [
        "istio.io/mesh-controller",
        "istio.io/unmanaged-gateway",
        "x.y/z",
    ] {
        for waypoint_for in ["service", "all", "none"] {
            text += &format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: mine, labels: {{istio.io/waypoint-for: {waypoint_for}}}, annotations: {{ambient.istio.io/waypoint-inbound-binding: PROXY/{}}}}}\nspec: {{controllerName: {controller}}}\n---\n",
                controller.len()
            );
        }
    }
    for labels in [
        "",
        "ambit.io/waypoint-unready: pass, ambit.io/egress: refuse",
        "topology.istio.io/network: net2",
    ] {
        text += &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: beta, labels: {{istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: alpha, {labels}}}}}\n---\n"
        );
    }
    for (name, network) in [("wp", "net2"), ("vm", "net2"), ("vm", "net3")] {
        text += &format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: {name}, namespace: beta, labels: {{istio.io/use-waypoint: {name}, app: web}}}}\nspec: {{address: 192.0.2.1, network: {network}}}\n---\n"
        );
    }
    for address in ["", ", podIP: 10.10.9.9"] {
        text += &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: wp-0, namespace: alpha, labels: {{gateway.networking.k8s.io/gateway-name: wp}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running{address}}}\n---\n"
        );
    }
    for ip in ["10.96.9.1", "10.96.9.2"] {
        text += &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: wp, namespace: alpha, labels: {{gateway.networking.k8s.io/gateway-name: wp}}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 15008}}]}}\n---\n"
        );
    }
    for (namespace, only) in [("alpha", "true"), ("beta", "perhaps")] {
        text += &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{istio.io/use-waypoint: wp, ambit.io/waypoint-only: '{only}'}}}}\n---\n"
        );
        text += &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: {namespace}, labels: {{istio.io/use-waypoint: wp, ambit.io/waypoint-only: '{only}'}}}}\nspec: {{clusterIP: 10.96.1.2, selector: {{app: web}}, ports: [{{port: 81}}]}}\n---\n"
        );
        text += &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-0, namespace: {namespace}, labels: {{app: web, ambit.io/waypoint-only: '{only}'}}}}\nspec: {{containers: []}}\nstatus: {{phase: Running, podIP: 10.10.0.2}}\n---\n"
        );
    }
    // Services have the first two, or had them.
    for (namespace, addresses) in [
        ("alpha", "10.96.1.1, 192.0.2.0/24"),
        ("alpha", "10.96.9.2/32"),
        ("beta", "192.0.2.7, 10.96.1.2"),
        ("beta", "10.96.1.0/24"),
    ] {
        text += &format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: thief, namespace: {namespace}}}\nspec: {{hosts: [own.example.com], addresses: [{addresses}], resolution: STATIC, ports: [{{number: 80, name: http}}]}}\n---\n"
        );
    }
    // Endpoints on other networks come and go with these.
    text += "apiVersion: v1\nkind: Namespace\nmetadata: {name: beta, labels: {reach: far}}\n---\n";
    text += "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: beta, labels: {istio.io/global: 'true'}}\nspec: {clusterIP: 10.96.1.2, selector: {app: web}, ports: [{port: 81}]}\n---\n";
    text += "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: old, namespace: beta, labels: {istio.io/global: 'true'}}\n\
             spec: {hosts: [far.example.com], addresses: [192.0.2.77], resolution: STATIC, ports: [{number: 80, name: http}], endpoints: [{address: 192.0.2.78, network: net2}]}\n---\n";
    for kind in ["Service", "Gateway"] {
        let group = if kind == "Service" {
            "''"
        } else {
            "gateway.networking.k8s.io"
        };
        text += &format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: attached, namespace: alpha}}\nspec: {{targetRefs: [{{group: {group}, kind: {kind}, name: wp}}, {{group: '', kind: Service, name: web}}], rules: [{{}}]}}\n---\n"
        );
    }
    for app in ["web", "db", "ztunnel"] {
        text += &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-0, namespace: alpha, labels: {{app: {app}}}}}\nspec: {{nodeName: node-1, containers: []}}\nstatus: {{phase: Running, podIP: 10.10.0.1}}\n---\n"
        );
    }
    text += "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: alpha}\nspec: {clusterIP: 10.96.1.1, selector: {app: db}, ports: [{port: 80}]}\n---\n";
    text += "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: alpha}\nspec: {type: ExternalName, externalName: x.y}\n---\n";
    for namespace in ["alpha", "beta"] {
        for parent in [
            "{group: '', kind: Service, name: web, namespace: alpha}",
            "{group: '', kind: Service, name: web, namespace: alpha, port: 80}, {name: wp, namespace: alpha}",
            "{group: networking.istio.io, kind: ServiceEntry, name: old}",
        ] {
            for backend in [
                "{name: web, namespace: alpha, port: 80}",
                "{group: networking.istio.io, kind: Hostname, name: sel.example.com, port: 80}",
            ] {
                text += &format!(
                    "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r, namespace: {namespace}}}\n\
                     spec: {{parentRefs: [{parent}], rules: [{{backendRefs: [{backend}]}}]}}\n---\n"
                );
            }
        }
    }
    for to in ["", ", name: web", ", name: wp"] {
        text += &format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: alpha}}\n\
             spec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: beta}}], to: [{{group: '', kind: Service{to}}}]}}\n---\n"
        );
    }
    let tangled = objects(&text);
    assert_eq!(tangled.len(), TANGLED);
    tangled
}
