//! A control plane that tells of one workload, and asks for nothing in return.

use std::pin::Pin;

use api::discovery::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use api::{ADDRESS_TYPE, workload as wire};
use futures_util::{Stream, StreamExt};
use prost::Message;
use prost_types::Any;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming};

/// Serves on `listener` for as long as the test's runtime lives.
pub(crate) fn serve(listener: TcpListener, workload: wire::Workload) {
    let service = AggregatedDiscoveryServiceServer::new(OneWorkload(workload));
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
}

struct OneWorkload(wire::Workload);

impl OneWorkload {
    /// First requests are answered, acknowledgements are not.
    fn answer(&self, request: &DeltaDiscoveryRequest) -> Option<DeltaDiscoveryResponse> {
        let address = wire::Address {
            r#type: Some(wire::address::Type::Workload(self.0.clone())),
        };
        let any = Any {
            type_url: ADDRESS_TYPE.into(),
            value: address.encode_to_vec(),
        };
        let resource = Resource {
            name: self.0.uid.clone(),
            resource: Some(any),
            ..Default::default()
        };
        request
            .response_nonce
            .is_empty()
            .then(|| DeltaDiscoveryResponse {
                type_url: request.type_url.clone(),
                nonce: format!("of {}", request.type_url),
                resources: if request.type_url == ADDRESS_TYPE {
                    vec![resource]
                } else {
                    Vec::new()
                },
                ..Default::default()
            })
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for OneWorkload {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let this = Self(self.0.clone());
        let answers = request.into_inner().filter_map(move |request| {
            let answer = request.map(|request| this.answer(&request)).transpose();
            async move { answer }
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
