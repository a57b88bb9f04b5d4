//! The session stores.

mod figures;
mod harness;
mod kills;
mod model;
mod ownership;
mod places;
mod process;
mod trial;
