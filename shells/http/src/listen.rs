//! Connections: accepted, bounded in number and time, and drained at the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::app::note_peer;

/// Serves until `stop` ends, then waits a bounded time for answers that are under way.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>) {
    let mut stop = std::pin::pin!(stop);
    let drain = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let accepted = async {
            // Whoever comes when the house is full waits in the system's queue.
            let Ok(place) = Arc::clone(&room).acquire_owned().await else {
                return std::future::pending().await;
            };
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accepted => accepted,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Too many open files, for instance: somebody has to leave first.
                tracing::warn!("[http] a connection could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS_WITHIN)
            .max_headers(MOST_HEADERS)
            .max_buf_size(MOST_HEADER_BYTES)
            .serve_connection(TokioIo::new(stream), service(router.clone(), from));
        let connection = drain.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("[http] a connection ended: {error}");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, drain.shutdown()).await.is_err() {
        tracing::warn!("[http] some answers took too long and were dropped");
    }
}

type Incoming = axum::http::Request<hyper::body::Incoming>;

fn service(
    router: Router,
    from: SocketAddr,
) -> impl hyper::service::Service<
    Incoming,
    Response = axum::response::Response,
    Error = std::convert::Infallible,
    Future = impl Future<Output = Result<axum::response::Response, std::convert::Infallible>> + Send,
> {
    let router = TowerToHyperService::new(router);
    hyper::service::service_fn(move |mut request: Incoming| {
        note_peer(&mut request, from.ip());
        hyper::service::Service::call(&router, request)
    })
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
const DRAIN: Duration = Duration::from_secs(5);
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
const MOST_CONNECTIONS: usize = 512;
const MOST_HEADERS: usize = 64;
const MOST_HEADER_BYTES: usize = 32 * 1_024;
