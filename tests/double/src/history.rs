//! The phone's ground truth, and history sync made from it.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use buffa::{Message, MessageField};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use wacore::download::MediaType;
use wacore::upload::encrypt_media;
use wacore_binary::Jid;
use waproto::whatsapp as wa;
use waproto::whatsapp::conversation::EndOfHistoryTransferType;
use waproto::whatsapp::history_sync::HistorySyncType;
use waproto::whatsapp::message::HistorySyncNotification;

/// The most messages a phone puts into one on-demand page
pub const PAGE_CAP: usize = 50;

/// How a history sync travels
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// As an encrypted file on the media host
    Blob,
    /// Inside the notification
    Inline,
}

/// A message as the phone holds it
#[derive(Clone, Debug)]
pub struct Stored {
    /// The message id, unique within the chat and sender
    pub id: String,
    /// The author, in a group, unless we are
    pub participant: Option<Jid>,
    /// Whether it is ours
    pub from_me: bool,
    /// Unix time in seconds
    pub timestamp: u64,
    /// The name the author goes by
    pub push_name: Option<String>,
    /// The content
    pub message: wa::Message,
}

/// One chat of the phone, oldest message first
#[derive(Clone, Debug)]
pub struct Chat {
    /// The chat's id: phone number form, or group
    pub jid: Jid,
    /// The chat's LID form
    pub lid: Option<Jid>,
    /// Its name in the phone's address book, or the group's subject
    pub name: Option<String>,
    /// How many messages count as unread
    pub unread: u32,
    /// What it holds
    pub messages: Vec<Stored>,
    /// The phone gives nothing older than this many of the newest messages
    pub(crate) reach: Option<usize>,
}

impl Chat {
    pub(crate) fn new(jid: Jid, lid: Option<Jid>) -> Self {
        Self { jid, lid, name: None, unread: 0, messages: Vec::new(), reach: None }
    }

    /// Keeps the order of timestamps, and of arrival within one second.
    pub(crate) fn insert(&mut self, message: Stored) {
        let index = self.messages.partition_point(|known| known.timestamp <= message.timestamp);
        self.messages.insert(index, message);
    }

    /// The page of at most `count` messages immediately before an anchor. `None` if the phone does
    /// not know the anchor, which it then ignores.
    pub(crate) fn page_before(
        &self,
        id: &str,
        from_me: bool,
        timestamp: i64,
        count: i32,
    ) -> Option<wa::Conversation> {
        let anchor = self.messages.iter().position(|message| {
            message.id == id
                && message.from_me == from_me
                && i64::try_from(message.timestamp) == Ok(timestamp)
        })?;
        let floor = self.reach.map_or(0, |reach| self.messages.len().saturating_sub(reach));
        let count = usize::try_from(count).unwrap_or(0).min(PAGE_CAP);
        let start = anchor.saturating_sub(count).max(floor.min(anchor));
        let end = if start > floor {
            EndOfHistoryTransferType::COMPLETE_BUT_MORE_MESSAGES_REMAIN_ON_PRIMARY
        } else if floor > 0 {
            EndOfHistoryTransferType::COMPLETE_ON_DEMAND_SYNC_BUT_MORE_MSG_REMAIN_ON_PRIMARY
        } else {
            EndOfHistoryTransferType::COMPLETE_AND_NO_MORE_MESSAGE_REMAIN_ON_PRIMARY
        };
        Some(self.conversation(&self.messages[start..anchor], Some(end)))
    }

    /// The chat with some of its messages, newest first, as phones send it.
    pub(crate) fn conversation(
        &self,
        messages: &[Stored],
        end: Option<EndOfHistoryTransferType>,
    ) -> wa::Conversation {
        let rows = messages.iter().rev().enumerate().map(|(order, stored)| wa::HistorySyncMsg {
            message: MessageField::some(self.row(stored)),
            msg_order_id: Some(order as u64),
        });
        wa::Conversation {
            id: self.jid.to_string(),
            messages: rows.collect(),
            name: self.name.clone(),
            unread_count: Some(self.unread),
            conversation_timestamp: self.messages.last().map(|newest| newest.timestamp),
            end_of_history_transfer_type: end,
            pn_jid: self.lid.as_ref().map(|_| self.jid.to_string()),
            lid_jid: self.lid.as_ref().map(Jid::to_string),
            ..Default::default()
        }
    }

    /// In groups the author is a field of the row and not of its key.
    pub(crate) fn row(&self, stored: &Stored) -> wa::WebMessageInfo {
        wa::WebMessageInfo {
            key: MessageField::some(wa::MessageKey {
                remote_jid: Some(self.jid.to_string()),
                from_me: Some(stored.from_me),
                id: Some(stored.id.clone()),
                participant: None,
            }),
            message: MessageField::some(stored.message.clone()),
            message_timestamp: Some(stored.timestamp),
            participant: stored.participant.as_ref().map(Jid::to_string),
            push_name: stored.push_name.clone(),
            ..Default::default()
        }
    }
}

/// Files on the media host
#[derive(Default)]
pub(crate) struct Blobs {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Status codes that the next requests get instead of a file
    pub(crate) failures: Vec<u16>,
    pub(crate) requests: usize,
    /// How long each request takes
    pub(crate) delay: Duration,
}

