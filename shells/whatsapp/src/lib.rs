//! WhatsApp as the driver's gateway, over the real client.
//!
//! [`WhatsApp`] does what the core asks for: connects, sends, asks phones for history, spools and
//! reads what they send. The client connects once per request of the core, and never by itself.
//! What arrives takes one of three ways:
//!
//! - Messages come through the client's durability hook (`hook`), which lets the client confirm
//!   them once they are in the store.
//! - What the client confirms by itself, such as receipts, is stored in order right after (`aside`).
//! - History is spooled first and read piece by piece (`chunk`, `history`); pages that were asked
//!   for are stored at once (`page`).
//!
//! A connection ends (`link`) behind a gate (`gate`): once it is reported closed, no byte of it
//! reaches WhatsApp any more, whatever the client still does.
//!
//! # What it costs
//!
//! The tests in `tests/figures.rs` measure it; how to run them is said there. In the test profile, on
//! a busy machine with two cores and the server double in the same process: a further idle account
//! with local sessions takes 436 KiB, six files and two threads; a device is connected 64 ms after its
//! code was scanned.

mod account;
mod aside;
mod chunk;
mod convert;
mod events;
mod gate;
mod gateway;
mod history;
mod hook;
mod http;
mod link;
mod options;
mod page;
mod pair;
mod send;
pub mod session;
mod spool;

pub use gateway::WhatsApp;
pub use http::{Http, HttpError};
pub use options::Options;
pub use session::{Session, SessionError, SessionKeys, Sessions};
pub use spool::Spool;
