//! The API over real connections: a real instance on a real SQLite file, and a gateway that
//! behaves like WhatsApp as far as the API can tell.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod accounts;
mod auth;
mod console;
mod contract;
mod inbox;
mod open;
mod standby;
mod world;
