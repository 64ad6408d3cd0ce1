//! What may be written of ServiceEntries and WorkloadEntries: which spec, and who refuses it with which words.

use api::k8s::objects::Kind::{self, ServiceEntry, WorkloadEntry};
use serde_json::{Value, json};

use super::Refused::{self, Both, Nowhere, Shape, Webhook};

pub(super) fn entries() -> Vec<(Kind, Value, Refused)> {
    let service = |mut fields: Value| {
        if fields.get("hosts").is_none() {
            fields["hosts"] = json!(["api.example.com"]);
        }
        fields
    };
    let port = |port: Value| service(json!({"ports": [port]}));
    let endpoint = |resolution: &str, endpoint: Value| {
        service(json!({"resolution": resolution, "endpoints": [endpoint]}))
    };
    vec![
        // ---- nothing wrong
        (ServiceEntry, service(json!({})), Nowhere),
        (
            ServiceEntry,
            service(json!({"addresses": ["198.51.100.0/24", "2001:db8::1"]})),
            Nowhere,
        ),
        (
            ServiceEntry,
            json!({"hosts": ["*.example.com"], "resolution": "DYNAMIC_DNS"}),
            Nowhere,
        ),
        (
            ServiceEntry,
            port(json!({"number": 443, "name": "tls", "protocol": "tls", "targetPort": 0})),
            Nowhere,
        ),
        (
            ServiceEntry,
            endpoint("DNS", json!({"address": "db.example.com", "weight": 3})),
            Nowhere,
        ),
        (
            ServiceEntry,
            endpoint("STATIC", json!({"network": "net2"})),
            Nowhere,
        ),
        (
            ServiceEntry,
            service(json!({"resolution": "STATIC", "workloadSelector": {"labels": {"a": "b"}}})),
            Nowhere,
        ),
        (
            WorkloadEntry,
            json!({"address": "192.0.2.1", "ports": {"http": 80}, "locality": "a/b"}),
            Nowhere,
        ),
        (WorkloadEntry, json!({"network": "net2"}), Nowhere),
        // ---- something wrong
        (
            ServiceEntry,
            json!({}),
            Shape("Required value", "at least one host"),
        ),
        (
            ServiceEntry,
            json!({"hosts": []}),
            Shape("at least 1 items", "at least one host"),
        ),
        (ServiceEntry, json!({"hosts": ["*"]}), Both("every host")),
        (
            ServiceEntry,
            json!({"hosts": ["a b"]}),
            Webhook("is not a host name"),
        ),
        (
            ServiceEntry,
            json!({"hosts": ["a.b", "a.b"]}),
            Webhook("twice"),
        ),
        (
            ServiceEntry,
            service(json!({"addresses": ["nowhere"]})),
            Both("neither an IP address nor a CIDR"),
        ),
        (
            ServiceEntry,
            service(json!({"addresses": ["240.0.0.1/40"]})),
            Both("neither an IP address nor a CIDR"),
        ),
        (
            ServiceEntry,
            service(json!({"addresses": ["10.0.0.0/8"], "resolution": "DNS"})),
            Both("needs resolution NONE or STATIC"),
        ),
        (
            ServiceEntry,
            port(json!({"number": 0, "name": "a"})),
            Shape("greater than or equal to 1", "0 is not a port"),
        ),
        (
            ServiceEntry,
            port(json!({"number": 70000, "name": "a"})),
            Shape("less than or equal to 65535", "70000 is not a port"),
        ),
        (
            ServiceEntry,
            port(json!({"number": 80})),
            Shape("Required value", "name is missing"),
        ),
        (
            ServiceEntry,
            port(json!({"number": 80, "name": ""})),
            Both("name the port"),
        ),
        (
            ServiceEntry,
            port(json!({"number": 80, "name": "a", "targetPort": 81})),
            Both("resolution NONE keeps the port"),
        ),
        (
            ServiceEntry,
            port(json!({"number": 80, "name": "a", "protocol": "PIGEON"})),
            Webhook("PIGEON"),
        ),
        (
            ServiceEntry,
            service(json!({"ports": [{"number": 80, "name": "a"}, {"number": 80, "name": "b"}]})),
            Both("there twice"),
        ),
        (
            ServiceEntry,
            service(json!({"ports": [{"number": 80, "name": "a"}, {"number": 81, "name": "a"}]})),
            Shape("Duplicate value", "names are unique"),
        ),
        (
            ServiceEntry,
            service(json!({"resolution": "MAGIC"})),
            Shape("supported values", "MAGIC"),
        ),
        (
            ServiceEntry,
            endpoint("NONE", json!({"address": "192.0.2.1"})),
            Both("resolution NONE has no endpoints"),
        ),
        (
            ServiceEntry,
            endpoint("DYNAMIC_DNS", json!({"address": "192.0.2.1"})),
            Both("DYNAMIC_DNS has no endpoints"),
        ),
        (
            ServiceEntry,
            endpoint("STATIC", json!({"address": "c.d"})),
            Both("which resolution STATIC needs"),
        ),
        (
            ServiceEntry,
            endpoint("STATIC", json!({"ports": {}})),
            Both("address is missing"),
        ),
        (
            ServiceEntry,
            endpoint("DNS", json!({"address": "unix:///a"})),
            Both("unix sockets"),
        ),
        (
            ServiceEntry,
            endpoint("DNS", json!({"address": "a.b", "ports": {"http": 80}})),
            Webhook("no port \"http\""),
        ),
        (
            ServiceEntry,
            service(
                json!({"resolution": "STATIC", "endpoints": [{"address": "192.0.2.1"}], "workloadSelector": {}}),
            ),
            Both("only one of workloadSelector"),
        ),
        (
            ServiceEntry,
            service(json!({"workloadSelector": {"labels": {"a": "b"}}})),
            Both("needs resolution STATIC or DNS"),
        ),
        (
            ServiceEntry,
            json!({"hosts": ["*.a.b"], "resolution": "DNS"}),
            Both("DYNAMIC_DNS or NONE"),
        ),
        (
            ServiceEntry,
            service(
                json!({"resolution": "DNS_ROUND_ROBIN", "endpoints": [{"address": "a.b"}, {"address": "c.d"}]}),
            ),
            Both("at most one endpoint"),
        ),
        (WorkloadEntry, json!({}), Both("address is missing")),
        (
            WorkloadEntry,
            json!({"address": "unix:///a"}),
            Both("unix sockets"),
        ),
        (
            WorkloadEntry,
            json!({"address": "a b"}),
            Webhook("neither an IP address nor a host name"),
        ),
        (
            WorkloadEntry,
            json!({"address": "a.b", "ports": {"http": 0}}),
            Shape("greater than or equal to 1", "0 is not a port"),
        ),
        (
            WorkloadEntry,
            json!({"address": "a.b", "weight": -1}),
            Shape("greater than or equal to 0", "-1 is not a whole number"),
        ),
        (
            WorkloadEntry,
            json!({"adress": "a.b", "network": "n"}),
            Webhook("did you mean address"),
        ),
    ]
}
