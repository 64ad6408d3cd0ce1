//! Open connections, by pod.
/// All open connections of this node.
#[derive(Default)]
pub struct Connections {}
