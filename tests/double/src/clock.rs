//! One clock for the client, the double and the test: tokio's.

use std::sync::OnceLock;

use tokio::time::Instant;
use wacore::time::{MonotonicProvider, TimeProvider, set_monotonic_provider, set_time_provider};

/// Where [`follow_tokio`] lets wall time start, in Unix milliseconds: 15 June 2025, a time at which
/// the published certificate chain was valid
pub const EPOCH_MS: i64 = 1_750_000_000_000;

/// Makes all clients in this process read time from tokio, so that pausing a runtime's clock
/// pauses them too: their keepalives, expiries and timestamps then follow virtual time.
///
/// Idempotent. Must run before the first client exists; returns false if something else has already
/// set the client's clock.
pub fn follow_tokio() -> bool {
    static FOLLOWING: OnceLock<bool> = OnceLock::new();
    *FOLLOWING
        .get_or_init(|| set_time_provider(Tokio).is_ok() & set_monotonic_provider(Tokio).is_ok())
}

struct Tokio;

impl Tokio {
    fn elapsed(&self) -> std::time::Duration {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        let now = Instant::now();
        now.saturating_duration_since(*ORIGIN.get_or_init(|| now))
    }
}

impl MonotonicProvider for Tokio {
    fn now_nanos(&self) -> u64 {
        u64::try_from(self.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl TimeProvider for Tokio {
    fn now_millis(&self) -> i64 {
        EPOCH_MS + i64::try_from(self.elapsed().as_millis()).unwrap_or(0)
    }
}
