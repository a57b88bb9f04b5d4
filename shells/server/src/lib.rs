//! The server: configuration, wiring and command line of `wa-backfill`.
//!
//! [`start`] runs a server in the caller's process, with any [`Connector`]: the binary gives it
//! the real WhatsApp, demos and tests something else.

pub mod cli;
mod clock;
pub mod config;
mod dotenv;
mod economy;
mod journal;
mod logs;
mod serve;
pub mod settings;
mod whatsapp;

pub use clock::TokioRuntime;
pub use serve::{Connector, Running, StartError, admin_token_path, start};
pub use whatsapp::RealWhatsApp;
