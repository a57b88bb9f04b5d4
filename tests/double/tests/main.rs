//! The real client against the double.

#![expect(clippy::unwrap_used, reason = "helpers of tests count as tests")]

mod errors;
mod faults;
mod groups;
mod harness;
mod history;
mod login;
mod offline;
mod on_demand;
mod pairing;
mod sending;
mod websocket;
