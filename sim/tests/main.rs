//! Whole worlds.

mod cli;
mod model;
mod picture;
mod regressions;
mod shrinking;
mod tier1;
