//! The real WhatsApp.

use std::sync::Arc;
use std::time::Duration;

use backfill_driver::Handle;
use backfill_driver::port::Store;
use gateway_whatsapp::{Http, Options, Sessions, Spool, WhatsApp};
use tracing::{error, warn};
use whatsapp_rust::transport::TokioWebSocketTransportFactory;

use crate::config::{Config, SessionChoice};
use crate::serve::{Connector, StartError};

/// Speaks to WhatsApp, or to what the configuration names instead.
#[derive(Clone, Copy, Debug)]
pub struct RealWhatsApp;

impl Connector for RealWhatsApp {
    type Gateway<S: Store> = WhatsApp<S>;

    async fn connect<S: Store>(
        &self,
        config: &Config,
        handle: Handle,
        store: S,
    ) -> Result<WhatsApp<S>, StartError> {
        let mut transport = TokioWebSocketTransportFactory::new();
        if let Some(url) = &config.whatsapp.url {
            transport = transport.with_url(url.as_str());
        }
        let http = Http::new(config.whatsapp.media_url.clone());
        let http = http.map_err(|error| StartError::Gateway(Box::new(error)))?;
        // History that waits goes where the credentials are, so that whoever has those has it too.
        let spool = match &config.sessions {
            SessionChoice::Local(_) => Spool::disk(config.data_dir.join("spool")),
            SessionChoice::Shared(keys) => Spool::shared(keys.clone()),
        };
        let mut options = Options::new(Arc::new(transport), Arc::new(http), spool);
        options.full_history = config.whatsapp.full_history;
        options.dry_run = config.whatsapp.history_dry_run;
        options.close_timeout = config.policy.close_timeout * 5 / 6;
        if config.whatsapp.url.is_some() {
            // Whoever stands in for WhatsApp does not say which version is current.
            options.version = Some((2, 3000, 1));
        }
        let sessions = match &config.sessions {
            SessionChoice::Local(directory) => Sessions::local(directory),
            SessionChoice::Shared(keys) => {
                let handle = handle.clone();
                let fence = move |account: &_| handle.look(|instance| instance.fence(account));
                Sessions::shared(store.clone(), keys.clone(), fence)
            }
        };
        let gateway = WhatsApp::new(handle, store, sessions, options);
        gateway.start().await.map_err(|error| StartError::Gateway(Box::new(error)))?;
        Ok(gateway)
    }

    /// Whoever stands by learns whether it could take over. Another process of this host may link
    /// accounts whose credentials then lie here too.
    async fn attend<S: Store>(&self, gateway: &WhatsApp<S>) {
        let mut checked = false;
        loop {
            // A store that does not answer is mentioned already.
            if !checked && let Ok(unreadable) = gateway.unreadable().await {
                checked = true;
                if let Some((_, why)) = unreadable.first() {
                    let accounts = unreadable.len();
                    error!(accounts, "[config] SESSION_ENCRYPTION_KEY does not fit: {why}");
                }
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            if let Err(error) = gateway.start().await {
                warn!("[config] the sessions of this host cannot be read: {error}");
            }
        }
    }
}

const LOOK_AGAIN: Duration = Duration::from_secs(60);
