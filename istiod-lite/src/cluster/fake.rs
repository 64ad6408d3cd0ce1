//! For tests: an API server that is a function, and counts what it is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use kube::Client;
use serde_json::{Value, json};

/// A client of it; `answer` is given method and path.
pub(super) fn client(
    answer: impl Fn(&str, &str) -> (u16, Value) + Send + Sync + 'static,
) -> (Client, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let (count, answer) = (asked.clone(), Arc::new(answer));
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        count.fetch_add(1, Ordering::SeqCst);
        let path = request.uri().path_and_query().map(ToString::to_string);
        let (status, body) = answer(request.method().as_str(), &path.unwrap_or_default());
        async move {
            // Others who ask at the same time get their turn before the answer is there.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            if status == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
            }
            let body = Full::new(Bytes::from(body.to_string()));
            Ok(http::Response::builder().status(status).body(body).unwrap())
        }
    });
    (Client::new(service, "default"), asked)
}

/// A refusal in Kubernetes' form.
pub(super) fn refusal(code: u16, message: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": message, "reason": "", "code": code});
    (code, status)
}
