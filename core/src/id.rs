//! Names of things. Each is parsed once and right ever after.

use std::fmt;

use sha2::{Digest, Sha256};
use smol_str::SmolStr;

use crate::doc::{CollectionPath, DocPath, PathError};

/// Declares a newtype over text that is usable as one segment of a document path.
macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(SmolStr);

        impl $name {
            /// Parses an id.
            ///
            /// # Errors
            /// [`PathError`] if it cannot be the id of a document: empty, with `/`, reserved, too long.
            pub fn parse(id: impl Into<SmolStr>) -> Result<Self, PathError> {
                let id = id.into();
                crate::doc::id_rules(&id)?;
                Ok(Self(id))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The id as shared text.
            pub fn text(&self) -> SmolStr {
                self.0.clone()
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

/// Declares that a type's only textual form is the plain id.
macro_rules! shown_in_full {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// Declares that a type is personal data: its textual forms are masked.
macro_rules! shown_masked {
    ($name:ident) => {
        impl $name {
            /// A short form for logs, metrics and errors that identifies nobody.
            pub fn masked(&self) -> SmolStr {
                mask(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.masked())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.masked())
            }
        }
    };
}

text_id! {
    /// One WhatsApp account: `account_{namespace}_{hex32}`.
    ///
    /// `Display` and `Debug` show the masked form that logs use, the first eight characters of the
    /// hexadecimal part; [`as_str`](Self::as_str) is the whole.
    AccountId
}

impl AccountId {
    /// The id of the account with this phone number: the first 32 hexadecimal digits of the
    /// SHA-256 of `+digits`, where a leading `0` of the number becomes `40`.
    ///
    /// `None` if the text contains no digit or the namespace cannot be part of a document id.
    pub fn of_phone(namespace: &str, phone: &str) -> Option<Self> {
        let digits: String = phone.chars().filter(char::is_ascii_digit).collect();
        let number = match digits.strip_prefix('0') {
            Some(rest) => format!("+40{rest}"),
            None if digits.is_empty() => return None,
            None => format!("+{digits}"),
        };
        let hex = hex(&Sha256::digest(number.as_bytes()));
        Self::parse(format!("account_{namespace}_{}", &hex[..32])).ok()
    }

    /// The first eight characters of the part that differs between accounts, and `...`.
    pub fn masked(&self) -> SmolStr {
        let part = self.0.rsplit('_').next().unwrap_or_default();
        smol_str::format_smolstr!("{}...", part.chars().take(8).collect::<String>())
    }

    /// `accounts/{id}`.
    pub fn path(&self) -> DocPath {
        self.below("")
    }

    /// `accounts/{id}/leases/connection`: who owns the account.
    pub fn connection_path(&self) -> DocPath {
        self.below("/leases/connection")
    }

    /// `accounts/{id}/leases/autoBackfill`.
    pub fn auto_backfill_path(&self) -> DocPath {
        self.below("/leases/autoBackfill")
    }

    /// `accounts/{id}/leases/recentSync`.
    pub fn recent_sync_path(&self) -> DocPath {
        self.below("/leases/recentSync")
    }

    /// `accounts/{id}/sync/state`: what the owner must not forget; orders its writes.
    pub fn sync_path(&self) -> DocPath {
        self.below("/sync/state")
    }

    /// `accounts/{id}/coverage`: one document per thread.
    pub fn coverage(&self) -> CollectionPath {
        self.path().child("coverage")
    }

    fn below(&self, rest: &str) -> DocPath {
        // An id is one valid segment, so the path is valid too.
        DocPath::parse(["accounts/", &self.0, rest].concat())
            .expect("an account id is a path segment")
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

text_id! {
    /// What an operator calls a process: `INSTANCE_ID`, by default `hostname-pid`.
    ///
    /// A label: that two are equal proves nothing.
    InstanceId
}
shown_in_full!(InstanceId);

text_id! {
    /// One incarnation of a process's session, drawn at random when the session starts.
    BootId
}
shown_in_full!(BootId);

impl BootId {
    /// The `n`th boot of a process with this seed.
    pub fn derive(seed: &[u8; 32], n: u64) -> Self {
        let hash =
            Sha256::new().chain_update(b"boot").chain_update(seed).chain_update(n.to_be_bytes());
        // 80 bits: enough never to meet again, short enough to be stored inline.
        Self(SmolStr::new(&hex(&hash.finalize())[..20]))
    }

    /// `instances/{boot}`.
    pub fn path(&self) -> DocPath {
        DocPath::parse(smol_str::format_smolstr!("instances/{}", self.0))
            .expect("a boot id is a path segment")
    }
}

text_id! {
    /// A conversation of one account: `{accountId}__{clientJid}`.
    ThreadId
}
shown_masked!(ThreadId);

impl ThreadId {
    /// The thread of `account` with the chat `jid`.
    ///
    /// # Errors
    /// [`PathError`] if the pair cannot be a document id.
    pub fn of_chat(account: &AccountId, jid: &str) -> Result<Self, PathError> {
        Self::parse([account.as_str(), "__", jid].concat())
    }

    /// The chat's JID: what follows the account's id, or `None` in another account's thread.
    pub fn jid(&self, account: &AccountId) -> Option<&str> {
        self.0.strip_prefix(account.as_str())?.strip_prefix("__")
    }

    /// `threads/{id}`.
    pub fn path(&self) -> DocPath {
        DocPath::parse(["threads/", &self.0].concat()).expect("a thread id is a path segment")
    }

    /// `threads/{id}/messages`.
    pub fn messages(&self) -> CollectionPath {
        self.path().child("messages")
    }
}

text_id! {
    /// A message document within its thread.
    MessageId
}
shown_in_full!(MessageId);

text_id! {
    /// A document of `outbox`.
    OutboxId
}
shown_in_full!(OutboxId);

impl OutboxId {
    /// `outbox/{id}`.
    pub fn path(&self) -> DocPath {
        DocPath::parse(smol_str::format_smolstr!("outbox/{}", self.0))
            .expect("an outbox id is a path segment")
    }
}

/// Names one effect, so that its answer finds its way back; unique within one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RequestId(pub u64);

/// A fencing token: rises by one with every change of owner, never falls, never resets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch of the next owner.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        let _ = write!(s, "{b:02x}"); // writing to a String cannot fail
        s
    })
}

/// A stable short name for personal data, not reversible by eye.
fn mask(text: &str) -> SmolStr {
    smol_str::format_smolstr!("{}...", &hex(&Sha256::digest(text.as_bytes()))[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_phone_gives_the_same_account() {
        let a = AccountId::of_phone("prod", "0712 345 678").unwrap();
        assert_eq!(AccountId::of_phone("prod", "+40712345678"), Some(a.clone()));
        assert_eq!(AccountId::of_phone("prod", "none"), None);
        // SHA-256 of "+40712345678"
        assert!(a.as_str().starts_with("account_prod_"));
        assert_eq!(a.as_str().len(), "account_prod_".len() + 32);
    }

    #[test]
    fn ids_that_identify_people_are_masked() {
        let a = AccountId::parse("account_prod_0123456789abcdef0123456789abcdef").unwrap();
        assert_eq!(format!("{a} {a:?}"), "01234567... 01234567...");
        let t = ThreadId::of_chat(&a, "40712345678@s.whatsapp.net").unwrap();
        assert!(!format!("{t:?}").contains("712345678"));
        let t = ThreadId::of_chat(&a, "40712345678@s.whatsapp.net").unwrap();
        assert!(!format!("{t:?}").contains("712345678"));
        let other = ThreadId::of_chat(&a, "40712345679@s.whatsapp.net").unwrap();
        assert_ne!(format!("{t:?}"), format!("{other:?}"), "and still told apart");
    }

    #[test]
    fn a_thread_knows_its_chat() {
        let a = AccountId::parse("a").unwrap();
        let t = ThreadId::of_chat(&a, "1@g.us").unwrap();
        assert_eq!(t.as_str(), "a__1@g.us");
        assert_eq!(t.jid(&a), Some("1@g.us"));
        assert_eq!(t.jid(&AccountId::parse("b").unwrap()), None);
        assert!(ThreadId::of_chat(&a, "x/y").is_err());
    }

    #[test]
    fn boots_of_one_seed_differ() {
        let seed = [7; 32];
        assert_ne!(BootId::derive(&seed, 0), BootId::derive(&seed, 1));
        assert_eq!(BootId::derive(&seed, 0).as_str().len(), 20);
    }
}
