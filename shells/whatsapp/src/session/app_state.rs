//! The client's [`AppSyncStore`]: how far it has followed the phone's settings.

use std::collections::HashMap;

use async_trait::async_trait;
use backfill_driver::port::Store;
use wacore::appstate::hash::HashState;
use wacore::appstate::processor::AppStateMutationMAC;
use wacore::store::error::Result;
use wacore::store::traits::{AppStateSyncKey, AppSyncStore};

use super::device::{from_json, to_json};
use super::keeper::Keeper;
use super::rows::{Key, Table};

#[async_trait]
impl<S: Store> AppSyncStore for Keeper<S> {
    async fn get_sync_key(&self, key_id: &[u8]) -> Result<Option<AppStateSyncKey>> {
        self.read(|rows| rows.get(&Key::new(Table::SyncKey, key_id)).map(from_json).transpose())
    }

    async fn set_sync_key(&self, key_id: &[u8], key: AppStateSyncKey) -> Result<()> {
        let value = to_json(&key)?;
        let set = self.write(|rows| {
            rows.put(Key::new(Table::SyncKey, key_id), value);
            rows.put(latest_key(), key_id);
        });
        Ok(set.await?)
    }

    async fn get_version(&self, name: &str) -> Result<HashState> {
        let state = self
            .read(|rows| rows.get(&Key::new(Table::Collection, name)).map(from_json).transpose());
        Ok(state?.unwrap_or_default())
    }

    async fn set_version(&self, name: &str, state: HashState) -> Result<()> {
        let value = to_json(&state)?;
        Ok(self.write(|rows| rows.put(Key::new(Table::Collection, name), value)).await?)
    }

    async fn put_mutation_macs(
        &self,
        name: &str,
        _version: u64,
        mutations: &[AppStateMutationMAC],
    ) -> Result<()> {
        let put = self.write(|rows| {
            for mac in mutations {
                rows.put(mac_key(name, &mac.index_mac), &mac.value_mac[..]);
            }
        });
        Ok(put.await?)
    }

    async fn get_mutation_mac(&self, name: &str, index_mac: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.read(|rows| rows.get(&mac_key(name, index_mac)).map(<[u8]>::to_vec)))
    }

    async fn get_mutation_macs(
        &self,
        name: &str,
        index_macs: &[[u8; 32]],
    ) -> Result<HashMap<[u8; 32], Vec<u8>>> {
        Ok(self.read(|rows| {
            let mac = |index: &[u8; 32]| Some((*index, rows.get(&mac_key(name, index))?.to_vec()));
            index_macs.iter().filter_map(mac).collect()
        }))
    }

    async fn delete_mutation_macs(&self, name: &str, index_macs: &[Vec<u8>]) -> Result<()> {
        let delete = self.write(|rows| {
            for index_mac in index_macs {
                rows.remove(&mac_key(name, index_mac));
            }
        });
        Ok(delete.await?)
    }

    async fn clear_mutation_macs(&self, name: &str) -> Result<()> {
        let clear = self.write(|rows| rows.remove_beginning(&Key::owned(Table::MutationMac, name)));
        Ok(clear.await?)
    }

    async fn get_latest_sync_key_id(&self) -> Result<Option<Vec<u8>>> {
        Ok(self.read(|rows| rows.get(&latest_key()).map(<[u8]>::to_vec)))
    }
}

fn latest_key() -> Key {
    Key::new(Table::LatestSyncKey, [])
}

fn mac_key(name: &str, index_mac: &[u8]) -> Key {
    Key::nested(Table::MutationMac, name, index_mac)
}
