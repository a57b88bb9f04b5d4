//! What every store must do, as tests that run unchanged against each of them.
//!
//! A store's test binary (`harness = false`) hands a [`Fixture`] to [`cases`] and the list, with
//! cases of its own, to [`run`]. [`Emulator`] is the one way to a Firestore emulator for every
//! test and bench of the workspace.

#[expect(clippy::unwrap_used, reason = "a case fails by panicking")]
mod cases;
mod emulator;
mod history;
mod runner;
mod simulated;

pub use cases::cases;
pub use emulator::{Emulator, EmulatorError, REQUIRE_EMULATOR};
pub use history::{account, history};
pub use runner::{Case, run};
pub use simulated::{Deaf, Simulated};

use backfill_driver::port::Store;

/// Opens the store under test.
pub trait Fixture: Clone + Send + Sync + 'static {
    /// The store
    type Store: Store;
    /// Whether a read may see half of a commit that is just being applied, against the contract:
    /// the Firestore emulator does that even inside a read-only transaction. Firestore does not.
    const TORN_READS: bool = false;

    /// One more client of the documents in `space`; a space that nobody opened before is empty.
    fn open(&self, space: &str) -> impl Future<Output = Self::Store> + Send;
}
