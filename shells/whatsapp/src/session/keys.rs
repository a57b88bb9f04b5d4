//! What makes a document unreadable or at least unalterable: keys and seals.

use std::fmt;
use std::sync::Arc;

use backfill_core::id::AccountId;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use smol_str::SmolStr;

use super::error::SessionError;

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 24;
const CHECK_BYTES: usize = 16;
/// The longest key id, in characters.
const LONGEST_ID: usize = 32;

/// The keys of `SESSION_ENCRYPTION_KEY`: `id:base64[,oldid:base64...]`.
///
/// The first one encrypts, all of them decrypt. Each is 32 bytes in base64; an id has 1 to 32
/// characters of `A-Z a-z 0-9 _ -`. To rotate, put a new key in front: every session that is
/// opened is sealed anew with it, and once all have been, the old key can go.
#[derive(Clone)]
pub struct SessionKeys(Arc<[Key]>);

struct Key {
    id: SmolStr,
    cipher: XChaCha20Poly1305,
}

/// What is wrong with `SESSION_ENCRYPTION_KEY`. Never shows key material.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The same id twice
    #[error("key id `{id}` occurs twice")]
    Duplicate {
        /// The id
        id: SmolStr,
    },
    /// No key at all
    #[error("there is no key; give `id:base64` with 32 random bytes")]
    Empty,
    /// The part after the colon is not base64
    #[error("key `{id}` is not valid base64")]
    Encoding {
        /// The key's id
        id: SmolStr,
    },
    /// An id is empty, too long or has other characters
    #[error("the id of key {position} must be 1 to 32 characters of `A-Z a-z 0-9 _ -`")]
    Id {
        /// Which key, counted from 1
        position: usize,
    },
    /// The key does not have 32 bytes
    #[error("key `{id}` has {bytes} bytes; it must have 32")]
    Length {
        /// The key's id
        id: SmolStr,
        /// How many it has
        bytes: usize,
    },
    /// The colon is missing
    #[error("key {position} has no colon; write `id:base64`")]
    NoColon {
        /// Which key, counted from 1
        position: usize,
    },
}

impl SessionKeys {
    /// Parses the setting.
    ///
    /// # Errors
    /// [`KeyError`] says which key is wrong, and how.
    pub fn parse(setting: &str) -> Result<Self, KeyError> {
        if setting.trim().is_empty() {
            return Err(KeyError::Empty);
        }
        let mut keys: Vec<Key> = Vec::new();
        for (position, entry) in (1..).zip(setting.split(',')) {
            let (id, secret) =
                entry.trim().split_once(':').ok_or(KeyError::NoColon { position })?;
            if !is_id(id) {
                return Err(KeyError::Id { position });
            }
            let id = SmolStr::new(id);
            if keys.iter().any(|key| key.id == id) {
                return Err(KeyError::Duplicate { id });
            }
            let Ok(secret) = STANDARD.decode(secret) else {
                return Err(KeyError::Encoding { id });
            };
            let Ok(secret) = <[u8; KEY_BYTES]>::try_from(&secret[..]) else {
                return Err(KeyError::Length { id, bytes: secret.len() });
            };
            keys.push(Key { id, cipher: XChaCha20Poly1305::new(&secret.into()) });
        }
        Ok(Self(keys.into()))
    }

    /// The ids, the encrypting key's first.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|key| key.id.as_str())
    }
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ids()).finish()
    }
}

fn is_id(id: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    (1..=LONGEST_ID).contains(&id.len()) && id.chars().all(known)
}

/// How the documents of one session are sealed.
#[derive(Clone)]
pub(crate) enum Seal {
    /// With a checksum, readable for whoever may read the file
    Checked,
    /// With authenticated encryption
    Encrypted(SessionKeys),
}

/// Which document a seal is for. It opens as no other: not for another account, not in another
/// place, not as another state of the same place.
pub(crate) struct Label<'a> {
    pub(crate) account: &'a AccountId,
    pub(crate) document: &'a str,
    /// Numbers that lie beside the seal or say which state of the document it is
    pub(crate) numbers: [u64; 3],
}

impl Label<'_> {
    fn bytes(&self, key: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        for part in ["wa-backfill session 1", self.account.as_str(), self.document, key] {
            out.extend((part.len() as u64).to_be_bytes());
            out.extend(part.as_bytes());
        }
        out.extend(self.numbers.iter().flat_map(|number| number.to_be_bytes()));
        out
    }
}

impl Seal {
    /// The id of the key that seals now; `None` without encryption.
    pub(crate) fn key(&self) -> Option<SmolStr> {
        match self {
            Self::Checked => None,
            Self::Encrypted(keys) => keys.0.first().map(|key| key.id.clone()),
        }
    }

