//! What goes wrong, as callers see it: `{success:false, error, message, ...}`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use backfill_driver::port::StoreError;
use serde_json::{Map, Value, json};

use crate::app::request_id;

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    body: Map<String, Value>,
    retry_after: Option<u64>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: &str) -> Self {
        let mut body = Map::new();
        body.insert("success".into(), false.into());
        body.insert("error".into(), code.into());
        body.insert("message".into(), message.into());
        Self { status, body, retry_after: None }
    }

    pub(crate) fn account_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "account_not_found", "There is no such account.")
    }

    pub(crate) fn bad_request(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.body.insert(name.into(), value.into());
        self
    }

    /// Says when to try again, in the body and in the header.
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self.with("retryAfterSeconds", seconds)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Invalid { .. } => Self::bad_request("The store refuses the request."),
            _ => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Self::new(status, "store_unavailable", "The store cannot be reached now.")
                    .retry_after(5)
            }
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(mut self) -> Response {
        self.body.insert("requestId".into(), request_id().into());
        let mut response = (self.status, axum::Json(json!(self.body))).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
