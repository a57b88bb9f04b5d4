//! The media host, as an HTTP client that needs no network.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use wacore::net::{HttpClient, HttpRequest, HttpResponse};

use crate::Double;

/// Serves the history files of a [`Double`] to the client it is given to
#[derive(Clone)]
pub struct MediaHost {
    double: Double,
}

impl MediaHost {
    pub(crate) fn new(double: Double) -> Self {
        Self { double }
    }

    /// Answers the next requests with these status codes instead of files.
    pub fn fail_next(&self, codes: &[u16]) {
        self.double.with(|state| state.blobs.failures.extend(codes));
    }

    /// Lets each request take that long.
    pub fn set_delay(&self, delay: Duration) {
        self.double.with(|state| state.blobs.delay = delay);
    }

    /// Answers with files again.
    pub fn heal(&self) {
        self.double.with(|state| state.blobs.failures.clear());
    }

    /// Waits until there have been this many requests. Panics when the world's patience is over.
    pub async fn wait_requests(&self, count: usize) {
        let enough = self.double.until(|state| (state.blobs.requests >= count).then_some(()));
        if tokio::time::timeout(self.double.patience(), enough).await.is_err() {
            panic!("waited in vain for {count} requests; there were {}", self.requests());
        }
    }

    /// The paths of all files, in order.
    pub fn paths(&self) -> Vec<String> {
        self.double.with(|state| state.blobs.files.keys().cloned().collect())
    }

    /// How many requests there have been.
    pub fn requests(&self) -> usize {
        self.double.with(|state| state.blobs.requests)
    }
}

#[async_trait]
impl HttpClient for MediaHost {
    async fn execute(&self, request: HttpRequest) -> Result<HttpResponse> {
        let path = path_of(&request.url).to_owned();
        let delay = self.double.with(|state| state.blobs.delay);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let (status_code, body) = self.double.with(|state| state.blobs.fetch(&path));
        Ok(HttpResponse { status_code, body })
    }
}

/// The path of `scheme://host/path?query`.
fn path_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let path = rest.find('/').map_or("", |slash| &rest[slash..]);
    path.split('?').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_ends_before_the_query() {
        assert_eq!(path_of("https://host/v/a.enc?auth=x&hash=/"), "/v/a.enc");
        assert_eq!(path_of("https://host"), "");
    }
}
