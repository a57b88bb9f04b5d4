//! Whole worlds.

mod cli;
mod picture;
mod regressions;
mod shrinking;
mod tier1;
mod tier2;
