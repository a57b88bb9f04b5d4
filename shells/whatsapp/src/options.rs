//! How this process speaks to WhatsApp.

use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;
use whatsapp_rust::http::HttpClient;
use whatsapp_rust::transport::TransportFactory;

use crate::spool::Spool;

/// What the gateway needs besides the store.
#[derive(Clone)]
pub struct Options {
    /// Opens connections to the server
    pub transport: Arc<dyn TransportFactory>,
    /// Fetches history files, and without [`version`](Self::version) the current version
    pub http: Arc<dyn HttpClient>,
    /// The version of WhatsApp Web to claim; without it the client asks WhatsApp for the current one
    pub version: Option<(u32, u32, u32)>,
    /// What the list of linked devices calls this one
    pub device_name: SmolStr,
    /// Ask for the whole history when a device is linked, and not only for what is recent. Counts at
    /// the moment of linking only.
    pub full_history: bool,
    /// Read history that the phone sends by itself, but store nothing of it
    pub dry_run: bool,
    /// Where history waits until it is stored
    pub spool: Spool,
    /// How many one-time keys are uploaded at a time, from 5 to 812
    pub pre_keys: usize,
    /// How long the server may take to confirm a message that we send
    pub ack_timeout: Duration,
    /// How long history may take from its announcement to its arrival. After that it counts as
    /// lost: the client gives up in silence.
    pub history_timeout: Duration,
    /// How long a connection may take to close in good order. It must stay below the policy's
    /// `close_timeout`.
    pub close_timeout: Duration,
}

impl Options {
    /// The usual settings.
    pub fn new(
        transport: Arc<dyn TransportFactory>,
        http: Arc<dyn HttpClient>,
        spool: Spool,
    ) -> Self {
        Self {
            transport,
            http,
            version: None,
            device_name: SmolStr::new_static("wa-backfill"),
            full_history: true,
            dry_run: false,
            spool,
            // Each key costs about 900 bytes of memory and a row of the session.
            pre_keys: 50,
            ack_timeout: Duration::from_secs(20),
            history_timeout: Duration::from_secs(180),
            close_timeout: Duration::from_millis(2_500),
        }
    }
}
