//! How far messages got.

use backfill_core::incoming::{Incoming, Key, MessageEvent, Record, Status, SyncSource};
use smol_str::ToSmolStr;
use wacore::types::events::Receipt;
use wacore::types::presence::ReceiptType;
use wacore_binary::JidExt;

/// What somebody's receipt tells of messages of ours.
pub(crate) fn receipts(receipt: &Receipt) -> Vec<Record> {
    let status = match receipt.r#type {
        ReceiptType::Delivered | ReceiptType::Inactive => Status::Delivered,
        ReceiptType::Read | ReceiptType::Played => Status::Read,
        ReceiptType::Sent => Status::Sent,
        // What our own devices say to each other, and what asks for a repetition.
        _ => return Vec::new(),
    };
    let source = &receipt.source;
    if source.is_from_me || source.chat.is_status_broadcast() {
        return Vec::new();
    }
    let told = receipt.message_ids.iter().filter(|id| !id.is_empty()).map(|id| {
        let key = Key {
            id: id.as_str().into(),
            remote_jid: source.chat.to_smolstr(),
            from_me: true,
            participant: None,
        };
        let timestamp = receipt.timestamp.timestamp();
        let event = MessageEvent::Receipt(status);
        Incoming { key, timestamp, source: SyncSource::Realtime, event }.into()
    });
    told.collect()
}
