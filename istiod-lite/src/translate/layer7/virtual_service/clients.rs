//! Which clients a match is for, where it says that by labels: proxies are not told labels, so they are told who has
//! them, and again when somebody comes or goes.

use api::k8s::istio::virtual_service::VirtualServiceSpec;
use api::waypoint as wire;

use super::Place;
use crate::translate::Labels;

/// The workloads that have all of these labels, in a namespace or in all, by uid, sorted.
pub type Having<'a> = dyn Fn(&Labels, Option<&str>) -> Vec<String> + 'a;

/// Every set of labels that matches ask clients for.
pub fn asked(spec: &VirtualServiceSpec) -> impl Iterator<Item = &Labels> {
    let http = spec.http.iter().flat_map(|it| &it.matches);
    let tls = spec.tls.iter().flat_map(|it| &it.matches);
    let tcp = spec.tcp.iter().flat_map(|it| &it.matches);
    let all = http.map(|it| &it.source_labels);
    let all = all.chain(tls.map(|it| &it.source_labels));
    let all = all.chain(tcp.map(|it| &it.source_labels));
    all.filter(|it| !it.is_empty())
}

/// The clients with these labels; none if nothing is asked.
pub(super) fn with(
    labels: &Labels,
    namespace: Option<&str>,
    place: &Place<'_>,
) -> Result<Option<wire::Workloads>, String> {
    if labels.is_empty() {
        return Ok(None);
    }
    let uids = (place.having)(labels, namespace);
    match uids.len() {
        0..=MOST => Ok(Some(wire::Workloads { uids })),
        many => Err(format!(
            "sourceLabels: {many} workloads have them, and a proxy is told {MOST} at most: ask for more, or name a sourceNamespace"
        )),
    }
}

/// Of one match; each takes some 60 bytes of a message of 4 MiB.
const MOST: usize = 10_000;
