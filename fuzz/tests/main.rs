//! Every property, one module per part of the core.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod coverage;
mod documents;
mod ingest;
mod instance;
mod leases;
mod rules;

/// How many cases a property tries whose cases are slow: as many as the environment variable
/// `PROPTEST_CASES` says, or a few.
fn cases(few: u32) -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(few)
}
