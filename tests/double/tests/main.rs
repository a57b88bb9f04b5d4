//! The real client against the double.

mod harness;
mod login;
