//! Every decision of wa-backfill, as one state machine without I/O.
//!
//! The core has no clock, no randomness, no async and no logging: time and jitter are arguments,
//! effects are values. The same inputs give the same outputs, byte for byte, so that production
//! and the simulator drive the same code.

mod account;
pub mod alias;
pub mod bug;
mod chain;
mod changes;
mod contact;
pub mod coverage;
mod covered;
pub mod doc;
mod eligibility;
mod fields;
mod garbage;
mod host;
pub mod id;
pub mod incoming;
pub mod ingest;
pub mod instance;
pub mod io;
pub mod jid;
mod ledger;
mod link;
mod lock;
mod message;
mod outbox;
mod ownership;
mod phone;
pub mod policy;
#[cfg(feature = "serde")]
mod recorded;
mod roster;
mod run;
mod session;
mod spool;
mod tenure;
mod thread;
pub mod time;
mod timers;
