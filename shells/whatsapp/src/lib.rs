//! WhatsApp as the driver's gateway, over the real client.

pub mod session;

pub use session::{Session, SessionError, SessionKeys, Sessions};
