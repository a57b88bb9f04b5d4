//! Every decision of wa-backfill, as one state machine without I/O.
//!
//! The core has no clock, no randomness, no async and no logging: time and jitter are arguments,
//! effects are values. The same inputs give the same outputs, byte for byte, so that production
//! and the simulator drive the same code.

pub mod alias;
mod changes;
mod contact;
pub mod doc;
pub mod id;
pub mod incoming;
pub mod ingest;
pub mod jid;
mod message;
pub mod policy;
mod thread;
pub mod time;
