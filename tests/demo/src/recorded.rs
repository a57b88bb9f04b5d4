//! Instances that write down what they are told.

use std::fs::File;

use backfill_driver::port::Store;
use backfill_driver::recording::Recorder;
use backfill_driver::{Handle, Observer};
use demo::fleet::RECORDING;
use wa_server::config::Config;
use wa_server::{Connector, RealWhatsApp, StartError};

/// The real client. If [`RECORDING`] names a file, what the instance is told goes there.
pub(crate) struct Recorded;

impl Connector for Recorded {
    type Gateway<S: Store> = <RealWhatsApp as Connector>::Gateway<S>;

    async fn connect<S: Store>(
        &self,
        config: &Config,
        handle: Handle,
        store: S,
    ) -> Result<Self::Gateway<S>, StartError> {
        RealWhatsApp.connect(config, handle, store).await
    }

    fn observer(&self) -> impl Observer {
        let path = std::env::var_os(RECORDING)?;
        // Without its recording the instance would go unjudged.
        Some(Recorder::new(File::create(path).expect("the recording can be written")))
    }

    async fn attend<S: Store>(&self, gateway: &Self::Gateway<S>) {
        RealWhatsApp.attend(gateway).await;
    }
}
