//! The media host behind a real port of localhost.

use std::net::SocketAddr;

use anyhow::Result;
use axum::Router;
use axum::body::Body;
use axum::http::{Response, Uri};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use wacore::net::{HttpClient, HttpRequest};

use crate::Double;

/// Where clients learn the current version before they connect
const VERSION_PATH: &str = "/sw.js";

/// A listening media host; dropping it stops it
pub struct MediaServer {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl MediaServer {
    pub(crate) async fn listen(double: Double) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let routes = Router::new().fallback(move |uri: Uri| answer(double.clone(), uri));
        let serving = tokio::spawn(async move {
            // It ends with its task only.
            let _ = axum::serve(listener, routes).await;
        });
        Ok(Self { address, serving })
    }

    /// What stands in for every host: `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for MediaServer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(double: Double, uri: Uri) -> Response<Body> {
    if uri.path() == VERSION_PATH {
        return Response::new(Body::from(r#""client_revision":1"#));
    }
    let answered = double.media().execute(HttpRequest::get(uri.to_string())).await;
    let (status, body) = answered.map_or((500, Vec::new()), |a| (a.status_code, a.body));
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status.try_into().unwrap_or_default();
    response
}
