//! What the phones hold, against what is in the store.

use std::collections::BTreeMap;

use anyhow::Result;
use backfill_core::doc::{CollectionPath, Comparison, FieldPath, Query};
use backfill_driver::port::Store;
use whatsapp_double::Phone;

/// How the store stands to one phone, in messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    /// The phone holds so many
    pub expected: usize,
    /// of which so many are in the store
    pub stored: usize,
    /// The store has so many that the phone does not know
    pub foreign: usize,
    /// The store has so many a second time
    pub twice: usize,
}

impl Balance {
    /// Whether the store holds every message of the phone exactly once, and nothing else.
    pub const fn is_even(&self) -> bool {
        self.stored == self.expected && self.foreign == 0 && self.twice == 0
    }
}

/// Compares what the store has for an account with what its phone holds, by WhatsApp's ids.
///
/// # Errors
/// The store cannot be read.
pub async fn compare(store: &impl Store, account: &str, phone: &Phone) -> Result<Balance> {
    let mut stored: BTreeMap<String, usize> = BTreeMap::new();
    for thread in threads(store, account).await? {
        let messages = CollectionPath::parse(format!("threads/{thread}/messages"))?;
        let query = Query::all(messages, MANY).select([WA_ID]);
        for doc in store.query(&query).await?.docs {
            let id = doc.str("waMessageId").unwrap_or_else(|| doc.path.id());
            *stored.entry(id.to_owned()).or_default() += 1;
        }
    }
    let chats = phone.chats();
    let expected: Vec<&str> =
        chats.iter().flat_map(|chat| chat.messages.iter().map(|m| m.id.as_str())).collect();
    let known = expected.iter().filter(|id| stored.contains_key(**id)).count();
    Ok(Balance {
        expected: expected.len(),
        stored: known,
        foreign: stored.len() - known,
        twice: stored.values().map(|count| count - 1).sum(),
    })
}

/// The ids of an account's threads.
///
/// # Errors
/// The store cannot be read.
pub async fn threads(store: &impl Store, account: &str) -> Result<Vec<String>> {
    let query = Query::all(CollectionPath::root("threads"), MANY)
        .filter(FieldPath::new("accountId"), Comparison::Equal, account)
        .select([]);
    let found = store.query(&query).await?;
    Ok(found.docs.iter().map(|doc| doc.path.id().to_owned()).collect())
}

const WA_ID: FieldPath = FieldPath::new("waMessageId");
const MANY: u32 = 100_000;
