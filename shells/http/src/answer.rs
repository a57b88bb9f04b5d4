//! What answers have in common, and the words that several of them use.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::request_id;

/// A success: what was asked for, and under which request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Success<T> {
    /// Always true
    success: bool,
    #[serde(flatten)]
    answer: T,
    /// As in `X-Request-Id`
    request_id: String,
}

impl<T> Success<T> {
    pub(crate) fn new(answer: T) -> Self {
        Self { success: true, answer, request_id: request_id() }
    }
}

impl<T: Serialize> IntoResponse for Success<T> {
    fn into_response(self) -> Response {
        Json(self).into_response()
    }
}

/// Whether an instance serves or stands by.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Active,
    Passive,
}
