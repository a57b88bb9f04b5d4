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
//! The tests in `tests/figures.rs` measure it; how to run them is said there. Seen with optimised code
//! on 2 virtual cores, the server double in the same process:
//!
//! | | |
//! |---|---|
//! | a further idle account, local sessions | 432 KiB, six files, two threads |
//! | a further idle account, shared sessions | 130 KiB, one file, no thread |
//! | connected after the scan of a code | 53 ms |
//! | live messages from the wire into SQLite | 7,733 a second |
//! | … of which the client and its session, alone | 20,802 a second |
//! | history from the spool into SQLite | 61,709 messages a second, 16 µs each |
//! | … of which downloading, spooling and reading | 2 µs |
//! | … and ingest with the store | 14 µs, nearly all of it waiting for the store |
//! | 100,000 messages of 500 chats | 1.6 s, 33 MiB more at most; live ones meanwhile in 23 ms at worst |

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
