//! What an error of SQLite means for the caller.

use backfill_driver::port::{Cause, StoreError};
use rusqlite::{Error, ErrorCode};

/// The error of something that was rolled back, or only read.
pub(crate) fn not_done(e: Error) -> StoreError {
    match e.sqlite_error_code() {
        Some(
            ErrorCode::AuthorizationForStatementDenied
            | ErrorCode::PermissionDenied
            | ErrorCode::ReadOnly,
        ) => StoreError::Denied(Some(Box::new(e))),
        _ => StoreError::Unavailable(Some(Box::new(e))),
    }
}

/// An answer that will not come, or a commit that may be durable or not.
pub(crate) fn unknown(cause: impl Into<Cause>) -> StoreError {
    StoreError::Unknown(Some(cause.into()))
}

/// A document whose bytes are damaged.
pub(crate) fn damaged() -> Error {
    refusal("the bytes of a document are damaged")
}

/// An error of our own among SQLite's; this variant carries any error and shows it as it is.
pub(crate) fn refusal(reason: impl Into<Cause>) -> Error {
    Error::ToSqlConversionFailure(reason.into())
}
