//! What is said of a mistake, where two say it: [`super`], and an API server by the rules of
//! [`crate::k8s::crd`]. Each says what is wrong, and what to do instead.

pub(in crate::k8s) const ONE_TARGET: &str =
    "only one of selector, targetRef and targetRefs can be set; write a policy for each";
pub(in crate::k8s) const TARGET_NAME: &str =
    "kind and name are needed; name the Gateway or Service";
pub(in crate::k8s) const TARGET_NAMESPACE: &str =
    "a target is in the policy's own namespace; leave namespace out, or move the policy there";
pub(in crate::k8s) const CUSTOM_NEEDS_PROVIDER: &str =
    "action CUSTOM needs a provider; name one in spec.provider.name, or use ALLOW or DENY";
pub(in crate::k8s) const ONLY_CUSTOM: &str =
    "only action CUSTOM has a provider; remove spec.provider, or set action CUSTOM";
pub(in crate::k8s) const PROVIDER_NAME: &str =
    "name is missing; name an extension provider of the mesh configuration";
pub(in crate::k8s) const EMPTY_LIST: &str =
    "an empty list would restrict nothing; leave the field out";
pub(in crate::k8s) const EMPTY_SOURCE: &str = "a source without fields would match everyone; name somebody, or leave `from` out if that is meant";
pub(in crate::k8s) const EMPTY_OPERATION: &str = "an operation without fields would match everything; name ports, or leave `to` out if that is meant";
pub(in crate::k8s) const ACCOUNTS_ALONE: &str = "serviceAccounts cannot be combined with principals or namespaces; give them an entry of `from` of their own";
pub(in crate::k8s) const SELECTOR_KEY: &str = "a label without a name; name it, or remove it";
pub(in crate::k8s) const SELECTOR_WILDCARD: &str =
    "wildcards are not allowed in a selector; write the label as it stands on the workload";
pub(in crate::k8s) const PORTS_NEED_SELECTOR: &str = "portLevelMtls requires a selector; name the workloads in spec.selector.matchLabels, or set spec.mtls for all ports of all workloads";
pub(in crate::k8s) const PORT_KEY: &str = "a key is not a port; keys are numbers from 1 to 65535";

pub(in crate::k8s) const NO_HOST: &str =
    "at least one host is needed; name the service in spec.hosts";
pub(in crate::k8s) const ANY_HOST: &str =
    "a bare wildcard would be every host; name a domain, as in *.example.com";
pub(in crate::k8s) const ADDRESS: &str =
    "is neither an IP address nor a CIDR; write 192.0.2.1 or 192.0.2.0/24";
pub(in crate::k8s) const BLOCK_RESOLUTION: &str =
    "a CIDR needs resolution NONE or STATIC; write single addresses, or change spec.resolution";
pub(in crate::k8s) const PORT: &str = "is not a port; ports are 1 to 65535";
pub(in crate::k8s) const PORT_NAME: &str = "name is missing; name the port, as in http or tcp-db";
pub(in crate::k8s) const PORT_TWICE: &str =
    "a port number is there twice; write one port, endpoints may map it to others";
pub(in crate::k8s) const SELECTOR_OR_ENDPOINTS: &str =
    "only one of workloadSelector and endpoints can be set; remove one, or split the entry";
pub(in crate::k8s) const NONE_HAS_NO_ENDPOINTS: &str = "resolution NONE has no endpoints; set spec.resolution to STATIC or DNS, or remove spec.endpoints";
pub(in crate::k8s) const NONE_KEEPS_PORT: &str = "resolution NONE keeps the port, so targetPort has no meaning; remove it, or change spec.resolution";
pub(in crate::k8s) const STATIC_NEEDS_IPS: &str = "an address is not an IP address, which resolution STATIC needs; write one, or set spec.resolution to DNS";
pub(in crate::k8s) const WILDCARD_UNRESOLVED: &str = "a wildcard host cannot be resolved; name endpoints, or set spec.resolution to DYNAMIC_DNS or NONE";
pub(in crate::k8s) const ROUND_ROBIN_ONE: &str =
    "resolution DNS_ROUND_ROBIN has at most one endpoint; set spec.resolution to DNS for several";
pub(in crate::k8s) const DYNAMIC_HAS_NO_ENDPOINTS: &str =
    "resolution DYNAMIC_DNS has no endpoints; remove spec.endpoints, or set spec.resolution to DNS";
pub(in crate::k8s) const SELECTOR_RESOLUTION: &str =
    "a workloadSelector needs resolution STATIC or DNS; set spec.resolution";
pub(in crate::k8s) const NO_ADDRESS: &str =
    "address is missing; only an endpoint of another network may leave it out";
pub(in crate::k8s) const NO_SOCKETS: &str =
    "unix sockets are not reachable through the mesh; name an IP address or a host";
