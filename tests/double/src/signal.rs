//! The Signal state of one device that the double plays: a phone or a contact.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use futures_util::FutureExt;
use rand::RngExt;
use wacore::types::jid::{JidExt, make_sender_key_name};
use wacore_binary::Jid;
use wacore_libsignal::protocol::{
    CiphertextMessage, CiphertextMessageType, Direction, GenericSignedPreKey, IdentityChange,
    IdentityKey, IdentityKeyPair, IdentityKeyStore, KeyPair, PreKeyBundle, PreKeyId, PreKeyRecord,
    PreKeySignalMessage, PreKeyStore, ProtocolAddress, PublicKey, SenderKeyDistributionMessage,
    SenderKeyName, SenderKeyRecord, SenderKeyStore, SessionRecord, SessionStore, SignalMessage,
    SignalProtocolError, SignedPreKeyId, SignedPreKeyRecord, SignedPreKeyStore, Timestamp,
    UsePQRatchet, create_sender_key_distribution_message, group_decrypt, group_encrypt,
    message_decrypt, message_encrypt, process_prekey_bundle,
    process_sender_key_distribution_message,
};

type Outcome<T> = std::result::Result<T, SignalProtocolError>;

const SIGNED_PRE_KEY: u32 = 1;

/// An encrypted message as it goes into an `<enc>` element
pub(crate) struct Encrypted {
    /// `msg`, `pkmsg` or `skmsg`
    pub(crate) kind: &'static str,
    pub(crate) ciphertext: Vec<u8>,
}

pub(crate) struct SignalDevice {
    identities: Identities,
    pre_keys: PreKeys,
    signed_pre_keys: SignedPreKeys,
    sessions: Sessions,
    sender_keys: SenderKeys,
    /// Who already holds our sender key, by group and device
    distributed: BTreeSet<(String, String)>,
}

impl SignalDevice {
    pub(crate) fn new() -> Self {
        let mut rng = rand::rng();
        let own = IdentityKeyPair::generate(&mut rng);
        let pair = KeyPair::generate(&mut rng);
        let signature = own
            .private_key()
            .calculate_signature(&pair.public_key.serialize(), &mut rng)
            .expect("a fresh key signs");
        let signed = SignedPreKeyRecord::new(
            SIGNED_PRE_KEY.into(),
            Timestamp::from_epoch_millis(0),
            &pair,
            &signature,
        );
        Self {
            identities: Identities {
                own,
                registration_id: rng.random_range(1..16_380),
                known: BTreeMap::new(),
            },
            pre_keys: PreKeys::default(),
            signed_pre_keys: SignedPreKeys { signed },
            sessions: Sessions::default(),
            sender_keys: SenderKeys::default(),
            distributed: BTreeSet::new(),
        }
    }

    /// The public identity key, without its type byte
    pub(crate) fn identity(&self) -> Vec<u8> {
        self.identities.own.public_key().public_key_bytes().to_vec()
    }

    pub(crate) fn sign(&self, parts: &[&[u8]]) -> Result<Vec<u8>> {
        let key = self.identities.own.private_key();
        let signature = key.calculate_signature_for_multipart_message(parts, &mut rand::rng())?;
        Ok(signature.to_vec())
    }

    /// The secret shared with a device, from both identity keys.
    pub(crate) fn agree(&self, their_identity: &[u8]) -> Result<[u8; 32]> {
        let their_key = PublicKey::from_djb_public_key_bytes(their_identity)?;
        Ok(self.identities.own.private_key().calculate_agreement(&their_key)?)
    }

    /// A bundle with a one-time key of its own, as the server hands it to one asker.
    pub(crate) fn bundle(&mut self) -> Result<PreKeyBundle> {
        let signed = &self.signed_pre_keys.signed;
        let (id, one_time) = self.pre_keys.generate();
        Ok(PreKeyBundle::new(
            self.identities.registration_id,
            0.into(),
            Some((id, one_time.public_key)),
            signed.id()?,
            signed.public_key()?,
            signed.signature()?,
            *self.identities.own.identity_key(),
        )?)
    }

    pub(crate) fn has_session(&self, with: &Jid) -> bool {
        self.sessions.records.contains_key(with.to_protocol_address().as_str())
    }

    /// Starts a session from a bundle; the next message to that device is a `pkmsg`.
    pub(crate) fn open_session(&mut self, with: &Jid, bundle: &PreKeyBundle) -> Result<()> {
        at_once(process_prekey_bundle(
            &with.to_protocol_address(),
            &mut self.sessions,
            &mut self.identities,
            bundle,
            &mut rand::rng(),
            UsePQRatchet::No,
        ))?;
        Ok(())
    }

    /// Forgets the session, so that the next message needs a bundle again.
    pub(crate) fn drop_session(&mut self, with: &Jid) {
        let address = with.to_protocol_address();
        self.sessions.records.remove(address.as_str());
        self.distributed.retain(|(_, device)| device != address.as_str());
    }

