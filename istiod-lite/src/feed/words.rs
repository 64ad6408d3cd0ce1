//! What is said of objects in the log, and of faults wherever they are shown.

use api::k8s::dir::Fault;
use api::k8s::objects::ObjectKey;

/// Taken, but not all of it counts: whoever wrote the object should hear of it once.
pub(super) fn say(object: &ObjectKey, remark: &str) {
    tracing::warn!(%object, remark, "object taken with a remark");
}

/// `file:line: object: reason`; without the file where it came from an API server.
pub fn line(fault: &Fault) -> String {
    let (file, line, reason) = (fault.file.display(), fault.line, &fault.reason);
    match &fault.object {
        Some(object) if line == 0 => format!("{object}: {reason}"),
        Some(object) => format!("{file}:{line}: {object}: {reason}"),
        None => format!("{file}:{line}: {reason}"),
    }
}
