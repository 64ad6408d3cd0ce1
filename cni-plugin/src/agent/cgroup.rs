//! Pure: what the names of cgroups say, as `/proc/PID/cgroup` lists them (one `id:controllers:path` a
//! hierarchy; version 2 is `0::path`).
//!
//! The kubelet puts each pod's containers below a group named after the pod's UID: `…/pod<uid>/…` with
//! the cgroupfs driver, `…-pod<uid with underscores>.slice/…` with systemd's; containerd, CRI-O and
//! Docker differ only below that.

/// The UID of the pod that a process belongs to, by its own list and that of the host's first process.
///
/// What both paths begin with is not the pod's: a node that is itself a container, or a pod of
/// another cluster, has its processes below its own name. After that the *first* name of a pod counts:
/// a container that may make groups can make one with the name of another pod, but only
/// below its own.
pub(crate) fn pod(list: &str, first_process: &str) -> Option<String> {
    let mut found = lines(list).filter_map(|(hierarchy, path)| {
        let base = lines(first_process).find(|(other, _)| *other == hierarchy);
        below(path, base.map_or("", |(_, path)| path)).find_map(uid)
    });
    let uid = found.next()?;
    // A process that could change its group in one hierarchy is not believed.
    found.all(|other| other == uid).then_some(uid)
}

/// The path in the hierarchy of version 2.
pub(crate) fn unified(list: &str) -> Option<&str> {
    lines(list).find_map(|(hierarchy, path)| (hierarchy == "0").then_some(path))
}

/// Whether a path leads to a pod's group, whichever pod's.
pub(crate) fn is_of_a_pod(list: &str) -> bool {
    lines(list).any(|(_, path)| path.split('/').any(|part| uid(part).is_some()))
}

fn lines(list: &str) -> impl Iterator<Item = (&str, &str)> {
    list.lines().filter_map(|line| {
        let (hierarchy, rest) = line.split_once(':')?;
        Some((hierarchy, rest.split_once(':')?.1))
    })
}

/// The parts of `path` after those that `base` begins with too.
fn below<'a>(path: &'a str, base: &'a str) -> impl Iterator<Item = &'a str> {
    let parts = |path: &'a str| path.split('/').filter(|part| !part.is_empty());
    let shared = parts(path)
        .zip(parts(base))
        .take_while(|(a, b)| a == b)
        .count();
    parts(path).skip(shared)
}

/// `pod<uid>` or `<anything>-pod<uid>.slice`, where the uid is as the API server writes it.
fn uid(part: &str) -> Option<String> {
    // A runtime that keeps to cgroupfs below a kubelet that does not: `<slice>:<prefix>:<container>`.
    let part = part.split(':').next().unwrap_or_default();
    let name = match part.strip_suffix(".slice") {
        Some(unit) => unit.rsplit_once("-pod")?.1,
        None => part.strip_prefix("pod")?,
    };
    let uid = name.replace('_', "-");
    let hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let groups: Vec<usize> = uid.split('-').map(str::len).collect();
    (groups == [8, 4, 4, 4, 12] && uid.split('-').all(hex)).then_some(uid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "0a1b2c3d-1111-2222-3333-444455556666";
    const B: &str = "ffffffff-1111-2222-3333-444455556666";
    const C: &str = "2f0f6a0c9d8e7b6a5f4e3d2c1b0a99887766554433221100ffeeddccbbaa9988";

    #[test]
    fn every_runtime_and_driver_names_the_pod() {
        let systemd = A.replace('-', "_");
        let lists = [
            // version 2, systemd: containerd, CRI-O, Docker
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-{C}.scope"
            ),
            format!("0::/kubepods.slice/kubepods-pod{systemd}.slice/crio-{C}.scope/container"),
            format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{systemd}.slice/docker-{C}.scope"
            ),
            // as seen from another cgroup namespace
            format!(
                "0::/../../../kubepods-burstable.slice/kubepods-burstable-pod{systemd}.slice/cri-containerd-{C}.scope"
            ),
            // cgroupfs
            format!("0::/kubepods/besteffort/pod{A}/{C}"),
            format!("0::/kubepods/pod{A}/{C}/nested"),
            // containerd with cgroupfs below a kubelet with systemd
            format!(
                "0::/system.slice/containerd.service/kubepods-burstable-pod{systemd}.slice:cri-containerd:{C}"
            ),
            // version 1, with a hierarchy that nobody uses
            format!(
                "12:memory:/kubepods/burstable/pod{A}/{C}\n3:cpu,cpuacct:/kubepods/burstable/pod{A}/{C}\n1:name=systemd:/kubepods/burstable/pod{A}/{C}\n0::/"
            ),
            // a node of kind on version 1
            format!("4:memory:/docker/{C}/kubelet/kubepods/besteffort/pod{A}/{C}\n0::/"),
            // and on version 2
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{systemd}.slice/cri-containerd-{C}.scope"
            ),
        ];
        for list in lists {
            assert_eq!(pod(&list, "0::/init.scope\n").as_deref(), Some(A), "{list}");
        }
    }

    #[test]
    fn what_is_no_pod_is_none() {
        for list in [
            "",
            "0::/",
            "garbage",
            "0::/system.slice/kubelet.service",
            "0::/kubepods/podshort/x",
            &format!("0::/kubepods/{A}"),
            &format!("0::/kubepods/pod{}", A.replace('a', "g")),
        ] {
            assert_eq!(pod(list, "0::/"), None, "{list}");
        }
    }

    #[test]
    fn a_group_that_a_container_made_does_not_make_it_another_pod() {
        let nested = format!("0::/kubepods/pod{A}/{C}/kubepods/pod{B}/x");
        assert_eq!(pod(&nested, "0::/").as_deref(), Some(A));
        let torn = format!("4:memory:/kubepods/pod{A}/x\n5:cpu:/kubepods/pod{B}/x");
        assert_eq!(pod(&torn, ""), None);
    }

    #[test]
    fn a_node_that_is_a_pod_of_another_cluster_sees_its_own_pods() {
        let node = format!("0::/kubepods/pod{B}/{C}/init.scope");
        let inner = format!("0::/kubepods/pod{B}/{C}/kubepods/pod{A}/x");
        assert_eq!(pod(&inner, &node).as_deref(), Some(A));
    }

    #[test]
    fn the_path_of_version_2_is_told_from_the_others() {
        let list = "4:memory:/a:b\n0::/system.slice/kubelet.service\n";
        assert_eq!(unified(list), Some("/system.slice/kubelet.service"));
        assert_eq!(unified("4:memory:/x"), None);
        assert!(!is_of_a_pod(list));
        assert!(is_of_a_pod(&format!("4:memory:/kubepods/pod{A}/x")));
    }

    proptest! {
        #[test]
        fn no_list_is_too_strange(list: String, base: String) {
            let _ = pod(&list, &base);
            let _ = is_of_a_pod(&list);
        }

        #[test]
        fn both_drivers_spell_any_uid(bytes: [u8; 16]) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let uid = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
            let systemd = format!("0::/kubepods-pod{}.slice", uid.replace('-', "_"));
            let cgroupfs = format!("0::/kubepods/pod{uid}/c");
            prop_assert_eq!(pod(&systemd, ""), Some(uid.clone()));
            prop_assert_eq!(pod(&cgroupfs, ""), Some(uid));
        }
    }
}
