//! The client's [`SignalStore`]: identities, ratchets and keys.

use std::sync::Arc;

use async_trait::async_trait;
use backfill_driver::port::Store;
use bytes::Bytes;
use wacore::store::error::{Result, StoreError};
use wacore::store::traits::SignalStore;

use super::keeper::Keeper;
use super::rows::{Edit, Key, Rows, Table};

#[async_trait]
impl<S: Store> SignalStore for Keeper<S> {
    async fn put_identity(&self, address: &str, key: [u8; 32]) -> Result<()> {
        Ok(self.write(|rows| rows.put(Key::new(Table::Identity, address), key)).await?)
    }

    async fn put_identities_batch(&self, identities: &[(Arc<str>, [u8; 32])]) -> Result<()> {
        let put = self.write(|rows| {
            for (address, key) in identities {
                rows.put(Key::new(Table::Identity, address.as_bytes()), *key);
            }
        });
        Ok(put.await?)
    }

    async fn load_identity(&self, address: &str) -> Result<Option<[u8; 32]>> {
        self.read(|rows| {
            let key = rows.get(&Key::new(Table::Identity, address));
            key.map(|key| key.try_into().map_err(|_| odd("an identity"))).transpose()
        })
    }

    async fn delete_identity(&self, address: &str) -> Result<()> {
        self.write(|rows| rows.remove(&Key::new(Table::Identity, address))).await?;
        Ok(())
    }

    async fn get_session(&self, address: &str) -> Result<Option<Bytes>> {
        Ok(self.read(|rows| bytes(rows, &Key::new(Table::Session, address))))
    }

    async fn put_session(&self, address: &str, session: &[u8]) -> Result<()> {
        Ok(self.write(|rows| rows.put(Key::new(Table::Session, address), session)).await?)
    }

    async fn put_sessions_batch(&self, sessions: &[(Arc<str>, Bytes)]) -> Result<()> {
        Ok(self.write(|rows| put_all(rows, Table::Session, sessions)).await?)
    }

    async fn delete_session(&self, address: &str) -> Result<()> {
        self.write(|rows| rows.remove(&Key::new(Table::Session, address))).await?;
        Ok(())
    }

    async fn has_session(&self, address: &str) -> Result<bool> {
        Ok(self.read(|rows| rows.has(&Key::new(Table::Session, address))))
    }

    async fn has_signal_state_for_user(&self, user: &str) -> Result<bool> {
        Ok(self.read(|rows| {
            let any = |table, end| {
                rows.beginning(&Key::new(table, format!("{user}{end}"))).next().is_some()
            };
            [Table::Session, Table::Identity].iter().any(|t| any(*t, '@') || any(*t, ':'))
        }))
    }

    async fn store_prekey(&self, id: u32, record: &[u8], uploaded: bool) -> Result<()> {
        Ok(self.write(|rows| put_prekey(rows, id, record, uploaded)).await?)
    }

    async fn store_prekeys_batch(&self, keys: &[(u32, Bytes)], uploaded: bool) -> Result<()> {
        let store = self.write(|rows| {
            for (id, record) in keys {
                put_prekey(rows, *id, record, uploaded);
            }
        });
        Ok(store.await?)
    }

    async fn load_prekey(&self, id: u32) -> Result<Option<Bytes>> {
        Ok(self.read(|rows| prekey(rows, id)))
    }

    async fn load_prekeys_batch(&self, ids: &[u32]) -> Result<Vec<(u32, Bytes)>> {
        Ok(self.read(|rows| ids.iter().filter_map(|id| Some((*id, prekey(rows, *id)?))).collect()))
    }

    async fn mark_prekeys_uploaded(&self, ids: &[u32]) -> Result<()> {
        let mark = self.write(|rows| {
            for id in ids {
                // A key that was used meanwhile stays away.
                if let Some(record) = prekey(rows.rows(), *id) {
                    put_prekey(rows, *id, &record, true);
                }
            }
        });
        Ok(mark.await?)
    }

    /// A used key that is still there after a crash does no harm, so this does not wait.
    async fn remove_prekey(&self, id: u32) -> Result<()> {
        self.write(|rows| rows.forget(&prekey_key(id))).await?;
        Ok(())
    }

    async fn get_max_prekey_id(&self) -> Result<u32> {
        Ok(self
            .read(|rows| rows.table(Table::PreKey).next_back().and_then(|(key, _)| id_of(key)))
            .unwrap_or(0))
    }

    async fn store_signed_prekey(&self, id: u32, record: &[u8]) -> Result<()> {
        Ok(self.write(|rows| rows.put(signed_prekey_key(id), record)).await?)
    }

    async fn load_signed_prekey(&self, id: u32) -> Result<Option<Vec<u8>>> {
        Ok(self.read(|rows| rows.get(&signed_prekey_key(id)).map(<[u8]>::to_vec)))
    }

    async fn load_all_signed_prekeys(&self) -> Result<Vec<(u32, Vec<u8>)>> {
        Ok(self.read(|rows| {
            let all = rows.table(Table::SignedPreKey);
            all.filter_map(|(key, record)| Some((id_of(key)?, record.to_vec()))).collect()
        }))
    }

    async fn remove_signed_prekey(&self, id: u32) -> Result<()> {
        self.write(|rows| rows.remove(&signed_prekey_key(id))).await?;
        Ok(())
    }

    async fn put_sender_key(&self, address: &str, record: &[u8]) -> Result<()> {
        Ok(self.write(|rows| rows.put(Key::new(Table::SenderKey, address), record)).await?)
    }

    async fn put_sender_keys_batch(&self, sender_keys: &[(Arc<str>, Bytes)]) -> Result<()> {
        Ok(self.write(|rows| put_all(rows, Table::SenderKey, sender_keys)).await?)
    }

    async fn get_sender_key(&self, address: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.read(|rows| rows.get(&Key::new(Table::SenderKey, address)).map(<[u8]>::to_vec)))
    }

    async fn delete_sender_key(&self, address: &str) -> Result<()> {
        self.write(|rows| rows.remove(&Key::new(Table::SenderKey, address))).await?;
        Ok(())
    }
}

fn put_all(rows: &mut Edit<'_>, table: Table, records: &[(Arc<str>, Bytes)]) {
    for (address, record) in records {
        rows.put(Key::new(table, address.as_bytes()), &record[..]);
    }
}

fn bytes(rows: &Rows, key: &Key) -> Option<Bytes> {
    rows.get(key).map(Bytes::copy_from_slice)
}

fn prekey_key(id: u32) -> Key {
    Key::new(Table::PreKey, id.to_be_bytes())
}

fn signed_prekey_key(id: u32) -> Key {
    Key::new(Table::SignedPreKey, id.to_be_bytes())
}

fn id_of(key: &Key) -> Option<u32> {
    Some(u32::from_be_bytes(key.name().try_into().ok()?))
}

/// A one-time key's row is whether it was uploaded, then the record.
fn put_prekey(rows: &mut Edit<'_>, id: u32, record: &[u8], uploaded: bool) {
    let mut value = Vec::with_capacity(1 + record.len());
    value.push(u8::from(uploaded));
    value.extend(record);
    rows.put(prekey_key(id), value);
}

fn prekey(rows: &Rows, id: u32) -> Option<Bytes> {
    let (_, record) = rows.get(&prekey_key(id))?.split_first()?;
    Some(Bytes::copy_from_slice(record))
}

fn odd(what: &str) -> StoreError {
    StoreError::Validation(format!("{what} has another size than it should"))
}
