//! The one place where async code talks to the core.
//!
//! [`port`] says what the outside world must be able to do: keep documents, speak to WhatsApp,
//! tell the time. Production implements these traits with real stores and the real client, the
//! simulator with simulated ones; the code between them and the core is the same.
//!
//! A [`Driver`] owns one instance of the core and runs it; a [`Handle`] reaches it. Whatever the
//! core wants done is done in a task of its own; messages go [past](Handle::realtime) the core,
//! which learns of them once they are durable.

pub mod billing;
mod calls;
mod driver;
mod effects;
mod handle;
mod hints;
pub mod ingest;
mod intake;
mod permits;
pub mod port;
#[cfg(feature = "recording")]
pub mod recording;
pub mod semantics;
#[cfg(test)]
mod testing;

pub use driver::{Driver, Observer};
pub use handle::{Ended, Handle};
pub use intake::{NotStored, Parcel, Withhold};
