//! Where a message lies whose document has another name than WhatsApp gives the message.
//!
//! Our users' messages have documents before they have a WhatsApp id, named by their creator. The
//! WhatsApp id follows from the outbox document's, and an alias, written with the claim and so
//! before anything is sent, leads every later mention of that id to the existing document.

use std::fmt;

use sha2::{Digest, Sha256};
use smol_str::{SmolStr, format_smolstr};

use crate::doc::{DocPath, Document, FieldPath, Precondition, Write};
use crate::id::{AccountId, MessageId, OutboxId, ThreadId, hex};

/// The id under which the message of this outbox document is sent, every time it is sent.
///
/// `3EB0` and 18 upper-case hexadecimal digits, the form of the official clients.
pub fn outbound_wa_id(outbox: &OutboxId) -> SmolStr {
    let digest = hex(&Sha256::digest(outbox.as_str().as_bytes()));
    format_smolstr!("{PREFIX}{}", digest[..DIGITS].to_ascii_uppercase())
}

/// Leads from a WhatsApp id to the document of the message: `accounts/{id}/aliases/{waId}`.
///
/// It belongs to the account and not to a thread, so that it is found by whichever name the chat
/// is called.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Alias {
    /// The thread the message's creator chose
    pub thread: ThreadId,
    /// The document's id within it
    pub message: MessageId,
}

impl Alias {
    /// Where the alias of this WhatsApp id lies; `None` if no alias can have that id.
    pub fn path(account: &AccountId, wa_id: &str) -> Option<DocPath> {
        let digits = wa_id.strip_prefix(PREFIX)?;
        let upper_hex = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
        if digits.len() != DIGITS || !digits.bytes().all(upper_hex) {
            return None;
        }
        let path = format_smolstr!("accounts/{}/aliases/{wa_id}", account.as_str());
        Some(DocPath::parse(path).expect("an account id and digits are path segments"))
    }

    /// Records the alias of the message that this outbox document sends. Goes into the commit of
    /// the claim; repeating it changes nothing.
    pub fn record(&self, account: &AccountId, outbox: &OutboxId) -> Write {
        let path = Self::path(account, &outbound_wa_id(outbox))
            .expect("a derived id has the form of an alias");
        let fields = vec![
            (THREAD_ID, self.thread.text().into()),
            (MESSAGE_ID, self.message.text().into()),
            (OUTBOX_ID, outbox.text().into()),
        ];
        Write::merge(path, Precondition::Any, fields)
    }

    /// Reads an alias; `None` if it names no thread of this account.
    pub fn parse(account: &AccountId, doc: &Document) -> Option<Self> {
        let thread = ThreadId::parse(doc.str(THREAD_ID.as_str())?).ok()?;
        thread.jid(account)?;
        Some(Self { thread, message: MessageId::parse(doc.str(MESSAGE_ID.as_str())?).ok()? })
    }
}

impl fmt::Debug for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Alias({:?})", self.thread)
    }
}

const PREFIX: &str = "3EB0";
const DIGITS: usize = 18;
const THREAD_ID: FieldPath = FieldPath::new("threadId");
const MESSAGE_ID: FieldPath = FieldPath::new("messageId");
const OUTBOX_ID: FieldPath = FieldPath::new("outboxId");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_outbox_document_has_one_whatsapp_id() {
        let outbox = OutboxId::parse("abc").unwrap();
        // SHA-256 of "abc" begins with ba7816bf8f01cfea41
        assert_eq!(outbound_wa_id(&outbox), "3EB0BA7816BF8F01CFEA41");
    }

    #[test]
    fn only_ids_of_the_derived_form_can_have_an_alias() {
        let account = AccountId::parse("a").unwrap();
        let path = |id: &str| Alias::path(&account, id).map(|p| p.to_string());
        let id = "3EB0BA7816BF8F01CFEA41";
        assert_eq!(path(id), Some(format!("accounts/a/aliases/{id}")));
        for other in ["3EB0", "3EB0BA7816BF8F01CFEA4", "3EB0ba7816bf8f01cfea41", "AC12", "/"] {
            assert_eq!(path(other), None, "{other}");
        }
    }
}