impl Blobs {
    /// The answer to a GET for this path: a status code and a body.
    pub(crate) fn fetch(&mut self, path: &str) -> (u16, Vec<u8>) {
        self.requests += 1;
        if !self.failures.is_empty() {
            return (self.failures.remove(0), Vec::new());
        }
        match self.files.get(path) {
            Some(file) => (200, file.clone()),
            None => (404, Vec::new()),
        }
    }

    /// Builds the notification for a history sync, and stores its file if it has one.
    pub(crate) fn notify(
        &mut self,
        sync: &wa::HistorySync,
        via: Via,
        session: Option<String>,
    ) -> Result<HistorySyncNotification> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&sync.encode_to_vec())?;
        let payload = encoder.finish()?;
        let mut notification = HistorySyncNotification {
            sync_type: Some(notification_type(sync.sync_type)),
            chunk_order: sync.chunk_order,
            progress: sync.progress,
            peer_data_request_session_id: session,
            ..Default::default()
        };
        match via {
            Via::Inline => notification.initial_hist_bootstrap_inline_payload = Some(payload),
            Via::Blob => {
                let encrypted = encrypt_media(&payload, MediaType::History)?;
                let path = format!("/v/t62.history/{}.enc", self.files.len());
                notification.direct_path = Some(path.clone());
                notification.media_key = Some(encrypted.media_key.to_vec());
                notification.file_sha256 = Some(encrypted.file_sha256.to_vec());
                notification.file_enc_sha256 = Some(encrypted.file_enc_sha256.to_vec());
                notification.file_length = Some(payload.len() as u64);
                self.files.insert(path, encrypted.data_to_upload);
            }
        }
        Ok(notification)
    }
}

fn notification_type(sync_type: HistorySyncType) -> wa::message::HistorySyncType {
    use wa::message::HistorySyncType as Notified;
    match sync_type {
        HistorySyncType::FULL => Notified::FULL,
        HistorySyncType::INITIAL_BOOTSTRAP => Notified::INITIAL_BOOTSTRAP,
        HistorySyncType::INITIAL_STATUS_V3 => Notified::INITIAL_STATUS_V3,
        HistorySyncType::NON_BLOCKING_DATA => Notified::NON_BLOCKING_DATA,
        HistorySyncType::ON_DEMAND => Notified::ON_DEMAND,
        HistorySyncType::PUSH_NAME => Notified::PUSH_NAME,
        HistorySyncType::RECENT => Notified::RECENT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(count: u64) -> Chat {
        let mut chat = Chat::new(Jid::pn("2"), None);
        for index in 0..count {
            chat.insert(Stored {
                id: format!("m{index}"),
                participant: None,
                from_me: false,
                timestamp: 1_000 + index,
                push_name: None,
                message: crate::text("x"),
            });
        }
        chat
    }

    fn ids(page: &wa::Conversation) -> Vec<String> {
        let key = |row: &wa::HistorySyncMsg| row.message.key.id.clone().unwrap();
        page.messages.iter().map(key).collect()
    }

    #[test]
    fn a_page_ends_just_before_its_anchor() {
        let page = chat(10).page_before("m5", false, 1_005, 3).unwrap();
        assert_eq!(ids(&page), ["m4", "m3", "m2"]);
        let more = EndOfHistoryTransferType::COMPLETE_BUT_MORE_MESSAGES_REMAIN_ON_PRIMARY;
        assert_eq!(page.end_of_history_transfer_type, Some(more));
    }

    #[test]
    fn a_page_holds_no_more_than_the_cap() {
        let page = chat(200).page_before("m199", false, 1_199, 500).unwrap();
        assert_eq!(page.messages.len(), PAGE_CAP);
    }

    #[test]
    fn the_last_page_says_so() {
        let none = EndOfHistoryTransferType::COMPLETE_AND_NO_MORE_MESSAGE_REMAIN_ON_PRIMARY;
        let page = chat(10).page_before("m2", false, 1_002, 50).unwrap();
        assert_eq!(ids(&page), ["m1", "m0"]);
        assert_eq!(page.end_of_history_transfer_type, Some(none));
        let empty = chat(10).page_before("m0", false, 1_000, 50).unwrap();
        assert!(empty.messages.is_empty());
        assert_eq!(empty.end_of_history_transfer_type, Some(none));
    }

    #[test]
    fn a_phone_may_hold_back_what_it_has() {
        let mut chat = chat(10);
        chat.reach = Some(4);
        let page = chat.page_before("m8", false, 1_008, 50).unwrap();
        assert_eq!(ids(&page), ["m7", "m6"]);
        let terminal =
            EndOfHistoryTransferType::COMPLETE_ON_DEMAND_SYNC_BUT_MORE_MSG_REMAIN_ON_PRIMARY;
        assert_eq!(page.end_of_history_transfer_type, Some(terminal));
        assert!(chat.page_before("m2", false, 1_002, 50).unwrap().messages.is_empty());
    }

    #[test]
    fn an_anchor_must_match_in_every_field() {
        let chat = chat(10);
        assert!(chat.page_before("m5", false, 1_005, 9).is_some());
        assert!(chat.page_before("invented", false, 1_005, 9).is_none());
        assert!(chat.page_before("m5", true, 1_005, 9).is_none());
        assert!(chat.page_before("m5", false, 1_005_000, 9).is_none(), "milliseconds");
    }
}
