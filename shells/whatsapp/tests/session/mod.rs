//! The session stores.

pub(crate) mod figures;
mod harness;
pub(crate) mod kills;
mod model;
mod ownership;
mod places;
mod process;
mod trial;
