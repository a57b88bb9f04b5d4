//! The client's [`ProtocolStore`]: what it knows about others, and messages on their way.

use async_trait::async_trait;
use backfill_driver::port::Store;
use wacore::store::error::{Result, StoreError};
use wacore::store::traits::{
    DeviceListRecord, LidPnMappingEntry, PendingInboundKey, PendingInboundRow, ProtocolStore,
    TcTokenEntry,
};
use wacore::time::now_secs;

use super::device::{from_json, to_json};
use super::keeper::Keeper;
use super::rows::{Edit, Key, Rows, Table};

/// At most so many sent messages are kept for a second try; beyond that the oldest quarter goes.
const SENT_MESSAGES: usize = 4096;

#[async_trait]
impl<S: Store> ProtocolStore for Keeper<S> {
    async fn get_sender_key_devices(&self, group_jid: &str) -> Result<Vec<(String, bool)>> {
        let group = Key::owned(Table::SenderKeyDevice, group_jid);
        let length = group.as_bytes().len();
        self.read(|rows| {
            let devices = rows.beginning(&group);
            devices.map(|(key, has)| Ok((text(&key.as_bytes()[length..])?, has == [1]))).collect()
        })
    }

    async fn set_sender_key_status(&self, group_jid: &str, entries: &[(&str, bool)]) -> Result<()> {
        let set = self.write(|rows| {
            for (device, has) in entries {
                let key = Key::nested(Table::SenderKeyDevice, group_jid, device);
                rows.put(key, [u8::from(*has)]);
            }
        });
        Ok(set.await?)
    }

    async fn clear_sender_key_devices(&self, group_jid: &str) -> Result<()> {
        let group = Key::owned(Table::SenderKeyDevice, group_jid);
        Ok(self.write(|rows| rows.remove_beginning(&group)).await?)
    }

    async fn delete_sender_key_device_rows(&self, device_jids: &[&str]) -> Result<()> {
        let delete = self.write(|rows| {
            rows.remove_where(Table::SenderKeyDevice, |key, _| {
                let name = key.name();
                let owner = name.first_chunk().map_or(0, |n| u32::from_be_bytes(*n) as usize);
                let device = name.get(4 + owner..).unwrap_or_default();
                device_jids.iter().any(|jid| jid.as_bytes() == device)
            });
        });
        Ok(delete.await?)
    }

    async fn clear_all_sender_key_devices(&self) -> Result<()> {
        let all = Key::new(Table::SenderKeyDevice, []);
        Ok(self.write(|rows| rows.remove_beginning(&all)).await?)
    }

    async fn get_lid_mapping(&self, lid: &str) -> Result<Option<LidPnMappingEntry>> {
        self.read(|rows| mapping(rows, lid.as_bytes()))
    }

    async fn get_pn_mapping(&self, phone: &str) -> Result<Option<LidPnMappingEntry>> {
        self.read(|rows| match rows.get(&Key::new(Table::Phone, phone)) {
            Some(lid) => mapping(rows, lid),
            None => Ok(None),
        })
    }

    async fn put_lid_mapping(&self, entry: &LidPnMappingEntry) -> Result<()> {
        self.put_lid_mappings(std::slice::from_ref(entry)).await
    }

    async fn put_lid_mappings(&self, entries: &[LidPnMappingEntry]) -> Result<()> {
        let put = self.write(|rows| entries.iter().try_for_each(|entry| put_mapping(rows, entry)));
        put.await?
    }

    async fn get_all_lid_mappings(&self) -> Result<Vec<LidPnMappingEntry>> {
        self.read(|rows| rows.table(Table::Lid).map(|(_, value)| from_json(value)).collect())
    }

    async fn save_base_key(&self, address: &str, message_id: &str, base_key: &[u8]) -> Result<()> {
        Ok(self.write(|rows| rows.put(base_key_key(address, message_id), base_key)).await?)
    }

    async fn has_same_base_key(
        &self,
        address: &str,
        message_id: &str,
        current_base_key: &[u8],
    ) -> Result<bool> {
        let key = base_key_key(address, message_id);
        Ok(self.read(|rows| rows.get(&key) == Some(current_base_key)))
    }

    async fn delete_base_key(&self, address: &str, message_id: &str) -> Result<()> {
        self.write(|rows| rows.remove(&base_key_key(address, message_id))).await?;
        Ok(())
    }

    async fn update_device_list(&self, record: DeviceListRecord) -> Result<()> {
        self.update_device_lists(vec![record]).await
    }

    async fn update_device_lists(&self, records: Vec<DeviceListRecord>) -> Result<()> {
        let update = self.write(|rows| {
            records.iter().try_for_each(|record| {
                rows.put(Key::new(Table::DeviceList, &record.user), to_json(record)?);
                Ok(())
            })
        });
        update.await?
    }

