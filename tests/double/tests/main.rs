//! The real client against the double.

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
