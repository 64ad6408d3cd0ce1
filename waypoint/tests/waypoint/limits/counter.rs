//! A rate limit service in a pod, which remembers everything. It waits for ever about `slow` and breaks about `ill`.

use std::collections::HashMap;
use std::future::pending;
use std::sync::{Arc, Mutex};

use anyhow::Result;
use api::rate_limit::rate_limit_response::rate_limit::Unit;
use api::rate_limit::rate_limit_response::{Code, DescriptorStatus, RateLimit};
use api::rate_limit::rate_limit_service_server::{RateLimitService, RateLimitServiceServer};
use api::rate_limit::{HeaderValue, RateLimitDescriptor, RateLimitRequest, RateLimitResponse};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use crate::shop::Shop;

/// How often each descriptor has come.
#[derive(Clone, Default)]
pub(super) struct Counter(Arc<Mutex<HashMap<String, u32>>>);

impl Counter {
    /// Service `shop/counter`.
    pub(super) fn start(shop: &Shop<'_>) -> Result<Self> {
        let pod = shop.lab.pod("shop/counter").node(0);
        let pod = pod
            .service_account("counter")
            .label("app", "counter")
            .start()?;
        let counter = Self::default();
        let _in = shop.runtime.enter();
        let listener = pod.listen(9000)?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let server = RateLimitServiceServer::new(counter.clone());
        shop.runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let service = TowerToHyperService::new(server.clone());
                tokio::spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let _ = builder.serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        let ports = [("grpc", 9000, 9000), ("nobody", 9100, 9100)];
        shop.lab.service_of("shop/counter", &ports)?;
        Ok(counter)
    }

    fn count(&self, domain: &str, descriptor: &RateLimitDescriptor) -> DescriptorStatus {
        let entries = descriptor.entries.iter();
        let entries: Vec<_> = entries.map(|it| (&*it.key, &*it.value)).collect();
        let (requests, unit) = match &descriptor.limit {
            Some(limit) => (limit.requests_per_unit, limit.unit),
            None if entries == [("x-user", "carl")] => (1, Unit::Hour.into()),
            None => {
                return DescriptorStatus {
                    code: Code::Ok.into(),
                    ..Default::default()
                };
            }
        };
        let mut all = self.0.lock().unwrap();
        let count = all.entry(format!("{domain} {entries:?}")).or_default();
        *count += 1;
        let passes = *count <= requests;
        DescriptorStatus {
            code: if passes { Code::Ok } else { Code::OverLimit }.into(),
            current_limit: Some(RateLimit {
                requests_per_unit: requests,
                unit,
                name: String::new(),
            }),
            limit_remaining: requests.saturating_sub(*count),
            duration_until_reset: Some(prost_types::Duration {
                seconds: 77,
                nanos: 0,
            }),
        }
    }
}

#[tonic::async_trait]
impl RateLimitService for Counter {
    async fn should_rate_limit(
        &self,
        request: tonic::Request<RateLimitRequest>,
    ) -> Result<tonic::Response<RateLimitResponse>, tonic::Status> {
        let request = request.into_inner();
        let entries = request.descriptors.iter().flat_map(|it| &it.entries);
        let user = entries
            .filter(|it| it.key == "x-user")
            .map(|it| &*it.value)
            .next();
        match user {
            Some("slow") => pending().await,
            Some("ill") => return Err(tonic::Status::unavailable("it is ill")),
            _ => {}
        }
        let statuses = request.descriptors.iter();
        let statuses: Vec<_> = statuses
            .map(|descriptor| self.count(&request.domain, descriptor))
            .collect();
        let over = statuses.iter().any(|it| it.code() == Code::OverLimit);
        let header = |key: &str, value: &str| HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            raw_value: Vec::new(),
        };
        Ok(tonic::Response::new(RateLimitResponse {
            overall_code: if over { Code::OverLimit } else { Code::Ok }.into(),
            request_headers_to_add: vec![header("x-counted", &statuses.len().to_string())],
            response_headers_to_add: vec![header("x-by", "counter")],
            raw_body: if over {
                b"come again".to_vec()
            } else {
                Vec::new()
            },
            statuses,
        }))
    }
}