    async fn get_devices(&self, user: &str) -> Result<Option<DeviceListRecord>> {
        self.read(|rows| rows.get(&Key::new(Table::DeviceList, user)).map(from_json).transpose())
    }

    async fn delete_devices(&self, user: &str) -> Result<()> {
        self.write(|rows| rows.remove(&Key::new(Table::DeviceList, user))).await?;
        Ok(())
    }

    async fn get_group_metadata(&self, group_jid: &str) -> Result<Option<Vec<u8>>> {
        let key = Key::new(Table::GroupMetadata, group_jid);
        Ok(self.read(|rows| rows.get(&key).map(<[u8]>::to_vec)))
    }

    async fn put_group_metadata(&self, group_jid: &str, blob: &[u8]) -> Result<()> {
        Ok(self.write(|rows| rows.put(Key::new(Table::GroupMetadata, group_jid), blob)).await?)
    }

    async fn delete_group_metadata(&self, group_jid: &str) -> Result<()> {
        self.write(|rows| rows.remove(&Key::new(Table::GroupMetadata, group_jid))).await?;
        Ok(())
    }

    async fn get_tc_token(&self, jid: &str) -> Result<Option<TcTokenEntry>> {
        self.read(|rows| token(rows, jid))
    }

    async fn put_tc_token(&self, jid: &str, entry: &TcTokenEntry) -> Result<()> {
        self.write(|rows| put_token(rows, jid, entry)).await?
    }

    async fn delete_tc_token(&self, jid: &str) -> Result<()> {
        self.write(|rows| rows.remove(&Key::new(Table::ContactToken, jid))).await?;
        Ok(())
    }

    async fn get_all_tc_token_jids(&self) -> Result<Vec<String>> {
        self.read(|rows| rows.table(Table::ContactToken).map(|(key, _)| text(key.name())).collect())
    }

    async fn delete_expired_tc_tokens(&self, token_cutoff: i64, sender_cutoff: i64) -> Result<u32> {
        let delete = self.write(|rows| {
            rows.forget_where(Table::ContactToken, |_, value| {
                let Ok(entry) = from_json::<TcTokenEntry>(value) else { return false };
                let token_lives = !entry.token.is_empty() && entry.token_timestamp >= token_cutoff;
                !token_lives && entry.sender_timestamp.is_none_or(|at| at < sender_cutoff)
            })
        });
        Ok(delete.await?)
    }

    async fn touch_tc_token_sender_timestamp(
        &self,
        jid: &str,
        sender_timestamp: i64,
    ) -> Result<()> {
        let touch = self.write(|rows| {
            let entry = match token(rows.rows(), jid)? {
                Some(entry) => TcTokenEntry {
                    sender_timestamp: entry.sender_timestamp.max(Some(sender_timestamp)),
                    ..entry
                },
                None => TcTokenEntry {
                    token: Vec::new(),
                    token_timestamp: sender_timestamp,
                    sender_timestamp: Some(sender_timestamp),
                },
            };
            put_token(rows, jid, &entry)
        });
        touch.await?
    }

    async fn store_received_tc_token(
        &self,
        jid: &str,
        received: &[u8],
        token_timestamp: i64,
    ) -> Result<()> {
        let store = self.write(|rows| {
            let before = token(rows.rows(), jid)?;
            let newer =
                |e: &TcTokenEntry| !e.token.is_empty() && token_timestamp < e.token_timestamp;
            if before.as_ref().is_some_and(newer) {
                return Ok(());
            }
            let sender_timestamp = before.and_then(|entry| entry.sender_timestamp);
            let entry =
                TcTokenEntry { token: received.to_vec(), token_timestamp, sender_timestamp };
            put_token(rows, jid, &entry)
        });
        store.await?
    }

    async fn store_sent_message(
        &self,
        chat_jid: &str,
        message_id: &str,
        payload: &[u8],
    ) -> Result<()> {
        let value = stamped(payload);
        let store = self.write(|rows| {
            make_room(rows);
            rows.put(sent_key(chat_jid, message_id), value);
        });
        Ok(store.await?)
    }

    async fn take_sent_message(&self, chat_jid: &str, message_id: &str) -> Result<Option<Vec<u8>>> {
        let key = sent_key(chat_jid, message_id);
        let take = self.write(|rows| {
            let payload = rows.rows().get(&key).map(|value| unstamped(value).to_vec());
            // After a crash it can be taken once more, which repeats a second try.
            rows.forget(&key);
            payload
        });
        Ok(take.await?)
    }

    async fn delete_expired_sent_messages(&self, cutoff_timestamp: i64) -> Result<u32> {
        let older = |_: &Key, value: &[u8]| stamp(value) < cutoff_timestamp;
        Ok(self.write(|rows| rows.forget_where(Table::SentMessage, older)).await?)
    }

