//! What a closed connection may do: nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use backfill_core::id::AccountId;
use backfill_driver::Handle;
use bytes::Bytes;
use whatsapp_rust::anyhow::{Result, anyhow};
use whatsapp_rust::async_channel::Receiver;
use whatsapp_rust::transport::{Transport, TransportEvent, TransportFactory};

/// Stands between one client and the network. Bytes pass while it is open and this process
/// believes to own the account; once shut, it stays shut.
#[derive(Clone)]
pub(crate) struct Gate {
    shut: Arc<AtomicBool>,
    handle: Handle,
    account: AccountId,
}

impl Gate {
    pub(crate) fn new(handle: &Handle, account: &AccountId) -> Self {
        Self { shut: Arc::default(), handle: handle.clone(), account: account.clone() }
    }

    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::Release);
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    fn pass(&self) -> Result<()> {
        if self.is_shut() {
            return Err(anyhow!("the connection is closed"));
        }
        if !self.handle.believes(&self.account) {
            return Err(anyhow!("this process does not own the account"));
        }
        Ok(())
    }
}

/// Opens connections behind a [`Gate`].
pub(crate) struct Gated {
    pub(crate) inner: Arc<dyn TransportFactory>,
    pub(crate) gate: Gate,
}

#[async_trait]
impl TransportFactory for Gated {
    async fn create_transport(&self) -> Result<(Arc<dyn Transport>, Receiver<TransportEvent>)> {
        self.gate.pass()?;
        let (inner, events) = self.inner.create_transport().await?;
        if let Err(shut) = self.gate.pass() {
            inner.disconnect().await;
            return Err(shut);
        }
        Ok((Arc::new(GatedTransport { inner, gate: self.gate.clone() }), events))
    }
}

struct GatedTransport {
    inner: Arc<dyn Transport>,
    gate: Gate,
}

#[async_trait]
impl Transport for GatedTransport {
    async fn send(&self, data: Bytes) -> Result<()> {
        self.gate.pass()?;
        self.inner.send(data).await
    }

    async fn disconnect(&self) {
        self.inner.disconnect().await;
    }
}
