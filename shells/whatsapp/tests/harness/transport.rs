//! The network of a process that can die.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use whatsapp_double::MemoryTransport;
use whatsapp_rust::anyhow::Result;
use whatsapp_rust::async_channel::Receiver;
use whatsapp_rust::transport::{Transport, TransportEvent, TransportFactory};

use super::store::Life;

/// Every write to the network is a step of the process.
pub(crate) struct Mortal {
    pub(crate) inner: MemoryTransport,
    pub(crate) life: Life,
}

struct MortalTransport {
    inner: Arc<dyn Transport>,
    life: Life,
}

#[async_trait]
impl TransportFactory for Mortal {
    async fn create_transport(&self) -> Result<(Arc<dyn Transport>, Receiver<TransportEvent>)> {
        self.life.step().await;
        let (inner, events) = self.inner.create_transport().await?;
        Ok((Arc::new(MortalTransport { inner, life: self.life.clone() }), events))
    }
}

#[async_trait]
impl Transport for MortalTransport {
    async fn send(&self, data: Bytes) -> Result<()> {
        self.life.step().await;
        self.inner.send(data).await?;
        self.life.step().await;
        Ok(())
    }

    async fn disconnect(&self) {
        self.inner.disconnect().await;
    }
}
