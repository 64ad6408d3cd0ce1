//! Until something is so.
//!
//! Objects of the API server are watched. What nobody announces (a log line, a metric, a verdict that has to arrive at a proxy)
//! is asked for again and again; the last answer is in the error.

use std::{fmt::Debug, time::Duration};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::{
    Api, Resource,
    runtime::wait::{Condition, await_condition},
};
use tokio::time::{Instant, sleep, timeout};

/// As long as anything on a busy two-core machine may take.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Watches one object until `condition` holds.
pub async fn until<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    condition: impl Condition<K>,
) -> Result<Option<K>>
where
    K: Resource + Clone + Debug + Send + DeserializeOwned + 'static,
{
    until_within(PATIENCE, api, name, what, condition).await
}

/// The same with another patience.
pub async fn until_within<K>(
    patience: Duration,
    api: &Api<K>,
    name: &str,
    what: &str,
    condition: impl Condition<K>,
) -> Result<Option<K>>
where
    K: Resource + Clone + Debug + Send + DeserializeOwned + 'static,
{
    timeout(patience, await_condition(api.clone(), name, condition))
        .await
        .with_context(|| format!("{name} is not {what} after {} s", patience.as_secs()))?
        .with_context(|| format!("waiting for {name} to be {what}"))
}

/// Asks until the answer is `Ok`.
pub async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) if began.elapsed() > PATIENCE => {
                bail!(
                    "not after {} s: {what}; last: {error:#}",
                    PATIENCE.as_secs()
                )
            }
            Err(_) => sleep(Duration::from_millis(250)).await,
        }
    }
}
