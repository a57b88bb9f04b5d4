//! Tests of the gateway and its sessions against the server double.
#![expect(clippy::unwrap_used, reason = "helpers of tests count as tests")]
#![allow(missing_docs)]

mod session;
