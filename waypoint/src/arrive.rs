//! Connections arrive: HBONE, and the ports of a gateway.
