//! Every decision of wa-backfill, as one state machine without I/O.
//!
//! The core has no clock, no randomness, no async and no logging: time and jitter are arguments,
//! effects are values. The same inputs give the same outputs, byte for byte, so that production
//! and the simulator drive the same code.

pub mod coverage;
pub mod doc;
pub mod id;
pub mod policy;
pub mod time;
