//! Whole worlds.

mod cli;
mod picture;
mod regressions;
mod shrinking;
mod tier1;
