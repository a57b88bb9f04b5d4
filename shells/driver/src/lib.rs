//! The one place where async code talks to the core.
//!
//! [`port`] says what the outside world must be able to do: keep documents, speak to WhatsApp,
//! tell the time. Production implements these traits with real stores and the real client, the
//! simulator with simulated ones; the code between them and the core is the same.

pub mod billing;
pub mod ingest;
pub mod port;
pub mod semantics;
