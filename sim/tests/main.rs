//! Whole worlds.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod cli;
mod model;
mod picture;
mod regressions;
mod shrinking;
mod tier1;
mod tier2;
