//! A tunnel arrives; plaintext arrives.
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use crate::node::Node;
use crate::pod::Pod;

/// Serves one connection to port 15008 in `pod`'s namespace: TLS, then any number of tunnels.
pub async fn serve_tunnel(node: &Arc<Node>, pod: &Arc<Pod>, tcp: TcpStream, peer: SocketAddr, local: SocketAddr) { let _ = (node, pod, tcp, peer, local); }
/// Serves one plaintext connection that was redirected to port 15006 in `pod`'s namespace.
pub async fn serve_plain(node: &Arc<Node>, pod: &Arc<Pod>, tcp: TcpStream, peer: SocketAddr, original_dst: SocketAddr) { let _ = (node, pod, tcp, peer, original_dst); }
