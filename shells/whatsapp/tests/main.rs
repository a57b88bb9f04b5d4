//! The gateway, driven by the real core, and its sessions, against the server double.

#![expect(clippy::unwrap_used, reason = "helpers of tests count as tests")]
#![allow(missing_docs)]

mod crash;
mod figures;
mod harness;
mod history;
mod lifecycle;
mod load;
mod on_demand;
mod pairing;
mod realtime;
mod sending;
mod session;
mod slice;
