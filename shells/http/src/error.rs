//! What goes wrong, as callers see it: `{success:false, error, message, ...}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use backfill_driver::port::StoreError;
use serde::Serialize;
use utoipa::ToSchema;

use crate::answer::Mode;
use crate::app::request_id;

/// An answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Failure {
    #[serde(skip)]
    status: StatusCode,
    /// Always false
    success: bool,
    /// A word for programs
    error: &'static str,
    /// A sentence for people
    message: String,
    /// As in `X-Request-Id`
    request_id: String,
    /// When it is worth trying again; as in `Retry-After`
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_seconds: Option<u64>,
    #[serde(flatten)]
    details: Box<Details>,
}

/// What callers need besides to go on, by `error`.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Details {
    /// `instance_passive`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mode: Option<Mode>,
    /// `instance_passive`: the same
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) wa_mode: Option<Mode>,
    /// `instance_passive`: this instance
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instance_id: Option<String>,
    /// `instance_passive`: who holds the lock; null if nobody is known to
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) holder_instance_id: Option<Option<String>>,
    /// `not_owner`: who serves the account; null if nobody does yet
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub(crate) owner_instance_id: Option<Option<String>>,
    /// `invalid_state`: the account's status
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current_status: Option<String>,
    /// `send_failed`: the message in the outbox
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message_id: Option<String>,
    /// `send_failed`: what its sender calls it
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) client_message_id: Option<String>,
}

impl Failure {
    pub(crate) fn new(status: StatusCode, error: &'static str, message: &str) -> Self {
        Self {
            status,
            success: false,
            error,
            message: message.to_owned(),
            request_id: request_id(),
            retry_after_seconds: None,
            details: Box::default(),
        }
    }

    pub(crate) fn account_not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "account_not_found", "There is no such account.")
    }

    pub(crate) fn bad_request(message: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    pub(crate) fn with(self, details: Details) -> Self {
        Self { details: Box::new(details), ..self }
    }

    /// Says when to try again, in the body and in the header.
    pub(crate) fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_seconds: Some(seconds), ..self }
    }

    pub(crate) const fn status(&self) -> StatusCode {
        self.status
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
    fn into_response(self) -> Response {
        let (status, retry_after) = (self.status, self.retry_after_seconds);
        let mut response = (status, Json(self)).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
