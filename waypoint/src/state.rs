//! What the control plane has said, and who is told when it changes.
