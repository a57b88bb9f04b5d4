//! Whole worlds.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test may panic and look at the clock"
)]

mod cli;
mod hindsight;
mod model;
mod mutants;
mod picture;
mod regressions;
mod shrinking;
mod tier1;
mod tier2;

/// That of campaigns.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
