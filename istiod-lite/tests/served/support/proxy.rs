//! A proxy, as the tests of the control plane need one.

use std::collections::BTreeMap;

use api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, ErrorDetail};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::{ADDRESS, AUTHORIZATION, PATIENCE, ztunnel_node};

/// The client's end of a delta stream, and what it has learnt from it.
pub struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    pub held: BTreeMap<String, BTreeMap<String, Held>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    pub version: String,
    pub value: Vec<u8>,
}

impl Proxy {
    pub async fn open(channel: Channel, authorization: Option<&str>) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(receiver));
        if let Some(authorization) = authorization {
            let metadata = request.metadata_mut();
            metadata.insert("authorization", authorization.parse().unwrap());
            metadata.insert("clusterid", "Kubernetes".parse().unwrap());
        }
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(200 << 20);
        let responses = tokio::time::timeout(PATIENCE, client.delta_aggregated_resources(request))
            .await
            .expect("the stream is not answered")?
            .into_inner();
        Ok(Self {
            requests,
            responses,
            held: BTreeMap::new(),
        })
    }

    /// A stream that has ended takes nothing; how it ended, the next response says.
    pub async fn send(&self, request: DeltaDiscoveryRequest) {
        let sent = tokio::time::timeout(PATIENCE, self.requests.send(request)).await;
        let _ = sent.expect("nobody takes the request");
    }

    /// The first request of a type: everything, but what is held already.
    pub async fn subscribe(&mut self, type_url: &str) {
        let held = self.held.get(type_url).into_iter().flatten();
        let versions = held.map(|(name, held)| (name.clone(), held.version.clone()));
        let initial_resource_versions = versions.collect();
        self.send(DeltaDiscoveryRequest {
            node: Some(ztunnel_node()),
            type_url: type_url.into(),
            initial_resource_versions,
            ..Default::default()
        })
        .await;
    }

    pub async fn subscribe_to_all(&mut self) {
        self.subscribe(ADDRESS).await;
        self.subscribe(AUTHORIZATION).await;
    }

    /// An answer came for each type.
    pub fn is_ready(&self) -> bool {
        self.held.len() == 2
    }

    /// The next response, taken in but not answered.
    pub async fn receive(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        let response = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        let Some(response) = response.expect("no response")? else {
            return Ok(None);
        };
        let held = self.held.entry(response.type_url.clone()).or_default();
        for name in &response.removed_resources {
            held.remove(name);
        }
        for resource in &response.resources {
            let any = resource.resource.clone().unwrap();
            assert_eq!(any.type_url, response.type_url);
            held.insert(
                resource.name.clone(),
                Held {
                    version: resource.version.clone(),
                    value: any.value,
                },
            );
        }
        Ok(Some(response))
    }

    pub async fn next(&mut self) -> DeltaDiscoveryResponse {
        let response = self.receive().await.unwrap().unwrap();
        self.ack(&response).await;
        response
    }

    pub async fn ack(&self, response: &DeltaDiscoveryResponse) {
        self.answer(response, None).await;
    }

    pub async fn nack(&self, response: &DeltaDiscoveryResponse, why: &str) {
        let error = ErrorDetail {
            code: 3,
            message: why.into(),
            ..ErrorDetail::default()
        };
        self.answer(response, Some(error)).await;
    }

    async fn answer(&self, response: &DeltaDiscoveryResponse, error_detail: Option<ErrorDetail>) {
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..Default::default()
        })
        .await;
    }

    /// Takes responses until it holds what `holds` wants to see.
    pub async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        while !holds(self) {
            self.next().await;
        }
    }

    pub fn has(&self, type_url: &str, name: &str) -> bool {
        self.held
            .get(type_url)
            .is_some_and(|held| held.contains_key(name))
    }

    /// The names it holds of a type.
    pub fn names(&self, type_url: &str) -> Vec<&str> {
        let held = self.held.get(type_url).into_iter().flatten();
        held.map(|(name, _)| &**name).collect()
    }
}
