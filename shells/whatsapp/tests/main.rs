//! The gateway, driven by the real core, against the double.

#![expect(clippy::unwrap_used, reason = "helpers of tests count as tests")]

mod harness;
mod slice;
