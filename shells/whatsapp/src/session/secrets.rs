//! The client's [`MsgSecretStore`]: what later edits, votes and answers to a message need.

use async_trait::async_trait;
use backfill_driver::port::Store;
use wacore::store::error::Result;
use wacore::store::traits::{
    MessageSecret, MsgSecretEntry, MsgSecretStore, merge_msg_secret_expiry,
    merge_msg_secret_message_ts,
};

use super::keeper::Keeper;
use super::rows::{Key, Table};

#[async_trait]
impl<S: Store> MsgSecretStore for Keeper<S> {
    async fn put_msg_secrets(&self, entries: Vec<MsgSecretEntry>) -> Result<usize> {
        let put = self.write(|rows| {
            for entry in &entries {
                let key = key(&entry.chat, &entry.sender, &entry.msg_id);
                let mut row = Row {
                    secret: entry.secret,
                    expires_at: entry.expires_at,
                    message_ts: entry.message_ts,
                };
                if let Some(before) = rows.rows().get(&key).and_then(Row::read) {
                    row.expires_at = merge_msg_secret_expiry(before.expires_at, row.expires_at);
                    row.message_ts = merge_msg_secret_message_ts(before.message_ts, row.message_ts);
                }
                rows.put(key, row.bytes());
            }
        });
        put.await?;
        Ok(entries.len())
    }

    async fn get_msg_secret(
        &self,
        chat: &str,
        sender: &str,
        msg_id: &str,
    ) -> Result<Option<Vec<u8>>> {
        let found = self.get_msg_secret_with_ts(chat, sender, msg_id).await?;
        Ok(found.map(|(secret, _)| secret))
    }

    async fn get_msg_secret_with_ts(
        &self,
        chat: &str,
        sender: &str,
        msg_id: &str,
    ) -> Result<Option<(Vec<u8>, i64)>> {
        let row = self.read(|rows| rows.get(&key(chat, sender, msg_id)).and_then(Row::read));
        Ok(row.map(|row| (row.secret.to_vec(), row.message_ts)))
    }

    async fn delete_expired_msg_secrets(&self, cutoff_timestamp: i64) -> Result<u32> {
        let expired = |_: &Key, value: &[u8]| {
            let row = Row::read(value);
            row.is_some_and(|row| row.expires_at != 0 && row.expires_at <= cutoff_timestamp)
        };
        Ok(self.write(|rows| rows.forget_where(Table::MessageSecret, expired)).await?)
    }
}

/// There are many of these, so they are kept small.
struct Row {
    secret: MessageSecret,
    expires_at: i64,
    message_ts: i64,
}

impl Row {
    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.secret.len());
        out.extend(self.expires_at.to_be_bytes());
        out.extend(self.message_ts.to_be_bytes());
        out.extend(self.secret);
        out
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (expires_at, rest) = bytes.split_first_chunk()?;
        let (message_ts, secret) = rest.split_first_chunk()?;
        Some(Self {
            secret: secret.try_into().ok()?,
            expires_at: i64::from_be_bytes(*expires_at),
            message_ts: i64::from_be_bytes(*message_ts),
        })
    }
}

fn key(chat: &str, sender: &str, id: &str) -> Key {
    Key::hashed(Table::MessageSecret, &[chat, sender, id])
}
