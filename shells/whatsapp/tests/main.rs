//! Tests of the gateway and its sessions against the server double.
#![allow(missing_docs)]

mod session;
