//! The client's [`DeviceStore`]: who the linked device is.

use async_trait::async_trait;
use backfill_driver::port::Store;
use wacore::store::Device;
use wacore::store::error::{Result, StoreError};
use wacore::store::traits::DeviceStore;

use super::keeper::Keeper;
use super::rows::{Key, Table};

/// A session has one device.
const DEVICE_ID: i32 = 1;

#[async_trait]
impl<S: Store> DeviceStore for Keeper<S> {
    async fn save(&self, device: &Device) -> Result<()> {
        let value = to_json(device)?;
        let paired = device.pn.is_some();
        let save = self.write(|rows| {
            rows.put(key(), value);
            rows.set_paired(paired);
        });
        Ok(save.await?)
    }

    async fn load(&self) -> Result<Option<Device>> {
        self.read(|rows| rows.get(&key()).map(from_json).transpose())
    }

    async fn exists(&self) -> Result<bool> {
        Ok(self.read(|rows| rows.has(&key())))
    }

    async fn create(&self) -> Result<i32> {
        if !self.exists().await? {
            self.save(&Device::new()).await?;
        }
        Ok(DEVICE_ID)
    }
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| StoreError::Serialization(Box::new(e)))
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T> {
    serde_json::from_slice(json).map_err(|e| StoreError::Serialization(Box::new(e)))
}

fn key() -> Key {
    Key::new(Table::Device, [])
}
