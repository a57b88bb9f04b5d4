//! Phones, a WhatsApp server double and real instances as processes of one machine.
//!
//! The demo shows them to people; tests of real processes drive the same parts.

#![expect(clippy::disallowed_methods, reason = "people and processes live in real time")]

pub mod api;
pub mod fleet;
pub mod office;
pub mod scan;
pub mod truth;
