//! The world in which many instances, one store and many phones live.

pub mod campaign;
pub mod chance;
pub mod checker;
pub mod clock;
pub mod faults;
pub mod properties;
pub mod queue;
pub mod report;
pub mod scenario;
pub mod store;
pub mod swarm;
pub mod trace;
pub mod variant;
pub mod whatsapp;
pub mod world;
