//! The session stores.

mod harness;
mod kills;
mod model;
mod ownership;
mod places;
mod process;
mod trial;