    /// Seals with the key that [`key`](Self::key) names.
    pub(crate) fn seal(&self, label: &Label<'_>, plain: &[u8]) -> Result<Vec<u8>, SessionError> {
        let keys = match self {
            Self::Checked => {
                let mut out = Vec::with_capacity(CHECK_BYTES + plain.len());
                out.extend(checksum(label, plain));
                out.extend(plain);
                return Ok(out);
            }
            Self::Encrypted(keys) => keys,
        };
        let key = keys.0.first().ok_or(SessionError::NoRandomness)?;
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| SessionError::NoRandomness)?;
        let aad = label.bytes(&key.id);
        let sealed = key
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: &aad })
            // It fails only beyond 256 GiB.
            .map_err(|_| SessionError::TooLarge { bytes: plain.len(), limit: usize::MAX })?;
        let mut out = Vec::with_capacity(NONCE_BYTES + sealed.len());
        out.extend(nonce);
        out.extend(sealed);
        Ok(out)
    }

    /// Opens what was sealed with the named key, or with a checksum if there is no name.
    pub(crate) fn open(
        &self,
        label: &Label<'_>,
        key: Option<&str>,
        sealed: &[u8],
    ) -> Result<Vec<u8>, SessionError> {
        let document = || SmolStr::new(label.document);
        let damaged = |reason| SessionError::Damaged { document: document(), reason };
        let (keys, id) = match (self, key) {
            (Self::Checked, None) => {
                let (check, plain) = sealed
                    .split_at_checked(CHECK_BYTES)
                    .ok_or_else(|| damaged("it is shorter than its checksum"))?;
                if checksum(label, plain) != check {
                    return Err(damaged("its checksum is wrong"));
                }
                return Ok(plain.to_vec());
            }
            (Self::Checked, Some(_)) => return Err(damaged("it is encrypted")),
            (Self::Encrypted(_), None) => return Err(damaged("it is not encrypted")),
            (Self::Encrypted(keys), Some(id)) => (keys, id),
        };
        let Some(key) = keys.0.iter().find(|key| key.id == id) else {
            return Err(SessionError::UnknownKey { document: document(), key: id.into() });
        };
        let (nonce, text) = sealed
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or_else(|| damaged("it is shorter than its nonce"))?;
        let aad = label.bytes(id);
        key.cipher
            .decrypt(&XNonce::from(*nonce), Payload { msg: text, aad: &aad })
            .map_err(|_| SessionError::Undecryptable { document: document(), key: id.into() })
    }
}

fn checksum(label: &Label<'_>, plain: &[u8]) -> [u8; CHECK_BYTES] {
    let digest = Sha256::new().chain_update(label.bytes("")).chain_update(plain).finalize();
    let mut out = [0; CHECK_BYTES];
    out.copy_from_slice(&digest[..CHECK_BYTES]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> String {
        STANDARD.encode([byte; 32])
    }

    fn error(setting: &str) -> KeyError {
        SessionKeys::parse(setting).unwrap_err()
    }

    #[test]
    fn the_setting_is_parsed_and_errors_name_what_is_wrong() {
        let keys = SessionKeys::parse(&format!("b:{},a_1-x:{}", secret(1), secret(2))).unwrap();
        assert_eq!(keys.ids().collect::<Vec<_>>(), ["b", "a_1-x"]);
        assert_eq!(format!("{keys:?}"), r#"["b", "a_1-x"]"#);
        let good = format!("a:{}", secret(1));
        assert_eq!(error(" "), KeyError::Empty);
        assert_eq!(error(&format!("{good},")), KeyError::NoColon { position: 2 });
        assert_eq!(error(&format!("{good},é:x")), KeyError::Id { position: 2 });
        assert_eq!(error(&format!(":{}", secret(1))), KeyError::Id { position: 1 });
        assert_eq!(error("a:???"), KeyError::Encoding { id: "a".into() });
        assert_eq!(error("a:AAAA"), KeyError::Length { id: "a".into(), bytes: 3 });
        assert_eq!(error(&format!("{good},{good}")), KeyError::Duplicate { id: "a".into() });
    }

    #[test]
    fn a_seal_opens_only_where_it_belongs() {
        let here = AccountId::parse("account_prod_1").unwrap();
        let there = AccountId::parse("account_prod_2").unwrap();
        let label =
            |account, document, number| Label { account, document, numbers: [number, 0, 0] };
        let new = Seal::Encrypted(
            SessionKeys::parse(&format!("b:{},a:{}", secret(2), secret(1))).unwrap(),
        );
        let old = Seal::Encrypted(SessionKeys::parse(&format!("a:{}", secret(1))).unwrap());
        for seal in [&Seal::Checked, &new, &old] {
            let key = seal.key();
            let sealed = seal.seal(&label(&here, "p1", 7), b"state").unwrap();
            let open = |label, sealed: &[u8]| seal.open(&label, key.as_deref(), sealed);
            assert_eq!(open(label(&here, "p1", 7), &sealed).unwrap(), b"state");
            for wrong in [label(&there, "p1", 7), label(&here, "p2", 7), label(&here, "p1", 8)] {
                assert!(open(wrong, &sealed).is_err());
            }
            for cut in 0..sealed.len() {
                assert!(open(label(&here, "p1", 7), &sealed[..cut]).is_err());
            }
            for at in 0..sealed.len() {
                let mut altered = sealed.clone();
                altered[at] ^= 1;
                assert!(open(label(&here, "p1", 7), &altered).is_err());
            }
        }
        let sealed = old.seal(&label(&here, "p1", 7), b"state").unwrap();
        assert_eq!(new.open(&label(&here, "p1", 7), Some("a"), &sealed).unwrap(), b"state");
        let wrong_name = new.open(&label(&here, "p1", 7), Some("b"), &sealed);
        assert!(matches!(wrong_name, Err(SessionError::Undecryptable { .. })));
        let sealed = new.seal(&label(&here, "p1", 7), b"state").unwrap();
        let unknown = old.open(&label(&here, "p1", 7), Some("b"), &sealed);
        assert!(matches!(unknown, Err(SessionError::UnknownKey { .. })));
        assert!(old.open(&label(&here, "p1", 7), None, &sealed).is_err());
        assert!(Seal::Checked.open(&label(&here, "p1", 7), Some("a"), &sealed).is_err());
    }
}
