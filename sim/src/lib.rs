//! The world in which many instances, one store and many phones live.

pub mod store;
