//! What an error of the server or the connection means for the caller.
//!
//! The server's own texts name documents, and ids hold phone numbers, so they end here: an error
//! carries the status code and what the connection said.

use std::error::Error;
use std::io::ErrorKind;

use backfill_driver::port::{Cause, StoreError};
use firestore::gcloud_sdk::google_cloud_auth::errors::CredentialsError;
use firestore::gcloud_sdk::tonic::{Code, Status};

/// A status code, and what broke if it was the connection.
#[derive(Debug, thiserror::Error)]
#[error("Firestore answered {code:?}")]
struct Answered {
    code: Code,
    #[source]
    connection: Option<Connection>,
}

/// The innermost error of a connection.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Connection(String);

/// The error of a commit that the server or the connection refused.
pub(crate) fn refused_commit(status: Status) -> StoreError {
    match status.code() {
        // Absent, exists and version each have their own code; contention is one more reason to
        // read again.
        Code::Aborted | Code::AlreadyExists | Code::FailedPrecondition => {
            StoreError::Conflict(cause(&status))
        }
        // A version that the document never had, as after a restore.
        Code::InvalidArgument if says(&status, "base version") => {
            StoreError::Conflict(cause(&status))
        }
        Code::NotFound if !says(&status, "database") => StoreError::Conflict(cause(&status)),
        Code::Unavailable | Code::Unknown if never_sent(&status) => refused_unsent(&status),
        Code::Cancelled
        | Code::DataLoss
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Unavailable
        | Code::Unknown => lost_commit(cause(&status)),
        _ => refused(&status),
    }
}

/// The error of a read that the server or the connection refused; a read applies nothing.
pub(crate) fn refused_read(status: Status) -> StoreError {
    match status.code() {
        Code::FailedPrecondition if says(&status, "index") => StoreError::Invalid {
            reason: "the query needs an index that the database does not have".into(),
        },
        Code::Unknown if never_sent(&status) => refused_unsent(&status),
        _ => refused(&status),
    }
}

/// A commit without an answer.
pub(crate) fn lost_commit(cause: Option<Cause>) -> StoreError {
    StoreError::Unknown(cause)
}

/// A read without a whole answer.
pub(crate) fn unanswered_read() -> StoreError {
    StoreError::Unavailable(None)
}

fn refused(status: &Status) -> StoreError {
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => StoreError::Denied(cause(status)),
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => {
            invalid(if says(status, "size") || says(status, "longer than") {
                "a document or value is too large"
            } else {
                "Firestore calls it an invalid argument"
            })
        }
        Code::NotFound => invalid("the database does not exist"),
        Code::ResourceExhausted if says(status, "maximum size") => {
            invalid("the request is too large")
        }
        _ => StoreError::Unavailable(cause(status)),
    }
}

fn refused_unsent(status: &Status) -> StoreError {
    let lasting = sources(status)
        .filter_map(|e| e.downcast_ref::<CredentialsError>())
        .any(|e| !e.is_transient());
    if lasting { StoreError::Denied(cause(status)) } else { StoreError::Unavailable(cause(status)) }
}

/// Whether the request certainly never left: no token for it, or no connection.
fn never_sent(status: &Status) -> bool {
    sources(status).any(|e| {
        e.is::<CredentialsError>()
            || e.downcast_ref::<std::io::Error>().is_some_and(|e| {
                matches!(
                    e.kind(),
                    ErrorKind::AddrNotAvailable
                        | ErrorKind::ConnectionRefused
                        | ErrorKind::HostUnreachable
                        | ErrorKind::NetworkUnreachable
                )
            })
    })
}

fn sources(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |e: &&(dyn Error + 'static)| (*e).source())
}

fn says(status: &Status, words: &str) -> bool {
    status.message().contains(words)
}

fn cause(status: &Status) -> Option<Cause> {
    let connection = sources(status).last().map(|e| Connection(e.to_string()));
    Some(Box::new(Answered { code: status.code(), connection }))
}

fn invalid(reason: &str) -> StoreError {
    StoreError::Invalid { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn broken(kind: ErrorKind) -> Status {
        let mut status = Status::new(Code::Unavailable, "broken");
        status.set_source(Arc::new(std::io::Error::from(kind)));
        status
    }

    #[test]
    fn only_what_never_left_is_known_not_to_have_happened() {
        assert!(matches!(
            refused_commit(broken(ErrorKind::ConnectionRefused)),
            StoreError::Unavailable(_)
        ));
        for status in [
            broken(ErrorKind::ConnectionReset),
            broken(ErrorKind::TimedOut),
            Status::new(Code::Unavailable, ""),
            Status::new(Code::DeadlineExceeded, ""),
            Status::new(Code::Internal, ""),
        ] {
            assert!(matches!(refused_commit(status), StoreError::Unknown(_)));
        }
        assert!(matches!(
            refused_read(Status::new(Code::DeadlineExceeded, "")),
            StoreError::Unavailable(_)
        ));
    }

    #[test]
    fn errors_do_not_repeat_what_the_server_said() {
        let secret = "documents/threads/a__4917012345@s.whatsapp.net";
        for code in 1..=16 {
            let status = Status::new(Code::from_i32(code), secret);
            let mut shown = format!("{:?}", refused_commit(status));
            shown += &format!("{:?}", refused_read(Status::new(Code::from_i32(code), secret)));
            assert!(!shown.contains("4917012345"), "{shown}");
        }
    }
}
