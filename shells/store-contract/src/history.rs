use backfill_core::id::AccountId;
use backfill_core::incoming::{
    Content, Incoming, Key, MessageEvent, MessageKind, Record, SyncSource,
};
use smol_str::format_smolstr;

/// The account whose history it is.
pub fn account() -> AccountId {
    AccountId::parse("account_test_0").expect("a literal id")
}

/// A history of text messages: `per_chat` in each of the chats, oldest first.
pub fn history(chats: std::ops::Range<u32>, per_chat: u32) -> Vec<Record> {
    let text = "a line of text as people write them, neither long nor short; ".repeat(3);
    let message = |chat: u32, n: u32| {
        Record::Message(Incoming {
            key: Key {
                id: format_smolstr!("3EB0{chat:08X}{n:08X}"),
                remote_jid: format_smolstr!("4915{chat:08}@s.whatsapp.net"),
                from_me: n.is_multiple_of(3),
                participant: None,
            },
            timestamp: 1_700_000_000 + i64::from(n) * 60,
            source: SyncSource::HistorySync,
            event: MessageEvent::Content(Content {
                kind: MessageKind::Text,
                body: format_smolstr!("{n} {text}"),
                ..Content::default()
            }),
        })
    };
    chats.flat_map(|chat| (0..per_chat).map(move |n| message(chat, n))).collect()
}
