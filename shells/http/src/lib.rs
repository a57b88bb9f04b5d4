//! The HTTP API, the console and the metrics.
//!
//! An [`App`](app::App) answers for one instance, whose [`Handle`](backfill_driver::Handle) it is
//! given once there is one; until then, and whenever the store is gone, it says so. What `/ready`
//! and `/diag` show comes from memory: the [`View`](view::View) sees what the instance reads and
//! writes.

mod access;
mod accounts;
mod answer;
pub mod app;
mod console;
mod diagnosis;
mod documents;
mod error;
mod firebase;
mod health;
mod json;
mod limits;
mod listen;
pub mod metered;
pub mod metrics;
mod openapi;
mod qr;
mod send;
mod threads;
pub mod view;

pub use access::AccessOptions;
pub use documents::Documents;
pub use firebase::{FirebaseOptions, KEYS_URL};
pub use json::iso;
pub use listen::serve;

/// The API's description, as `/openapi.json` shows it.
pub fn description() -> serde_json::Value {
    serde_json::json!(openapi::routes().1)
}