    pub(crate) fn encrypt(&mut self, to: &Jid, plaintext: &[u8]) -> Result<Encrypted> {
        let message = at_once(message_encrypt(
            plaintext,
            &to.to_protocol_address(),
            &mut self.sessions,
            &mut self.identities,
        ))?;
        let kind = match message.message_type() {
            CiphertextMessageType::PreKey => "pkmsg",
            CiphertextMessageType::Whisper => "msg",
            other => bail!("a session produced {other:?}"),
        };
        Ok(Encrypted { kind, ciphertext: message.serialize().to_vec() })
    }

    pub(crate) fn decrypt(&mut self, from: &Jid, kind: &str, ciphertext: &[u8]) -> Result<Vec<u8>> {
        let message = match kind {
            "msg" => CiphertextMessage::SignalMessage(SignalMessage::try_from(ciphertext)?),
            "pkmsg" => {
                CiphertextMessage::PreKeySignalMessage(PreKeySignalMessage::try_from(ciphertext)?)
            }
            other => bail!("cannot decrypt an enc of type {other}"),
        };
        let result = at_once(message_decrypt(
            &message,
            &from.to_protocol_address(),
            &mut self.sessions,
            &mut self.identities,
            &mut self.pre_keys,
            &self.signed_pre_keys,
            &mut rand::rng(),
            UsePQRatchet::No,
        ))?;
        if let Some(id) = result.consumed_prekey_id {
            self.pre_keys.records.remove(&u32::from(id));
        }
        Ok(result.plaintext)
    }

    /// Encrypts for a group, as the sender `own`.
    pub(crate) fn encrypt_for_group(
        &mut self,
        group: &Jid,
        own: &Jid,
        plaintext: &[u8],
    ) -> Result<Encrypted> {
        let name = make_sender_key_name(group, &own.to_protocol_address());
        let message =
            at_once(group_encrypt(&mut self.sender_keys, &name, plaintext, &mut rand::rng()))?;
        Ok(Encrypted { kind: "skmsg", ciphertext: message.serialized().to_vec() })
    }

    /// The sender key to hand to `device`, or `None` if it already has it.
    pub(crate) fn distribution(
        &mut self,
        group: &Jid,
        own: &Jid,
        device: &Jid,
    ) -> Result<Option<Vec<u8>>> {
        let entry = (group.to_string(), device.to_protocol_address().as_str().to_owned());
        if !self.distributed.insert(entry) {
            return Ok(None);
        }
        let name = make_sender_key_name(group, &own.to_protocol_address());
        let message = at_once(create_sender_key_distribution_message(
            &name,
            &mut self.sender_keys,
            &mut rand::rng(),
        ))?;
        Ok(Some(message.serialized().to_vec()))
    }

    pub(crate) fn accept_distribution(
        &mut self,
        group: &Jid,
        sender: &Jid,
        message: &[u8],
    ) -> Result<()> {
        let name = make_sender_key_name(group, &sender.to_protocol_address());
        let message = SenderKeyDistributionMessage::try_from(message)?;
        at_once(process_sender_key_distribution_message(&name, &message, &mut self.sender_keys))
    }

    pub(crate) fn decrypt_from_group(
        &mut self,
        group: &Jid,
        sender: &Jid,
        ciphertext: &[u8],
    ) -> Result<Vec<u8>> {
        let name = make_sender_key_name(group, &sender.to_protocol_address());
        at_once(group_decrypt(ciphertext, &mut self.sender_keys, &name))
    }
}

/// Runs a Signal operation over stores that live in memory, which never wait.
fn at_once<T>(operation: impl Future<Output = Outcome<T>>) -> Result<T> {
    let outcome = operation.now_or_never().context("an in-memory Signal store waited")?;
    Ok(outcome?)
}

struct Identities {
    own: IdentityKeyPair,
    registration_id: u32,
    known: BTreeMap<String, IdentityKey>,
}

#[async_trait]
impl IdentityKeyStore for Identities {
    async fn get_identity_key_pair(&self) -> Outcome<IdentityKeyPair> {
        Ok(self.own.clone())
    }

    async fn get_local_registration_id(&self) -> Outcome<u32> {
        Ok(self.registration_id)
    }

    async fn save_identity(
        &mut self,
        address: &ProtocolAddress,
        identity: &IdentityKey,
    ) -> Outcome<IdentityChange> {
        let before = self.known.insert(address.as_str().to_owned(), *identity);
        Ok(IdentityChange::from_changed(before.is_some_and(|before| before != *identity)))
    }

    async fn is_trusted_identity(
        &self,
        _: &ProtocolAddress,
        _: &IdentityKey,
        _: Direction,
    ) -> Outcome<bool> {
        Ok(true)
    }

    async fn get_identity(&self, address: &ProtocolAddress) -> Outcome<Option<IdentityKey>> {
        Ok(self.known.get(address.as_str()).copied())
    }
}

#[derive(Default)]
struct PreKeys {
    last: u32,
    records: BTreeMap<u32, PreKeyRecord>,
}

