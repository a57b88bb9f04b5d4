//! The gateway, driven by the real core, and its sessions, against the server double.

#![expect(clippy::unwrap_used, reason = "helpers of tests count as tests")]
#![allow(missing_docs)]

mod harness;
mod lifecycle;
mod pairing;
mod session;
mod slice;
