//! A connection leaves a pod.
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;
use crate::node::Node;
use crate::pod::Pod;

/// Carries one captured connection of `pod` to where `original_dst` leads, and reports it.
pub async fn serve(node: &Arc<Node>, pod: &Arc<Pod>, tcp: TcpStream, peer: SocketAddr, original_dst: SocketAddr) { let _ = (node, pod, tcp, peer, original_dst); }
