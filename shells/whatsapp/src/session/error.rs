//! Why a session cannot be used.

use std::sync::Arc;

use backfill_driver::port;
use smol_str::SmolStr;

/// Why a session store did not do what it was asked. No variant shows an account, a key or any
/// content.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SessionError {
    /// The session of this account is open already; one at a time may use it
    #[error("the session is open already")]
    AlreadyOpen,
    /// The session has been closed
    #[error("the session has been closed")]
    Closed,
    /// A document is not what was written
    #[error("the session is damaged: {document}: {reason}")]
    Damaged {
        /// Which document, within the account's session
        document: SmolStr,
        /// What is wrong with it
        reason: &'static str,
    },
    /// Somebody else owns the account, or has written the session; it must be opened anew
    #[error("the session belongs to another owner now")]
    Fenced,
    /// The directory or file of a local session cannot be used
    #[error("the session's file cannot be used")]
    File(#[source] Arc<std::io::Error>),
    /// A newer program has written the session
    #[error("the session has format {format}; this program knows {known}")]
    Newer {
        /// The format found
        format: i64,
        /// The newest format this program knows
        known: i64,
    },
    /// The system gave no random bytes
    #[error("the system gives no random bytes")]
    NoRandomness,
    /// This process does not own the account
    #[error("the account is not owned here")]
    NotOwned,
    /// The store failed
    #[error("the session's store failed")]
    Store(#[source] Arc<port::StoreError>),
    /// A single record exceeds what a commit can carry
    #[error("a record of {bytes} bytes is too large for the session; at most {limit} are allowed")]
    TooLarge {
        /// Its size
        bytes: usize,
        /// The largest size that is taken
        limit: usize,
    },
    /// A document was sealed with another key of the same name, or has been tampered with
    #[error("the session cannot be decrypted: {document} does not open with key `{key}`")]
    Undecryptable {
        /// Which document, within the account's session
        document: SmolStr,
        /// The id of the key it names
        key: SmolStr,
    },
    /// A document was sealed with a key that is not configured
    #[error(
        "the session cannot be decrypted: {document} needs key `{key}`, which is not configured"
    )]
    UnknownKey {
        /// Which document, within the account's session
        document: SmolStr,
        /// The id of the key it names
        key: SmolStr,
    },
}

impl From<port::StoreError> for SessionError {
    fn from(e: port::StoreError) -> Self {
        Self::Store(Arc::new(e))
    }
}

impl From<std::io::Error> for SessionError {
    fn from(e: std::io::Error) -> Self {
        Self::File(Arc::new(e))
    }
}

/// The client's stores know no error of ours; whoever needs to know looks at the source.
impl From<SessionError> for wacore::store::error::StoreError {
    fn from(e: SessionError) -> Self {
        Self::Database(Box::new(e))
    }
}
