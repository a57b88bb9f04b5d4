//! HTTP for the client: history files, and what version of WhatsApp Web is current.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use whatsapp_rust::anyhow::{Result, anyhow};
use whatsapp_rust::http::{HttpClient, HttpRequest, HttpResponse};

/// Fetches over the network.
#[derive(Clone, Debug)]
pub struct Http {
    client: reqwest::Client,
    base: Option<String>,
}

/// No HTTP client can be made on this machine.
#[derive(Debug, thiserror::Error)]
#[error("no HTTP client can be made")]
pub struct HttpError(#[source] reqwest::Error);

impl Http {
    /// With `base`, for example `http://127.0.0.1:9000`, everything is fetched from there, whatever
    /// host is asked for.
    ///
    /// # Errors
    /// The machine's certificates cannot be used.
    pub fn new(base: Option<String>) -> Result<Self, HttpError> {
        // Does nothing where the process has chosen another one before.
        rustls::crypto::ring::default_provider().install_default().ok();
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(15))
            .read_timeout(Duration::from_secs(30))
            .timeout(Duration::from_secs(300))
            .build()
            .map_err(HttpError)?;
        Ok(Self { client, base })
    }

    fn url(&self, url: String) -> String {
        let Some(base) = &self.base else { return url };
        let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        let path = rest.find('/').map_or("", |slash| &rest[slash..]);
        format!("{}{path}", base.trim_end_matches('/'))
    }
}

#[async_trait]
impl HttpClient for Http {
    async fn execute(&self, request: HttpRequest) -> Result<HttpResponse> {
        let method = reqwest::Method::from_bytes(request.method.as_bytes())?;
        let mut builder = self.client.request(method, self.url(request.url));
        for (name, value) in request.headers {
            builder = builder.header(name, value);
        }
        if let Some(body) = request.body {
            builder = builder.body(body);
        }
        // Addresses of files are as good as keys to them.
        let response = builder.send().await.map_err(reqwest::Error::without_url)?;
        let status_code = response.status().as_u16();
        if response.content_length().is_some_and(|length| length > MAX_BYTES) {
            return Err(anyhow!("the answer is too large"));
        }
        let mut response = response;
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(reqwest::Error::without_url)? {
            if (body.len() + part.len()) as u64 > MAX_BYTES {
                return Err(anyhow!("the answer is too large"));
            }
            body.extend_from_slice(&part);
        }
        Ok(HttpResponse { status_code, body })
    }
}

/// The client wants an HTTP client of its own.
pub(crate) struct SharedHttp(pub(crate) Arc<dyn HttpClient>);

#[async_trait]
impl HttpClient for SharedHttp {
    async fn execute(&self, request: HttpRequest) -> Result<HttpResponse> {
        self.0.execute(request).await
    }
}

/// The largest file of history that is taken; more than any phone sends at once.
const MAX_BYTES: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_host_can_stand_in_for_all() {
        let http = Http::new(Some("http://127.0.0.1:9000/".into())).unwrap();
        let url = http.url("https://mmg.whatsapp.net/v/a.enc?auth=x&u=https://y/z".into());
        assert_eq!(url, "http://127.0.0.1:9000/v/a.enc?auth=x&u=https://y/z");
        assert_eq!(http.url("https://host".into()), "http://127.0.0.1:9000");
        let real = Http::new(None).unwrap();
        assert_eq!(real.url("https://host/x".into()), "https://host/x");
    }
}
