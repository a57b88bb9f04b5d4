//! The world in which many instances, one store and many phones live.

pub mod campaign;
pub mod chance;
pub mod checker;
pub mod clock;
pub mod faults;
pub mod focus;
pub mod hindsight;
pub mod meta;
pub mod model;
pub mod mutants;
pub mod picture;
pub mod properties;
pub mod queue;
pub mod regression;
pub mod report;
pub mod scenario;
pub mod shrink;
pub mod store;
pub mod story;
pub mod swarm;
#[cfg(madsim)]
pub mod tier2;
pub mod timeline;
pub mod trace;
pub mod variant;
pub mod whatsapp;
pub mod world;
