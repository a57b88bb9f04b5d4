//! The world in which many instances, one store and many phones live.

pub mod chance;
pub mod clock;
pub mod faults;
pub mod queue;
pub mod scenario;
pub mod store;
pub mod whatsapp;