impl PreKeys {
    fn generate(&mut self) -> (PreKeyId, KeyPair) {
        let pair = KeyPair::generate(&mut rand::rng());
        self.last += 1;
        let id = PreKeyId::from(self.last);
        self.records.insert(self.last, PreKeyRecord::new(id, &pair));
        (id, pair)
    }
}

#[async_trait]
impl PreKeyStore for PreKeys {
    async fn get_pre_key(&self, id: PreKeyId) -> Outcome<PreKeyRecord> {
        self.records.get(&u32::from(id)).cloned().ok_or(SignalProtocolError::InvalidPreKeyId)
    }

    async fn save_pre_key(&mut self, id: PreKeyId, record: &PreKeyRecord) -> Outcome<()> {
        self.records.insert(u32::from(id), record.clone());
        Ok(())
    }

    async fn remove_pre_key(&mut self, id: PreKeyId) -> Outcome<()> {
        self.records.remove(&u32::from(id));
        Ok(())
    }
}

struct SignedPreKeys {
    signed: SignedPreKeyRecord,
}

#[async_trait]
impl SignedPreKeyStore for SignedPreKeys {
    async fn get_signed_pre_key(&self, id: SignedPreKeyId) -> Outcome<SignedPreKeyRecord> {
        if u32::from(id) != SIGNED_PRE_KEY {
            return Err(SignalProtocolError::InvalidSignedPreKeyId);
        }
        Ok(self.signed.clone())
    }

    async fn save_signed_pre_key(
        &mut self,
        _: SignedPreKeyId,
        record: &SignedPreKeyRecord,
    ) -> Outcome<()> {
        self.signed = record.clone();
        Ok(())
    }
}

#[derive(Default)]
struct Sessions {
    records: BTreeMap<String, SessionRecord>,
}

#[async_trait]
impl SessionStore for Sessions {
    async fn load_session(&self, address: &ProtocolAddress) -> Outcome<Option<SessionRecord>> {
        Ok(self.records.get(address.as_str()).cloned())
    }

    async fn has_session(&self, address: &ProtocolAddress) -> Outcome<bool> {
        Ok(self.records.contains_key(address.as_str()))
    }

    async fn store_session(
        &mut self,
        address: &ProtocolAddress,
        record: SessionRecord,
    ) -> Outcome<()> {
        self.records.insert(address.as_str().to_owned(), record);
        Ok(())
    }
}

#[derive(Default)]
struct SenderKeys {
    records: BTreeMap<String, SenderKeyRecord>,
}

#[async_trait]
impl SenderKeyStore for SenderKeys {
    async fn store_sender_key(
        &mut self,
        name: &SenderKeyName,
        record: SenderKeyRecord,
    ) -> Outcome<()> {
        self.records.insert(name.cache_key().to_owned(), record);
        Ok(())
    }

    async fn load_sender_key(&self, name: &SenderKeyName) -> Outcome<Option<SenderKeyRecord>> {
        Ok(self.records.get(name.cache_key()).cloned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_devices_talk_both_ways() {
        let (mut alice, mut bob) = (SignalDevice::new(), SignalDevice::new());
        let (alice_jid, bob_jid) = (Jid::pn("1"), Jid::pn("2"));
        let bundle = bob.bundle().unwrap();
        alice.open_session(&bob_jid, &bundle).unwrap();

        let first = alice.encrypt(&bob_jid, b"hello").unwrap();
        assert_eq!(first.kind, "pkmsg");
        assert_eq!(bob.decrypt(&alice_jid, first.kind, &first.ciphertext).unwrap(), b"hello");
        let answer = bob.encrypt(&alice_jid, b"yes?").unwrap();
        assert_eq!(answer.kind, "msg");
        assert_eq!(alice.decrypt(&bob_jid, answer.kind, &answer.ciphertext).unwrap(), b"yes?");

        assert!(bob.decrypt(&alice_jid, first.kind, &first.ciphertext).is_err(), "a replay");
    }

    #[test]
    fn a_sender_key_is_handed_out_once_per_device() {
        let (mut alice, mut bob) = (SignalDevice::new(), SignalDevice::new());
        let (group, alice_jid, bob_jid) = (Jid::group("9"), Jid::lid("1"), Jid::lid("2"));

        let distribution = alice.distribution(&group, &alice_jid, &bob_jid).unwrap().unwrap();
        bob.accept_distribution(&group, &alice_jid, &distribution).unwrap();
        assert_eq!(alice.distribution(&group, &alice_jid, &bob_jid).unwrap(), None);
        let message = alice.encrypt_for_group(&group, &alice_jid, b"all").unwrap();
        let plaintext = bob.decrypt_from_group(&group, &alice_jid, &message.ciphertext).unwrap();
        assert_eq!(plaintext, b"all");

        alice.drop_session(&bob_jid);
        assert!(alice.distribution(&group, &alice_jid, &bob_jid).unwrap().is_some());
    }
}