    async fn store_pending_inbound(
        &self,
        chat: &str,
        sender: &str,
        id: &str,
        message: &[u8],
    ) -> Result<()> {
        self.store_pending_inbound_batch(&[PendingInboundRow { chat, sender, id, message }]).await
    }

    async fn get_pending_inbound(
        &self,
        chat: &str,
        sender: &str,
        id: &str,
    ) -> Result<Option<Vec<u8>>> {
        let key = pending_key(chat, sender, id);
        Ok(self.read(|rows| rows.get(&key).map(|value| unstamped(value).to_vec())))
    }

    async fn delete_pending_inbound(&self, chat: &str, sender: &str, id: &str) -> Result<()> {
        self.delete_pending_inbound_batch(&[PendingInboundKey { chat, sender, id }]).await
    }

    async fn delete_expired_pending_inbound(&self, cutoff_timestamp: i64) -> Result<u32> {
        let older = |_: &Key, value: &[u8]| stamp(value) < cutoff_timestamp;
        Ok(self.write(|rows| rows.forget_where(Table::PendingInbound, older)).await?)
    }

    async fn store_pending_inbound_batch(&self, messages: &[PendingInboundRow<'_>]) -> Result<()> {
        let store = self.write(|rows| {
            for row in messages {
                rows.put(pending_key(row.chat, row.sender, row.id), stamped(row.message));
            }
        });
        Ok(store.await?)
    }

    /// A message that is still there after a crash is at worst stored again, where it merges; so
    /// this does not wait.
    async fn delete_pending_inbound_batch(&self, keys: &[PendingInboundKey<'_>]) -> Result<()> {
        let delete = self.write(|rows| {
            for key in keys {
                rows.forget(&pending_key(key.chat, key.sender, key.id));
            }
        });
        Ok(delete.await?)
    }
}

fn mapping(rows: &Rows, lid: &[u8]) -> Result<Option<LidPnMappingEntry>> {
    rows.get(&Key::new(Table::Lid, lid)).map(from_json).transpose()
}

fn put_mapping(rows: &mut Edit<'_>, entry: &LidPnMappingEntry) -> Result<()> {
    if let Some(old) = mapping(rows.rows(), entry.lid.as_bytes())?
        && old.phone_number != entry.phone_number
    {
        let phone = Key::new(Table::Phone, &old.phone_number);
        // The number may have gone over to another LID already.
        if rows.rows().get(&phone) == Some(entry.lid.as_bytes()) {
            rows.remove(&phone);
        }
    }
    rows.put(Key::new(Table::Phone, &entry.phone_number), entry.lid.as_bytes());
    rows.put(Key::new(Table::Lid, &entry.lid), to_json(entry)?);
    Ok(())
}

fn token(rows: &Rows, jid: &str) -> Result<Option<TcTokenEntry>> {
    rows.get(&Key::new(Table::ContactToken, jid)).map(from_json).transpose()
}

fn put_token(rows: &mut Edit<'_>, jid: &str, entry: &TcTokenEntry) -> Result<()> {
    rows.put(Key::new(Table::ContactToken, jid), to_json(entry)?);
    Ok(())
}

fn make_room(rows: &mut Edit<'_>) {
    let mut stamps: Vec<i64> =
        rows.rows().table(Table::SentMessage).map(|(_, value)| stamp(value)).collect();
    if stamps.len() < SENT_MESSAGES {
        return;
    }
    stamps.sort_unstable();
    let newest_to_go = stamps[SENT_MESSAGES / 4];
    rows.forget_where(Table::SentMessage, |_, value| stamp(value) <= newest_to_go);
}

fn base_key_key(address: &str, message_id: &str) -> Key {
    Key::hashed(Table::BaseKey, &[address, message_id])
}

fn sent_key(chat: &str, id: &str) -> Key {
    Key::hashed(Table::SentMessage, &[chat, id])
}

fn pending_key(chat: &str, sender: &str, id: &str) -> Key {
    Key::hashed(Table::PendingInbound, &[chat, sender, id])
}

/// What expires by age is kept behind the second it was stored in.
fn stamped(payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(8 + payload.len());
    value.extend(now_secs().to_be_bytes());
    value.extend(payload);
    value
}

fn stamp(value: &[u8]) -> i64 {
    value.first_chunk().map_or(0, |stamp| i64::from_be_bytes(*stamp))
}

fn unstamped(value: &[u8]) -> &[u8] {
    value.get(8..).unwrap_or_default()
}

fn text(bytes: &[u8]) -> Result<String> {
    let text = std::str::from_utf8(bytes).map_err(|e| StoreError::Serialization(Box::new(e)))?;
    Ok(text.to_owned())
}
