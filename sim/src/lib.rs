//! The world in which many instances, one store and many phones live.

pub mod chance;
pub mod checker;
pub mod clock;
pub mod faults;
pub mod queue;
pub mod report;
pub mod scenario;
pub mod store;
pub mod swarm;
#[cfg(madsim)]
pub mod tier2;
pub mod trace;
pub mod whatsapp;
pub mod world;
